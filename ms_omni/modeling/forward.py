"""What the forward passes have in common: the reference's arguments, converted into what a decoder stack takes."""

from typing import Any

import numpy as np
from mindspore import Tensor

from ..errors import InputError
from ..outputs import DecoderOutput, ModelOutput
from . import ops
from .cache import KVCache
from .packing import Axes, check_shape, finite, host_array, numbers, valid_tokens
from .prefill import Deepstack, read_tokens


def check_arguments(
    output_attentions: bool | None = None, cache_position: Any = None, start: int = 0, tokens: int = 0
) -> None:
    """Refuses attention maps, and cache positions that are not those of the `tokens` that follow `start` cached ones."""
    if output_attentions:
        raise InputError("output_attentions is True, but attention is one kernel here that keeps no maps; leave it out")
    if cache_position is not None:
        given = host_array(cache_position).reshape(-1)
        if given.tolist() != list(range(start, start + tokens)):
            raise InputError(
                f"cache_position is {given.tolist()}, expected {start} .. {start + tokens - 1}: new tokens follow those cached"
            )


def given_tensor(x: Any, name: str, axes: Axes) -> Tensor:
    """What a caller passed as a tensor: itself where it is one, which may carry a gradient. While a pass is recorded for
    one only its shape is checked. Raises `InputError` for another shape than axes (see `check_shape`), NaN or infinities.
    """
    if not isinstance(x, Tensor):
        return Tensor(finite(x, name, axes))
    check_shape(x, name, axes)
    if not ops.recording():
        finite(x, name)
    return x


def given_embeddings(decoder: Any, x: Any) -> Tensor:
    """inputs_embeds `[B, S, D]` of a decoder as a tensor, or `InputError`."""
    return given_tensor(x, "inputs_embeds", ("batch", "tokens", decoder.config.hidden_size))


def check_cache(decoder: Any, cache: Any) -> None:
    """Raises `InputError` for what is no cache, or the cache of another decoder."""
    if cache is None:
        return
    if not isinstance(cache, KVCache):
        raise InputError(
            f"past_key_values is a {type(cache).__name__}, expected what an earlier pass of this model returned"
        )
    layers, heads, d = len(decoder.layers), decoder.layers[0].self_attn.num_kv_heads, decoder.config.head_dim
    if (cache.num_layers, cache.heads[1], cache.head_dim) != (layers, heads, d):
        raise InputError(
            f"past_key_values holds {cache.num_layers} layers with {cache.heads[1]} heads of {cache.head_dim}, expected "
            f"{layers} with {heads} of {d}: what an earlier pass of this model returned"
        )


def wants_cache(use_cache: bool | None, past_key_values: Any) -> bool:
    """Whether a pass stores keys and values: not while it is recorded for a gradient, which does not flow through a cache."""
    if not ops.recording():
        return use_cache is None or bool(use_cache) or past_key_values is not None
    if past_key_values is not None:
        raise InputError("past_key_values was passed to a forward pass under a gradient; pass the whole sequence instead")
    return False


def new_valid(attention_mask: Any, shape: tuple[int, ...], cache: KVCache | None) -> np.ndarray:
    """The mask bool `[B, S]` of the new tokens; one over the cached ones too is cut to its end."""
    if cache is not None and cache.heads[0] != shape[0]:
        raise InputError(f"past_key_values holds {cache.heads[0]} rows, but there are new tokens for {shape[0]}")
    valid, cached = valid_tokens(shape, attention_mask), 0 if cache is None else cache.length
    if valid.shape not in (shape, (shape[0], cached + shape[1])):
        raise InputError(
            f"attention_mask has shape {list(valid.shape)}, expected {list(shape)}"
            + (f" or {[shape[0], cached + shape[1]]}" if cached else "")
        )
    return valid[:, -shape[1] :]


