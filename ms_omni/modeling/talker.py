"""The talker: thinker states and text in, code 0 of every codec frame out; its predictor adds the other codes."""

from typing import Any

import numpy as np
from mindspore import Tensor

from ..errors import InputError
from ..outputs import TalkerOutput
from .cache import KVCache
from .code_predictor import CodePredictor
from .decoder import MropeDecoder
from .forward import answer, check_cache, counted_positions, given_embeddings, new_valid, read_stack
from .layer import Cell
from .layers import Embedding, Linear, ProjectionMLP
from .losses import training_losses
from .moe import SharedExpertMoeBlock
from .packing import check_shape, host_array, numbers, whole_numbers
from .positions import get_rope_index


class TalkerModel(MropeDecoder):
    """Codec embedding and decoder stack with shared experts; mirrors `Qwen3OmniMoeTalkerModel`."""

    sparse_block = SharedExpertMoeBlock

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.codec_embedding = Embedding(config.vocab_size, config.hidden_size)

    @property
    def input_layer(self) -> Embedding:
        return self.codec_embedding


class Talker(Cell):
    """Mirrors `Qwen3OmniMoeTalkerForConditionalGeneration`.

    `text_projection` projects thinker embeddings `[..., D_thinker]` to talker rows `[..., D]`, `hidden_projection` thinker hidden
    states at media tokens.
    """

    text_model, predictor = TalkerModel, CodePredictor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        text = config.text_config
        self.model = self.text_model(text)
        self.text_projection = self._projection(config)
        self.hidden_projection = self._projection(config)
        self.codec_head = Linear(text.hidden_size, text.vocab_size, bias=False)
        self.code_predictor = self.predictor(config.code_predictor_config)
        self.prepared_frame = None  # its weights as `ops.code_frame` takes them, from the first frame on

    @staticmethod
    def _projection(config):
        text = config.text_config
        return ProjectionMLP(config.thinker_hidden_size, text.intermediate_size, text.hidden_size, text.hidden_act)

    @property
    def input_layer(self) -> Embedding:
        return self.model.codec_embedding

    @property
    def output_layer(self) -> Linear:
        return self.codec_head

    def construct(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = False,
        residual_codes: Any = None,
        generation_step: int | None = None,
        talker_input_ids: Any = None,
        image_grid_thw: Any = None,
        video_grid_thw: Any = None,
        video_second_per_grid: Any = None,
        output_hidden_states: Any = False,
        output_attentions: bool | None = None,
        cache_position: Any = None,
        return_dict: bool | None = None,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The reference's forward: rows of the talker `[B, S, D]` (or codes 0 `[B, S]` as input_ids) -> `TalkerOutput`.

        attention_mask, position_ids, past_key_values, use_cache, output_*: as for the thinker. Without position_ids they
        are those of talker_input_ids, the thinker's ids `[B, S]` (with the grids), or else unpadded rows are counted. labels
        int `[B, S]` (-100: ignored) add `loss`. residual_codes and generation_step are only passed through. Raises `InputError`.
        """
        check_cache(self.model, past_key_values)
        cache, cached = past_key_values, 0 if past_key_values is None else past_key_values.length
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("pass either input_ids or inputs_embeds, and not both")
        x = self.model.embed(host_array(input_ids)) if inputs_embeds is None else given_embeddings(self.model, inputs_embeds)
        valid, deltas = new_valid(attention_mask, tuple(x.shape[:2]), cache), getattr(cache, "rope_deltas", None)
        if position_ids is None and cached:
            position_ids = counted_positions(valid, cache.valid.sum(axis=1, keepdims=True)) + (
                0 if deltas is None else deltas
            )
        elif position_ids is None and talker_input_ids is not None:
            position_ids, deltas = self.rope_index(
                talker_input_ids, valid, image_grid_thw, video_grid_thw, video_second_per_grid
            )
        elif position_ids is None:
            position_ids = counted_positions(valid)
        states = read_stack(
            self.model,
            x,
            attention_mask,
            position_ids,
            cache,
            use_cache,
            output_hidden_states,
            output_router_logits,
            None,
            output_attentions,
            cache_position,
        )
        logits = self.codec_head(states.last_hidden_state)
        loss, aux_loss = training_losses(
            self.config.text_config, logits, labels, states.router_logits, valid, num_items_in_batch
        )
        if states.past_key_values is not None:
            states.past_key_values.rope_deltas = deltas
        output = TalkerOutput(
            loss,
            aux_loss,
            logits,
            states.past_key_values,
            (states.hidden_states, residual_codes),
            None,
            states.router_logits,
            0 if generation_step is None else generation_step + 1,
        )
        return answer(output, return_dict)

    def rope_index(
        self,
        ids: Any,
        valid: np.ndarray,
        image_grid_thw: Any = None,
        video_grid_thw: Any = None,
        video_second_per_grid: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions float32 `[3, B, S]` and deltas `[B, 1]` of rows that correspond to the thinker's ids `[B, S]`; `InputError`."""
        ids = numbers(ids, "talker_input_ids")
        check_shape(ids, "talker_input_ids", valid.shape)
        images, videos = (
            None if grid is None else whole_numbers(grid, "the grids") for grid in (image_grid_thw, video_grid_thw)
        )
        seconds = None if video_second_per_grid is None else host_array(video_second_per_grid)
        return get_rope_index(self.config, self.config.spatial_merge_size, ids, valid, images, videos, seconds)

    def read(self, inputs_embeds: Tensor, positions: np.ndarray, cache: KVCache, valid: np.ndarray) -> tuple[Tensor, Tensor]:
        """One pass of generation: inputs_embeds `[B, S, D]`, positions float32 `[3, B, S]`, a `KVCache`, valid bool `[B, S]`.

        Returns logits of code 0 `[B, S, V]` and the last hidden states `[B, S, D]`.
        """
        metadata, store = cache.allocate(self.model.rope(positions), valid)
        hidden = self.model.run(inputs_embeds, metadata, store)
        return self.codec_head(hidden), hidden
