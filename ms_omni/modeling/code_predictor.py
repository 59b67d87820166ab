"""The code predictor: codes 1 .. n-1 of one frame, one after the other, from the talker's hidden state and code 0.

position   0                1                2                   ...   n - 1
input      talker hidden    embed(code 0)    embed_0(code 1)     ...   embed_{n-3}(code n-2)
output                      head_0: code 1   head_1: code 2      ...   head_{n-2}: code n-1
"""

from typing import Any

import numpy as np
from mindspore import Tensor, nn

from ..errors import InputError
from ..outputs import CodePredictorOutput
from .cache import MASKED, AttentionMetadata
from .decoder import Decoder, DecoderLayer, build_attention, build_dense_mlp
from .forward import answer, given_embeddings, read_stack
from .layer import Cell
from .layers import Embedding, Linear
from .losses import language_model_loss
from .packing import check_ids, host_array
from .positions import rope_tables


class CodePredictorModel(Decoder):
    """Mirrors `Qwen3OmniMoeTalkerCodePredictorModel`: a dense decoder and one embedding per residual code."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, [self._layer(config) for _ in range(config.num_hidden_layers)])
        residuals = config.num_code_groups - 1
        self.codec_embedding = nn.CellList([Embedding(config.vocab_size, config.hidden_size) for _ in range(residuals)])

    @property
    def input_layer(self) -> nn.CellList:
        return self.codec_embedding

    @staticmethod
    def _layer(config):
        return DecoderLayer(
            config.hidden_size, config.rms_norm_eps, build_attention(config, qk_norm=True), build_dense_mlp(config)
        )


class CodePredictor(Cell):
    """Mirrors `Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration`."""

    text_model = CodePredictorModel

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.model = self.text_model(config)
        heads = config.num_code_groups - 1
        self.lm_head = nn.CellList([Linear(config.hidden_size, config.vocab_size, bias=False) for _ in range(heads)])

    def attention_metadata(self, position: int, new: int, batch_size: int) -> AttentionMetadata:
        """The metadata (see `cache.py`) of `new` tokens from `position` on, in buffers of one frame."""
        capacity = self.config.num_code_groups
        positions = np.broadcast_to(np.arange(position, position + new), (batch_size, new))
        keys = np.arange(capacity if new == 1 else new)
        mask = np.where(keys <= positions[0][:, None], np.float32(0), np.float32(MASKED))
        rows = np.arange(batch_size * self.config.num_key_value_heads)[:, None] * capacity + positions[0]
        return (
            *rope_tables(positions, self.model.inv_freq),
            Tensor(np.tile(mask, (batch_size, 1, 1))),
            Tensor(rows.reshape(-1).astype(np.int32)),
        )

    @property
    def input_layer(self) -> nn.CellList:
        return self.model.codec_embedding

    @property
    def output_layer(self) -> nn.CellList:
        return self.lm_head

    def construct(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        generation_steps: int | None = None,
        output_hidden_states: Any = False,
        output_attentions: bool | None = None,
        cache_position: Any = None,
        return_dict: bool | None = None,
    ) -> Any:
        """The reference's forward -> `CodePredictorOutput`, with the logits of residual code `generation_steps`.

        At first inputs_embeds `[B, 2 + n, D]`: talker hidden state, code 0, n residual codes (which give generation_steps);
        after that the last residual code as input_ids `[B, 1]`, with past_key_values and generation_steps. labels int
        `[B, S]` add `loss`. Raises `InputError`.
        """
        first = 0
        if inputs_embeds is not None:
            inputs_embeds = given_embeddings(self.model, inputs_embeds)
            if inputs_embeds.shape[1] > 1:
                generation_steps = inputs_embeds.shape[1] - 2
        elif input_ids is not None:
            first = 1
        if generation_steps is None or (input_ids is None) == (inputs_embeds is None):
            raise InputError("pass inputs_embeds [B, 2 or more, D], or input_ids [B, 1] with generation_steps")
        if not isinstance(generation_steps, (int, np.integer)) or not first <= generation_steps < len(self.lm_head):
            raise InputError(f"generation_steps is {generation_steps}, expected {first} to {len(self.lm_head) - 1}")
        if inputs_embeds is None:
            ids = host_array(input_ids)
            check_ids(ids, self.config.vocab_size)
            inputs_embeds = self.model.codec_embedding[generation_steps - 1](Tensor(ids.astype(np.int32)))
        states = read_stack(
            self.model,
            inputs_embeds,
            attention_mask,
            position_ids,
            past_key_values,
            use_cache,
            output_hidden_states,
            None,
            None,
            output_attentions,
            cache_position,
        )
        logits = self.lm_head[generation_steps](states.last_hidden_state)
        loss = None if labels is None else language_model_loss(logits, labels)
        output = CodePredictorOutput(loss, logits, states.past_key_values, states.hidden_states, None, generation_steps + 1)
        return answer(output, return_dict)

    def read(self, inputs_embeds: Tensor, metadata: AttentionMetadata, store: Any, group: int) -> Tensor:
        """Logits `[B, V]` of residual code `group` (0 .. n-2) after inputs_embeds `[B, S, D]`."""
        hidden = self.model.run(inputs_embeds, metadata, store)
        return self.lm_head[group](hidden[:, -1])