def given_positions(position_ids: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """Positions float32 `[3, B, S]` and the text row `[B, S]` or None, of what a caller passed for `shape` tokens.

    position_ids: `[B, S]` (or `[1, S]` for all rows), `[3, B, S]` (time, height, width), or `[4, B, S]` with a text row before.
    """
    positions = finite(position_ids, "position_ids")
    axes = positions.shape[0] if positions.ndim == 3 else 1
    try:
        positions = np.broadcast_to(positions, (max(axes, 3), *shape))
    except ValueError:
        axes = 0
    if axes not in (1, 3, 4) or not np.ndim(position_ids):
        raise InputError(
            f"position_ids has shape {list(np.shape(position_ids))}, expected {list(shape)}, {[3, *shape]}, or {[4, *shape]} "
            "with a row of text positions first"
        )
    return (positions[1:], positions[0]) if axes == 4 else (positions, None)


def packed_runs(text_row: np.ndarray | None, attention_mask: Any, cache: KVCache | None) -> np.ndarray | None:
    """Which of several sequences laid end to end each token belongs to, int `[B, S]`: the text positions start again with
    each. None for a single sequence, and where a mask or a cache decides what is attended to.
    """
    if text_row is None or attention_mask is not None or cache is not None:
        return None
    runs = np.cumsum(np.diff(text_row, axis=1, prepend=text_row[:, :1]) != 1, axis=1)
    return runs if (runs != runs[:, :1]).any() else None


def counted_positions(valid: np.ndarray, cached: Any = 0) -> np.ndarray:
    """Positions float32 `[3, B, S]` of plain text: unpadded tokens counted from `cached` (a number or `[B, 1]`) on."""
    line = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.float32) + cached
    return np.broadcast_to(line.astype(np.float32), (3, *line.shape))


def read_stack(
    decoder: Any,
    x: Tensor,
    attention_mask: Any = None,
    position_ids: Any = None,
    past_key_values: Any = None,
    use_cache: bool | None = None,
    output_hidden_states: Any = None,
    output_router_logits: bool | None = None,
    deepstack: Deepstack | None = None,
    output_attentions: bool | None = None,
    cache_position: Any = None,
) -> DecoderOutput:
    """A decoder stack on embeddings `[B, S, D]` -> `DecoderOutput`; arguments as in `Decoder.construct`."""
    check_cache(decoder, past_key_values)
    shape, cached = tuple(x.shape[:2]), 0 if past_key_values is None else past_key_values.length
    check_arguments(output_attentions, cache_position, cached, shape[1])
    valid, runs = new_valid(attention_mask, shape, past_key_values), None
    if position_ids is None:
        positions = counted_positions(np.ones(shape, bool), cached)
    else:
        positions, text_row = given_positions(position_ids, shape)
        runs = packed_runs(text_row, attention_mask, past_key_values)
    if decoder.window is not None:
        if use_cache or past_key_values is not None:
            raise InputError("this stack sees a window of an endless stream; to continue one, use Code2Wav.stream()")
    elif runs is None and wants_cache(use_cache, past_key_values) and past_key_values is None:
        past_key_values = decoder.new_cache(*shape)
    hidden, states, logits = read_tokens(
        decoder, x, positions, valid, past_key_values, deepstack, output_hidden_states, output_router_logits, runs
    )
    return DecoderOutput(hidden, past_key_values, states, None, logits)


def visual_deepstack(
    visual_pos_masks: Any, deepstack_visual_embeds: Any, shape: tuple[int, ...], width: int
) -> Deepstack | None:
    """The `Deepstack` of features `[M, D]` per layer where visual_pos_masks `[B, T]` is True, or None without.

    shape: (B, T); width: D. Raises `InputError`.
    """
    if deepstack_visual_embeds is None:
        return None
    mask = numbers(visual_pos_masks, "visual_pos_masks").astype(bool)
    check_shape(mask, "visual_pos_masks", shape)
    indices = np.flatnonzero(mask).astype(np.int32)
    axes = (len(indices), width)
    return Deepstack(
        [(indices, [given_tensor(x, "deepstack_visual_embeds", axes) for x in deepstack_visual_embeds])], shape[1]
    )


def answer(output: ModelOutput, return_dict: bool | None = None) -> Any:
    """The output, or with return_dict=False its fields as a plain tuple."""
    return output.to_tuple() if return_dict is False else output
