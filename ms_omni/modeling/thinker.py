"""The thinker: audio and vision encoders in front of a mixture-of-experts text decoder."""

from typing import Any

import numpy as np
from mindspore import Tensor

from ..errors import InputError
from ..locking import exclusive
from ..outputs import ThinkerOutput, VisionOutput
from . import ops
from .audio_encoder import AudioEncoder, AudioOutput, clip_lengths
from .decoder import MropeDecoder
from .forward import answer, check_arguments, check_cache, counted_positions, given_embeddings, new_valid, read_stack
from .layer import Cell
from .layers import Embedding, Linear
from .losses import training_losses
from .moe import SparseMoeBlock
from .packing import check_shape, finite, host_array, numbers, patch_grids, whole_numbers
from .positions import get_rope_index
from .prefill import Deepstack
from .vision_encoder import VisionEncoder


class ThinkerTextModel(MropeDecoder):
    """Token embedding and decoder stack; mirrors `Qwen3OmniMoeThinkerTextModel`."""

    sparse_block = SparseMoeBlock

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)

    @property
    def input_layer(self) -> Embedding:
        return self.embed_tokens


class Thinker(Cell):
    """Mirrors `Qwen3OmniMoeThinkerForConditionalGeneration` (attribute paths of transformers 4.57)."""

    audio_encoder, vision_encoder, text_model = AudioEncoder, VisionEncoder, ThinkerTextModel
    has_head = True  # without one, `construct` returns the decoder's states

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.audio_tower = self.audio_encoder(config.audio_config)
        self.visual = self.vision_encoder(config.vision_config)
        self.model = self.text_model(config.text_config)
        if self.has_head and not config.text_config.tie_word_embeddings:
            self.lm_head = Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)

    @property
    def input_layer(self) -> Embedding:
        return self.model.embed_tokens

    @property
    def output_layer(self) -> Any:
        """The layer that computes logits of hidden states: the head, the tied embedding, or None."""
        if not self.has_head:
            return None
        return self.model.embed_tokens if self.config.text_config.tie_word_embeddings else self.lm_head

    @exclusive
    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits `[..., V]` of last hidden states `[..., D]`; under a plan those of this rank's part of V."""
        return self.output_layer.logits(hidden)

    # -- features ----------------------------------------------------------------------------------------------------

    @exclusive
    def get_audio_features(
        self,
        input_features: Any,
        feature_attention_mask: Any = None,
        audio_feature_lengths: Any = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> AudioOutput:
        """Audio tokens `[N, D]` of all clips in order; they also answer to `.last_hidden_state` (5.x).

        input_features `[clips, mel, frames]` with feature_attention_mask `[clips, frames]` or audio_feature_lengths
        `[clips]` (mel frames; clips without either are taken whole); or `[mel, total frames]` with lengths.
        """
        check_arguments(output_attentions)
        features, bins = numbers(input_features, "input_features"), self.config.audio_config.num_mel_bins
        if features.ndim == 3:
            check_shape(features, "input_features", ("clips", bins, "frames"))
            lengths = clip_lengths(features, feature_attention_mask, audio_feature_lengths)
            features = np.concatenate([clip[:, :n] for clip, n in zip(features, lengths)], axis=1)
        elif audio_feature_lengths is None:
            raise InputError("input_features of shape [mel, frames] need audio_feature_lengths, one per clip")
        else:
            lengths = whole_numbers(audio_feature_lengths, "audio_feature_lengths").reshape(-1)
        return self.audio_tower(features, lengths)

    @exclusive
    def get_image_features(
        self,
        pixel_values: Any,
        image_grid_thw: Any,
        output_hidden_states: Any = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> VisionOutput:
        """Image tokens `[N, D]` of all images in order and a list of their deepstack features `[N, D]`: a `VisionOutput`."""
        check_arguments(output_attentions)
        return self._encode_pixels(pixel_values, "pixel_values", image_grid_thw, output_hidden_states)

    def _encode_pixels(self, pixels, name, grids, output_hidden_states):
        pixels = finite(pixels, name, ("patches", self.visual.patch_embed.width))
        return self.visual(pixels, grids, output_hidden_states)

    def get_video_features(
        self,
        pixel_values_videos: Any,
        video_grid_thw: Any,
        output_hidden_states: Any = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> VisionOutput:
        """As `get_image_features`, of videos."""
        check_arguments(output_attentions)
        return self._encode_pixels(pixel_values_videos, "pixel_values_videos", video_grid_thw, output_hidden_states)

    def get_placeholder_mask(
        self,
        input_ids: Any,
        inputs_embeds: Tensor | None = None,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
        audio_features: Tensor | None = None,
    ) -> tuple[np.ndarray, ...]:
        """Masks of the placeholders of images, videos and audio: three bool arrays `[B, T]`.

        Features `[N, D]` that are given must be as many as their placeholders, and as wide as inputs_embeds `[B, T, D]`
        where those are given, or `InputError` is raised.
        """
        masks, config, input_ids = [], self.config, host_array(input_ids)
        wanted = (
            ("image", config.image_token_id, image_features),
            ("video", config.video_token_id, video_features),
            ("audio", config.audio_token_id, audio_features),
        )
        for kind, token, features in wanted:
            mask = input_ids == token
            if features is not None:
                _check_features(kind, mask.sum(), features, inputs_embeds)
            masks.append(mask)
        return tuple(masks)

    def get_rope_index(
        self,
        input_ids: Any,
        image_grid_thw: Any = None,
        video_grid_thw: Any = None,
        attention_mask: Any = None,
        use_audio_in_video: bool = False,
        audio_seqlens: Any = None,
        second_per_grids: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions float32 `[3, B, T]` and deltas `[B, 1]`; see `positions.get_rope_index`.

        use_audio_in_video and audio_seqlens are part of the reference's signature; the tokens already say both.
        """
        merge = self.config.vision_config.spatial_merge_size
        return get_rope_index(
            self.config,
            merge,
            host_array(input_ids),
            None if attention_mask is None else host_array(attention_mask),
            None if image_grid_thw is None else patch_grids(image_grid_thw, "image_grid_thw", merge),
            None if video_grid_thw is None else patch_grids(video_grid_thw, "video_grid_thw", merge),
            None if second_per_grids is None else host_array(second_per_grids),
        )

    # -- the prompt --------------------------------------------------------------------------------------------------

    @exclusive
    def embed(
        self,
        input_ids: Any,
        input_features: Any = None,
        feature_attention_mask: Any = None,
        audio_feature_lengths: Any = None,
        pixel_values: Any = None,
        image_grid_thw: Any = None,
        pixel_values_videos: Any = None,
        video_grid_thw: Any = None,
    ) -> tuple[Tensor, Deepstack | None]:
        """Embeddings `[B, T, D]` with features in place of placeholders, and a `Deepstack` or None.

        Every encoder runs once; placeholders without features, and features without placeholders, are errors.
        """
        encoded = self._encode_media(
            input_features,
            feature_attention_mask,
            audio_feature_lengths,
            pixel_values,
            image_grid_thw,
            pixel_values_videos,
            video_grid_thw,
        )
        x = self.embed_text(input_ids)
        masks = self.get_placeholder_mask(input_ids, x, *(None if part is None else part[0] for part in encoded))
        shape, rows = x.shape, x.reshape(-1, x.shape[-1])  # [B * T, D]
        deepstack = []
        for kind, mask, part in zip(("image", "video", "audio"), masks, encoded):
            if part is None and mask.any():
                raise InputError(
                    f"the prompt has {mask.sum()} {kind} placeholders but there are no {kind} inputs; pass all "
                    "that the processor returned"
                )
            if part is not None:
                index = np.flatnonzero(mask).astype(np.int32)
                rows = ops.scatter_rows(rows, Tensor(index), part[0].astype(rows.dtype))
                deepstack += [(index, part[1])] if part[1] else []
        return rows.reshape(shape), Deepstack(deepstack, shape[1]) if deepstack else None

    @exclusive
    def embed_text(self, input_ids: Any) -> Tensor:
        """Embeddings `[B, T, D]` of the ids alone. Raises `InputError` for ids outside the vocabulary."""
        return self.model.embed(input_ids)

    def _encode_media(self, input_features, feature_mask, lengths, pixels, image_grids, video_pixels, video_grids):
        image = video = audio = None
        if pixels is not None:
            image = self.get_image_features(pixels, _needed(image_grids, "pixel_values", "image_grid_thw"))
        if video_pixels is not None:
            grids = _needed(video_grids, "pixel_values_videos", "video_grid_thw")
            video = self.get_video_features(video_pixels, grids)
        if input_features is not None:
            audio = (self.get_audio_features(input_features, feature_mask, lengths), [])
        return image, video, audio

    # -- forward -----------------------------------------------------------------------------------------------------

    def construct(
        self,
        input_ids: Any = None,
        input_features: Any = None,
        pixel_values: Any = None,
        pixel_values_videos: Any = None,
        image_grid_thw: Any = None,
        video_grid_thw: Any = None,
        attention_mask: Any = None,
        feature_attention_mask: Any = None,
        audio_feature_lengths: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: Any = False,
        output_router_logits: bool | None = False,
        use_audio_in_video: bool = False,
        video_second_per_grid: Any = None,
        logits_to_keep: int = 0,
        whole_logits: bool = True,
        rope_deltas: Any = None,
        output_attentions: bool | None = None,
        cache_position: Any = None,
        return_dict: bool | None = None,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Reads a prompt, or the tokens that follow what `past_key_values` holds -> `ThinkerOutput` (return_dict=False: a tuple).

        With a cache (`use_cache`, the default) it reads in chunks (`prefill.py`); without, and while MindSpore records it for
        a gradient, in one pass without a cache.

        Arguments are arrays or tensors as the processor returns them. attention_mask `[B, T]` marks padding with 0.
        position_ids: see `forward.given_positions`. labels int `[B, T]` (-100: ignored) add `loss`, their mean or with num_items_in_batch their sum divided by it; output_router_logits adds
        `aux_loss`, weighted into the loss. output_hidden_states: True, or the indices to keep (the others are None);
        logits_to_keep: logits of only so many last positions (0: all); whole_logits=False: only those of this process's part of the
        vocabulary under a plan. use_audio_in_video and rope_deltas are the reference's; the tokens and
        the cache already say both. Raises `InputError`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("pass either input_ids or inputs_embeds, and not both")
        check_cache(self.model, past_key_values)
        cache, deepstack = past_key_values, None
        if inputs_embeds is not None:
            inputs_embeds = given_embeddings(self.model, inputs_embeds)
        else:
            input_ids = numbers(input_ids, "input_ids")
            media = (
                input_features,
                feature_attention_mask,
                audio_feature_lengths,
                pixel_values,
                image_grid_thw,
                pixel_values_videos,
                video_grid_thw,
            )
            if cache is not None and cache.length and all(part is None for part in media):
                inputs_embeds = self.embed_text(input_ids)  # a generated placeholder id is an ordinary token
            else:
                inputs_embeds, deepstack = self.embed(input_ids, *media)
        valid = new_valid(attention_mask, tuple(inputs_embeds.shape[:2]), cache)
        if position_ids is None:
            position_ids, deltas = self._positions(
                input_ids, valid, cache, image_grid_thw, video_grid_thw, video_second_per_grid
            )
        else:
            deltas = getattr(cache, "rope_deltas", None)
        states = read_stack(
            self.model,
            inputs_embeds,
            attention_mask,
            position_ids,
            cache,
            use_cache,
            output_hidden_states,
            output_router_logits,
            deepstack,
            output_attentions,
            cache_position,
        )
        if states.past_key_values is not None:
            states.past_key_values.rope_deltas = deltas
        if not self.has_head:
            return answer(states, return_dict)
        hidden = states.last_hidden_state
        logits = self.logits(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        logits = self.output_layer.whole(logits) if whole_logits else logits
        loss, aux_loss = training_losses(
            self.config.text_config, logits, labels, states.router_logits, valid, num_items_in_batch
        )
        output = ThinkerOutput(
            loss, aux_loss, logits, states.past_key_values, states.hidden_states, None, states.router_logits, deltas
        )
        return answer(output, return_dict)

    def _positions(self, input_ids, valid, cache, image_grids, video_grids, seconds):
        if cache is not None and cache.length:
            cached = cache.valid.sum(axis=1, keepdims=True)
            return counted_positions(valid, cached) + cache.rope_deltas, cache.rope_deltas
        if input_ids is None:
            return counted_positions(valid), np.zeros((len(valid), 1), np.float32)
        return self.get_rope_index(input_ids, image_grids, video_grids, valid, second_per_grids=seconds)


def _check_features(kind, placeholders, features, embeds):
    if placeholders != features.shape[0]:
        raise InputError(
            f"the prompt has {placeholders} {kind} placeholders but the {kind} inputs make {features.shape[0]} "
            "tokens; pass the ids and features of one processor call"
        )
    if embeds is not None and embeds.shape[-1] != features.shape[-1]:
        raise InputError(f"{kind} features are {features.shape[-1]} wide, but embeddings {embeds.shape[-1]}")


def _needed(grid, pixels, name):
    if grid is None:
        raise InputError(f"{pixels} came without {name}; pass the grids of one processor call")
    return grid
