"""The spoken half: what the talker reads, frames of codes for many rows in a launch, and pieces of sound.

position of the talker      0 .. S-2              S-1              S                    S+1
what it reads               user turn, opening    bos + word 0     frame 0 + word 1     frame 1 + word 2
what it draws then                                frame 0          frame 1              frame 2
"""

from collections.abc import Sequence as Rows
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor

from ..errors import InputError
from ..generation.request import SpeechParams
from ..generation.sampling import RowSampler, not_finite, row_stream
from ..generation.talker_prompt import ROLE_ROWS, TalkerPrompt, build_prompt, text_rows
from ..modeling import ops
from ..modeling.packing import host_array
from ..modeling.steps import FrameStep
from ..outputs import AudioChunk, PromptStates
from .kv_pool import KVPool, PoolStep
from .plan import TALKER
from .runner import chunk_size, places
from .sequence import Sequence, bucket


class Place(NamedTuple):
    """A row of a tensor `[R, 1, D]`."""

    tensor: Tensor
    row: int


class Voice:
    """The speech of one answer: codes int64 `[Q]` per frame; inputs: what the talker has read behind its prompt; total: the summed
    embeddings of the last frame. row: see `Text`.
    """

    def __init__(self, params: SpeechParams, row: int, code2wav: Any):
        self.params = params
        code, rest = params.talker, params.predictor
        self.sampler = RowSampler(
            code, row_stream(code.seed, row) if code.do_sample else None, part="talker or code predictor"
        )
        self.noise = row_stream(rest.seed if rest.do_sample else 0, row, purpose=1)
        self.sampling = (rest.temperature, rest.top_k, rest.top_p) if rest.do_sample else None
        self.prompt: TalkerPrompt | None = None
        self.codes: list[np.ndarray] = []
        self.inputs: list[Place] = []
        self.total: Place | None = None
        self.stream = code2wav.stream()
        self.frames = self.samples = 0  # that have become sound

    def draws(self, logits: np.ndarray) -> int | None:
        """Code 0 of the next frame by logits float32 `[V]`, or None: the speech ends here. The last draw makes no frame."""
        code = self.sampler.chosen(self.sampler.filtered(self.sampler.adjusted(logits)))
        self.sampler.note(code)
        last = self.sampler.new == self.params.talker.max_new_tokens
        return None if last or code in self.params.talker.eos_token_id else code


