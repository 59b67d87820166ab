"""What travels between the stages and to the caller: small dataclasses, and the answer of `generate` without speech.

That answer is one value that scripts for two versions of transformers can read:

    4.57    text_ids, audio = model.generate(..., return_audio=False)       text_ids = model.generate(...)[0]
    5.x     text_ids = model.generate(..., return_audio=False)              text_ids[:, n:]      text_ids[0]

It is the ids, as in 5.x, in everything (shape, slices, loops, numpy's functions), but for what only a pair can mean: unpacking
into two names gives the ids and None; so does `[1]`, where there is no second row; and the first row, `[0]`, is the ids again
as soon as it is indexed as those are: `[0][:, n:]`, `[0].sequences`, `[0][0]`.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .arrays import HostArray as HostArray

SPEECH_RATE_HZ = 24_000
FRAME_SAMPLES = 1_920
"""Of a frame of the codec, 80 ms."""


class ModelOutput(Mapping):
    """Base of the dataclasses that a model returns: a field is read as `out.x`, `out["x"]` or by position, `out[0]`, `out[:2]`.

    As in transformers, fields that are None have no position and no key, iteration and `in` go over the names, and
    `to_tuple()` is what can be unpacked. A field can be set, `out.x = y`; a name that the class does not know is an
    `AttributeError` or, as a key, a `KeyError`.
    """

    def keys(self) -> tuple[str, ...]:
        """The names of the fields that are not None, in the order of their positions."""
        named = fields(self)  # pyright: ignore[reportArgumentType]  (dataclasses derive from this)
        return tuple(field.name for field in named if getattr(self, field.name) is not None)

    def to_tuple(self) -> tuple:
        """The fields that are not None."""
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass(eq=False)
class DecoderOutput(ModelOutput):
    """Result of a decoder stack, `model.thinker.model(input_ids)`; fields as in `ThinkerOutput`, the last state `[B, T, D]`."""

    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    router_logits: tuple | None = None


@dataclass(eq=False)
class ThinkerOutput(ModelOutput):
    """Result of `model.thinker(**inputs)`, fields in the reference's order.

    loss and aux_loss: scalars; logits `[B, T, V]`; past_key_values: a `KVCache`; hidden_states: num_layers + 1 tensors
    `[B, T, D]` (the input embeddings, the layers' outputs before deepstack features are added, the last one after the
    final norm) when asked for; attentions: always None, no kernel returns them; router_logits: one `[B * T, E]` per sparse
    layer when asked for; rope_deltas float32 `[B, 1]`.
    """

    loss: Any = None
    aux_loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    router_logits: tuple | None = None
    rope_deltas: np.ndarray | None = None


@dataclass(eq=False)
class TalkerOutput(ModelOutput):
    """Result of `model.talker(...)`: code 0 of the next frame, logits `[B, T, V]`; the rest as in `ThinkerOutput`, but
    hidden_states is a pair: the states, and the residual codes that were given.
    """

    loss: Any = None
    aux_loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    router_logits: tuple | None = None
    generation_step: int | None = None


@dataclass(eq=False)
class CodePredictorOutput(ModelOutput):
    """Result of `model.talker.code_predictor(...)`: logits `[B, T, V]` of one residual code."""

    loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    generation_steps: int | None = None


class VisionOutput(tuple):
    """`(features, deepstack)` of pictures or frames, as in transformers 4.57, with the names of 5.x, by attribute and key.

    features, also `pooler_output`: `[N, out]`; deepstack, also `deepstack_features`: a list of the same; `last_hidden_state`
    `[N * merge^2, D]` before merging; `hidden_states`: the blocks' inputs and the last output, when asked for.
    """

    pooler_output: Any
    deepstack_features: Any
    last_hidden_state: Any
    hidden_states: Any
    attentions = None

    def __new__(
        cls, features: Any, deepstack: Any, last_hidden_state: Any = None, hidden_states: Any = None
    ) -> VisionOutput:
        output = super().__new__(cls, (features, deepstack))
        output.pooler_output, output.deepstack_features = features, deepstack
        output.last_hidden_state, output.hidden_states = last_hidden_state, hidden_states
        return output

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if isinstance(key, str) else super().__getitem__(key)


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """Token ids with what else was asked for; all but the first have one entry per new token.

    sequences int64 `[B, T + new]`; scores: processed, as they were chosen from, and logits: raw, float32 `[B, V]`;
    hidden_states: num_layers + 1 arrays each, `[B, T, D]` for the prompt and then `[B, 1, D]`; past_key_values: a `KVCache`.
    """

    sequences: np.ndarray
    scores: tuple | None = None
    logits: tuple | None = None
    attentions: tuple | None = None
    hidden_states: tuple | None = None
    past_key_values: Any = None


@dataclass(frozen=True, eq=False)
class Logprobs:
    """Of a token: chosen, its log-probability; ids int64 `[N]`, logprobs float64 `[N]`: the likeliest of the vocabulary, the first
    before all. They are those of the model itself, before temperature, penalties and whatever else has a say in the choice.
    """

    chosen: float
    ids: np.ndarray
    logprobs: np.ndarray


@dataclass(frozen=True)
class TextDelta:
    """New text: token int64 `[B]`, active bool `[B]` (rows for which it counts), text per row if a tokenizer is known, and
    `Logprobs` per row where they are asked for (None in rows that have ended).

    A row's text is that of all its tokens since the last one with a text: those before it end within a character.
    """

    token: np.ndarray
    active: np.ndarray
    text: tuple | None = None
    logprobs: tuple | None = None


@dataclass(frozen=True)
class AudioChunk:
    """New sound: pcm float32 `[B, n]`, 24 kHz, in [-1, 1], from sample `first_sample` on; row b owns pcm[b, :samples[b]]."""

    first_sample: int
    pcm: np.ndarray
    samples: np.ndarray


def pcm16(samples: np.ndarray) -> np.ndarray:
    """Sound float32 in [-1, 1] as 16-bit integers, little-endian: the same ones wherever it goes."""
    return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")


@dataclass(frozen=True)
class StreamEnd:
    """The last event: sequences int64 `[B, T + new]`, counts per row, and seconds since the start of the request.

    reasons: why each text ended: "stop" (an end token, a stop string, a criterion), "length" (as many tokens as were wanted), "time",
    or "" where it was given; cached_tokens int `[B]`: of each prompt, that were found read.
    """

    sequences: np.ndarray
    text_tokens: np.ndarray
    frames: np.ndarray
    first_text_s: float | None
    first_audio_s: float | None
    total_s: float
    reasons: tuple[str, ...] = ()
    cached_tokens: np.ndarray | None = None


@dataclass(frozen=True)
class StreamError:
    """The last event of an answer of an engine that failed: what went wrong."""

    error: Exception


UNPACK = dis.opmap["UNPACK_SEQUENCE"]


def unpacked_into_two(depth: int = 2) -> bool:
    """Whether the frame that asked for an iterator is just unpacking it into two names: `a, b = x` and nothing else."""
    frame = sys._getframe(depth)
    code, index = frame.f_code.co_code, frame.f_lasti
    return code[index] == UNPACK and code[index + 1] == 2


class TextIds(HostArray):
    """Ids int64 `[B, T]` that also read as the output they would be part of: `ids.sequences`, `ids["sequences"]`."""

    @property
    def sequences(self) -> TextIds:
        return self

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            if index == "sequences":
                return self
            raise KeyError(index)
        return _array(np.ndarray.__getitem__(self, index))

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return _array(array)


class TextAnswer(TextIds):
    """The ids int64 `[B, T]` of an answer without speech; see the top of this file."""

    def __iter__(self) -> Iterator:
        return iter((self.view(TextIds), None) if unpacked_into_two() else list(self.view(TextIds)))

    def __getitem__(self, index: Any) -> Any:
        if self.ndim == 2 and isinstance(index, (int, np.integer)):
            if index == 1 and len(self) == 1:
                return None
            if index == 0:
                row = np.ndarray.__getitem__(self, 0).view(FirstRow)
                row.sequences = self.view(TextIds)
                return row
        return super().__getitem__(index)


class FirstRow(HostArray):
    """The first row `[T]` of an answer, or the answer `[B, T]`, as it is indexed. sequences: the answer's ids."""

    sequences: Any = None

    def __getitem__(self, index: Any) -> Any:
        of_all = isinstance(index, (str, tuple)) or (isinstance(index, (int, np.integer)) and index == 0)
        if of_all and self.sequences is not None:
            return self.sequences[index]
        return _array(np.ndarray.__getitem__(self, index))

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return _array(array)


@dataclass(eq=False)
class OutputAnswer(GenerateOutput):
    """A `GenerateOutput` without speech. Unpacked into two names it is itself and None; `[0]` is the ids, which have what else
    it holds as attributes.
    """

    def __iter__(self) -> Iterator:
        return iter((self, None) if unpacked_into_two() else self.keys())

    def __getitem__(self, key: Any) -> Any:
        if key == 1 and len(self) == 1:
            return None
        value = super().__getitem__(key)
        if key == 0:
            value = value.view(TextIds)
            value.__dict__.update({name: self[name] for name in self.keys() if name != "sequences"})
        return value


def _array(result: Any) -> Any:
    return result.view(HostArray) if isinstance(result, np.ndarray) else result


def without_speech(text: Any) -> Any:
    """The answer of `generate` around its text, a `TextIds` or a `GenerateOutput`."""
    return text.view(TextAnswer) if isinstance(text, np.ndarray) else OutputAnswer(**vars(text))
