"""The thinker: audio and vision encoders in front of a mixture-of-experts text decoder."""

import numpy as np
from mindspore import Tensor, nn

from ..errors import InputError
from ..outputs import ThinkerOutput
from . import ops
from .audio_encoder import AudioEncoder
from .decoder import MropeDecoder
from .layers import Embedding, Linear, identity
from .losses import language_model_loss, load_balancing_loss
from .moe import SparseMoeBlock
from .packing import check_ids, host_array
from .positions import get_rope_index
from .prefill import Deepstack, read_tokens
from .vision_encoder import VisionEncoder


class ThinkerTextModel(MropeDecoder):
    """Token embedding and decoder stack; mirrors `Qwen3OmniMoeThinkerTextModel`."""

    sparse_block = SparseMoeBlock

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)


class Thinker(nn.Cell):
    """Mirrors `Qwen3OmniMoeThinkerForConditionalGeneration` (attribute paths of transformers 4.57)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.audio_tower = AudioEncoder(config.audio_config)
        self.visual = VisionEncoder(config.vision_config)
        self.model = ThinkerTextModel(config.text_config)
        if not config.text_config.tie_word_embeddings:
            self.lm_head = Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.collect = identity  # puts the vocabulary together where a plan splits the head

    def get_input_embeddings(self):
        return self.model.embed_tokens

    @property
    def output_layer(self):
        """The layer whose weight `[V, D]` turns hidden states into logits: the head, or the tied embedding."""
        return self.model.embed_tokens if self.config.text_config.tie_word_embeddings else self.lm_head

    def logits(self, hidden):
        """Vocabulary logits `[..., V]` of last hidden states `[..., D]`; under a plan those of this rank's part of V."""
        return ops.linear(hidden, self.output_layer.source(self.output_layer.weight))

    # -- features ----------------------------------------------------------------------------------------------------

    def get_audio_features(self, input_features, feature_attention_mask=None, audio_feature_lengths=None):
        """Audio tokens `[N, D]` of all clips in order.

        input_features `[clips, mel, frames]` with feature_attention_mask `[clips, frames]` or audio_feature_lengths
        `[clips]` (mel frames; clips without either are taken whole); or `[mel, total frames]` with lengths.
        """
        features = host_array(input_features)
        if features.ndim == 3:
            lengths = self._clip_lengths(features, feature_attention_mask, audio_feature_lengths)
            features = np.concatenate([clip[:, :n] for clip, n in zip(features, lengths)], axis=1)
        elif audio_feature_lengths is None:
            raise InputError("input_features of shape [mel, frames] need audio_feature_lengths, one per clip")
        else:
            lengths = host_array(audio_feature_lengths).reshape(-1)
        return self.hear(features, lengths)

    def hear(self, features, lengths):
        """The audio encoder; a plan may put one in this place that shares the work with other ranks."""
        return self.audio_tower(features, lengths)

    def see(self, pixels, grids):
        """The vision encoder; a plan may put one in this place that shares the work with other ranks."""
        return self.visual(pixels, grids)

    @staticmethod
    def _clip_lengths(features, mask, lengths):
        clips, _, frames = features.shape
        if mask is not None:
            mask = host_array(mask).astype(bool)
            lengths = mask.sum(axis=1)
            if mask.shape != (clips, frames) or (mask != (np.arange(frames) < lengths[:, None])).any():
                raise InputError(
                    f"feature_attention_mask of shape {mask.shape} must mark the first frames of each of the "
                    f"{clips} clips of {frames} mel frames"
                )
        lengths = np.full(clips, frames) if lengths is None else host_array(lengths).reshape(-1)
        if len(lengths) != clips or (lengths > frames).any():
            raise InputError(f"got lengths {lengths.tolist()} for {clips} clips of {frames} mel frames")
        return lengths

    def get_image_features(self, pixel_values, image_grid_thw):
        """Image tokens `[N, D]` of all images in order, and their deepstack features, a list of `[N, D]`."""
        return self.see(host_array(pixel_values), image_grid_thw)

    def get_video_features(self, pixel_values_videos, video_grid_thw):
        """Video tokens `[N, D]` of all videos in order, and their deepstack features, a list of `[N, D]`."""
        return self.see(host_array(pixel_values_videos), video_grid_thw)

    def get_placeholder_mask(
        self, input_ids, inputs_embeds=None, image_features=None, video_features=None, audio_features=None
    ):
        """Where the placeholders of images, videos and sounds stand: three bool arrays `[B, T]`.

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
        input_ids,
        image_grid_thw=None,
        video_grid_thw=None,
        attention_mask=None,
        use_audio_in_video=False,
        audio_seqlens=None,
        second_per_grids=None,
    ):
        """Positions float32 `[3, B, T]` and deltas `[B, 1]`; see `positions.get_rope_index`.

        use_audio_in_video and audio_seqlens are part of the reference's signature; the tokens already say both.
        """
        return get_rope_index(
            self.config,
            self.config.vision_config.spatial_merge_size,
            host_array(input_ids),
            None if attention_mask is None else host_array(attention_mask),
            None if image_grid_thw is None else host_array(image_grid_thw),
            None if video_grid_thw is None else host_array(video_grid_thw),
            None if second_per_grids is None else host_array(second_per_grids),
        )

    # -- the prompt --------------------------------------------------------------------------------------------------

    def embed(
        self,
        input_ids,
        input_features=None,
        feature_attention_mask=None,
        audio_feature_lengths=None,
        pixel_values=None,
        image_grid_thw=None,
        pixel_values_videos=None,
        video_grid_thw=None,
    ):
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

    def embed_text(self, input_ids):
        """Embeddings `[B, T, D]` of the ids alone. Raises `InputError` for ids outside the vocabulary."""
        check_ids(input_ids, self.config.text_config.vocab_size)
        return self.model.embed_tokens(Tensor(input_ids.astype(np.int32)))

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
        input_ids=None,
        input_features=None,
        pixel_values=None,
        pixel_values_videos=None,
        image_grid_thw=None,
        video_grid_thw=None,
        attention_mask=None,
        feature_attention_mask=None,
        audio_feature_lengths=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=True,
        output_hidden_states=False,
        output_router_logits=False,
        use_audio_in_video=False,
        video_second_per_grid=None,
        logits_to_keep=0,
        whole_logits=True,
    ):
        """Reads a prompt, or the tokens that follow what `past_key_values` holds -> `ThinkerOutput`.

        With a cache (`use_cache`, the default) it reads in chunks (`prefill.py`); without, in one pass.

        Arguments are arrays or tensors as the processor returns them. attention_mask `[B, T]` marks padding with 0.
        labels int `[B, T]` (-100: ignored) add `loss`; output_router_logits adds `aux_loss`, weighted into the loss.
        output_hidden_states: True, or the indices to keep (the others are None); logits_to_keep: logits of only so many
        last positions (0: all); whole_logits=False: only those of the part of the vocabulary that this process holds
        under a plan. use_audio_in_video is the reference's; the tokens already say it.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("pass either input_ids or inputs_embeds, and not both")
        deepstack, valid = None, None if attention_mask is None else host_array(attention_mask) == 1
        if inputs_embeds is None:
            input_ids = host_array(input_ids)
            media = (
                input_features,
                feature_attention_mask,
                audio_feature_lengths,
                pixel_values,
                image_grid_thw,
                pixel_values_videos,
                video_grid_thw,
            )
            if past_key_values is not None and past_key_values.length and all(part is None for part in media):
                inputs_embeds = self.embed_text(input_ids)  # a placeholder id that was generated is a word like others
            else:
                inputs_embeds, deepstack = self.embed(input_ids, *media)
        valid = self._valid(valid, inputs_embeds, past_key_values)
        position_ids, deltas = self._positions(
            position_ids, input_ids, valid, past_key_values, image_grid_thw, video_grid_thw, video_second_per_grid
        )
        if use_cache and past_key_values is None:
            past_key_values = self.model.new_cache(*valid.shape)
        hidden, hidden_states, router_logits = read_tokens(
            self.model,
            inputs_embeds,
            position_ids,
            valid,
            past_key_values,
            deepstack,
            output_hidden_states,
            output_router_logits,
        )
        logits = self.logits(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        logits = self.collect(logits) if whole_logits else logits
        loss, aux_loss = self._losses(logits, labels, router_logits, valid, past_key_values)
        if past_key_values is not None:
            past_key_values.rope_deltas = deltas
        return ThinkerOutput(logits, past_key_values, deltas, hidden_states, router_logits, loss, aux_loss)

    def _valid(self, valid, x, cache):
        """The mask `[B, S]` of the new tokens; a mask over the cached ones too is cut to its end."""
        shape = tuple(x.shape[:2])
        if valid is None:
            return np.ones(shape, bool)
        cached = 0 if cache is None else cache.length
        if valid.shape not in (shape, (shape[0], cached + shape[1])):
            raise InputError(
                f"attention_mask has shape {list(valid.shape)}, expected {list(shape)}"
                + (f" or {[shape[0], cached + shape[1]]}" if cached else "")
            )
        return valid[:, -shape[1] :]

    def _positions(self, position_ids, input_ids, valid, cache, image_grids, video_grids, seconds):
        cached = 0 if cache is None else cache.length
        if position_ids is not None:
            position_ids = np.asarray(host_array(position_ids), np.float32)
            if position_ids.ndim == 2:
                position_ids = np.broadcast_to(position_ids, (3, *position_ids.shape))
            if position_ids.shape != (3, *valid.shape):
                raise InputError(
                    f"position_ids has shape {list(position_ids.shape)}, expected {[3, *valid.shape]} or {list(valid.shape)}"
                )
            return position_ids, None if cache is None else getattr(cache, "rope_deltas", None)
        if cached:
            seen = cache.valid.sum(axis=1, keepdims=True)
            steps = np.cumsum(valid, axis=1) - 1
            line = (seen + steps).astype(np.float32) + cache.rope_deltas
            return np.broadcast_to(line, (3, *line.shape)), cache.rope_deltas
        if input_ids is None:
            line = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.float32)
            return np.broadcast_to(line, (3, *line.shape)), np.zeros((len(line), 1), np.float32)
        return self.get_rope_index(input_ids, image_grids, video_grids, valid, second_per_grids=seconds)

    def _losses(self, logits, labels, router_logits, valid, cache):
        config, aux_loss, loss = self.config.text_config, None, None
        if router_logits is not None:
            aux_loss = load_balancing_loss(router_logits, config.num_experts_per_tok, valid)
        if labels is not None:
            loss = language_model_loss(logits, host_array(labels))
            if aux_loss is not None:
                loss = loss + config.router_aux_loss_coef * aux_loss
        return loss, aux_loss


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