class SpeechStage:
    """model: the whole one; pool: keys and values of its talker."""

    def __init__(self, model: Any, pool: KVPool):
        self.model, self.talker, self.pool = model, model.talker, pool
        self.step = PoolStep(self.talker.model, self.talker.codec_head, pool)
        self.frame_steps: dict[tuple, FrameStep] = {}
        self._words = lru_cache(maxsize=1)(self._word_rows)  # behind the text every frame has the same row

    def prepare(self, row: Sequence) -> None:
        """The talker's prompt, once the thinker has read its own and said a word."""
        voice, config = row.voice, self.model.config
        if voice.prompt is not None:
            return
        embeds, hidden = (ops.concat(parts, 0)[None] if len(parts) > 1 else parts[0][None] for parts in zip(*row.states))
        ids = row.prompt.ids[None]
        states = PromptStates(ids, np.ones(ids.shape, bool), embeds, hidden)
        voice.prompt = build_prompt(self.model, states, row.prompt.grids(), _Said(row, config), voice.params.speaker_id)
        row.states.clear()

    def read(self, row: Sequence, start: int, stop: int) -> None:
        """Reads a chunk of the talker's prompt."""
        self.prepare(row)
        prompt, count, size = row.voice.prompt, stop - start, chunk_size(stop - start)
        index = np.minimum(np.arange(start, start + size), stop - 1).astype(np.int32)
        x = ops.gather_rows(prompt.rows.reshape(-1, prompt.rows.shape[-1]), Tensor(index)).reshape(1, size, -1)
        rope = self.talker.model.rope(np.ascontiguousarray(prompt.positions[:, :, index]))
        self.pool.read_chunk(self.talker.model, x, rope, start, count, row.tables[TALKER])

    def frames(self, rows: Rows[Sequence]) -> list[Sequence]:
        """Every row's talker reads what comes next, and behind all that is known it draws a frame; returns those that ended."""
        size = bucket(rows)
        x = self._inputs(rows, size)
        positions = np.zeros((3, size, 1), np.float32)
        for index, row in enumerate(rows):
            positions[:, index] = _position(row)
        tables, lengths = places(self.pool, rows, TALKER, size)
        logits, hidden = self.step(x, self.talker.model.rope(positions), tables, lengths)
        logits = host_array(logits)[:, 0].astype(np.float32)
        drawn = {}
        for index, row in enumerate(rows):
            if _behind(row) == len(row.voice.inputs):
                row.voice.inputs.append(Place(x, index))
            if _behind(row) == len(row.voice.codes):  # it stands behind all that is known
                drawn[index] = self._drawn(row, logits[index])
        self._predict(rows, {index: code for index, code in drawn.items() if code is not None}, hidden)
        return [rows[index] for index, code in drawn.items() if code is None]

    @staticmethod
    def _drawn(row, logits):
        try:
            return row.voice.draws(logits)
        except InputError as error:
            row.error = error
            return None

    def _inputs(self, rows, size):
        """What each row's talker reads next, `[size, 1, D]`."""
        fresh = [row for row in rows if 0 < _behind(row) == len(row.voice.inputs)]
        made = {}
        if fresh:
            wide = bucket(fresh)
            words = tuple(self._word(row) for row in fresh)
            sums = gathered([row.voice.total for row in fresh], wide) + self._words(words, wide)
            made = {id(row): Place(sums, index) for index, row in enumerate(fresh)}
        return gathered([made.get(id(row)) or self._known(row) for row in rows], size)

    def _known(self, row):
        """The input that was read before, or the last row of the prompt."""
        behind, prompt = _behind(row), row.voice.prompt
        if behind < len(row.voice.inputs):
            return row.voice.inputs[behind]
        return Place(prompt.rows[:, -1:], 0)

    def _word(self, row):
        """The id that is said with the next frame."""
        config = self.model.config
        return row.spoken(ROLE_ROWS + _behind(row), config.tts_eos_token_id, config.tts_pad_token_id)

    def _word_rows(self, words, size):
        ids = np.array([*words, *[self.model.config.tts_pad_token_id] * (size - len(words))])
        return text_rows(self.model, ids[:, None])

    def _predict(self, rows, codes, hidden):
        """The other codes of the frames whose code 0 is `{index: code}`, in a launch for each kind of sampling."""
        kinds = {}
        for index in codes:
            kinds.setdefault(rows[index].voice.sampling, []).append(index)
        for sampling, indices in kinds.items():
            size = bucket(indices)
            step = self.frame_steps.get((size, sampling))
            if step is None:
                step = self.frame_steps[size, sampling] = FrameStep(self.talker, size, sampling)
            first, noise = np.zeros((size, 1), np.int32), np.zeros((size, step.groups), np.float32)
            for place, index in enumerate(indices):
                first[place] = codes[index]
                noise[place] = rows[index].voice.noise.random(step.groups, np.float32)
            state = gathered([Place(hidden, index) for index in indices], size)
            found, total = step(state, Tensor.from_numpy(first), Tensor.from_numpy(noise))
            found = host_array(found).astype(np.int64)
            for place, index in enumerate(indices):
                rows[index].voice.codes.append(found[place])
                rows[index].voice.total = Place(total, place)

    def sound(self, row: Sequence, frames: int) -> AudioChunk | None:
        """The next frames of a row as sound, or None where there are none."""
        voice = row.voice
        codes = voice.codes[voice.frames : voice.frames + frames]
        if not codes:
            return None
        pcm = host_array(voice.stream.step(np.stack(codes, axis=-1)[None]))[:, 0]
        if not np.isfinite(pcm).all():
            raise InputError(not_finite("vocoder's samples"))
        chunk = AudioChunk(voice.samples, pcm, np.array([pcm.shape[1]]))
        voice.frames, voice.samples = voice.frames + len(codes), voice.samples + pcm.shape[1]
        return chunk


class _Said:
    """The assistant turn of a row, for `build_prompt`."""

    def __init__(self, row, config):
        self.row, self.config = row, config

    def ids(self, index):
        return np.array([self.row.spoken(index, self.config.tts_eos_token_id, self.config.tts_pad_token_id)])


def _behind(row):
    """How many positions the talker has read behind those of its prompt that are read in chunks."""
    return row.read[TALKER] - (row.voice.prompt.rows.shape[1] - 1)


def _position(row):
    prompt, behind = row.voice.prompt, _behind(row)
    return prompt.positions[:, 0, -1:] if behind == 0 else prompt.following[0] + np.float32(behind - 1)


def gathered(rows: Rows[Place], size: int) -> Tensor:
    """Rows of any tensors `[R, 1, D]` as one `[size, 1, D]`; what pads them repeats the first."""
    tensors = list({id(place.tensor): place.tensor for place in rows}.values())
    first = tensors[0]
    if len(tensors) == 1 and first.shape[0] == size and [place.row for place in rows] == list(range(len(rows))):
        return first
    starts, start = {}, 0
    for tensor in tensors:
        starts[id(tensor)] = start
        start += tensor.shape[0]
    index = [starts[id(place.tensor)] + place.row for place in rows]
    index = np.array(index + [index[0]] * (size - len(rows)), np.int32)
    whole = first if len(tensors) == 1 else ops.concat(tensors, 0)
    return ops.gather_rows(whole.reshape(start, -1), Tensor(index)).reshape(size, 1, -1)
