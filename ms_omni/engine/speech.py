"""The spoken half: what the talker reads, frames of codes for many rows in a launch, and pieces of sound.

position of the talker      0 .. S-2              S-1              S                    S+1
what it reads               user turn, opening    bos + word 0     frame 0 + word 1     frame 1 + word 2
what it draws then                                frame 0          frame 1              frame 2

It knows of an answer what it is told, in plain arrays, and nothing of the thinker. So it works in the engine's process or in one of
its own (`speech_process.py`).
"""

from collections.abc import Callable, Container, Set
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor

from ..errors import InputError
from ..generation.request import SpeechParams
from ..generation.sampling import RowSampler, fresh_seed, not_finite, row_stream
from ..generation.talker_prompt import ROLE_ROWS, Heard, talker_rows
from ..modeling import ops
from ..modeling.packing import host_array
from ..modeling.steps import COMPILE_AFTER, LAUNCH_ROWS, FrameStep, bucket, mixed_by, prepared_frame
from .blocks import cache_full
from .choice import Chooser, Found
from .kv_pool import KVPool, PoolStep
from .plan import TALKER, Plan, Speech
from .runner import chunk_size, places

FRAME_STEPS = 32
"""Launches of the predictor that are kept: one per number of rows and kind of sampling."""


class Place(NamedTuple):
    """A row of a tensor `[R, 1, D]`."""

    tensor: Tensor
    row: int


@dataclass
class Said:
    """What came of a tick, by ids of rows. sounds: `(id, samples float32 [n], codes int64 [Q, frames])`; ended: who says no more,
    failed: and why, where there is a reason.
    """

    sounds: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    failed: dict[int, Exception] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sounds or self.ended)

    def guard(self, id: int, function: Callable, *arguments: Any) -> Any:
        """What a function makes, or None and the row has failed."""
        try:
            return function(*arguments)
        except Exception as error:  # whatever it is, it ends this speech and no other
            self.failed[id] = error
            return None


def seeded(params: SpeechParams) -> SpeechParams:
    """With seeds, where none are named and some are needed."""
    found = {}
    for name in ("talker", "predictor"):
        part = getattr(params, name)
        if part.do_sample and part.seed is None:
            found[name] = replace(part, seed=fresh_seed())
    return replace(params, **found)


class Voice:
    """The speech of one answer. words: the thinker's embeddings `[D]` of the assistant turn so far, ended: whether they are all.

    table: its blocks, read: positions in them; rows `[S, D]`: the talker's prompt; inputs: what was read behind it; codes int64
    `[Q]` per frame; total: the summed embeddings of the last one; frames, of which so many have become sound. row: see `Text`;
    room: codes 0 that may be drawn, for the whole cache holds no more, or None.
    """

    def __init__(self, params: SpeechParams, row: int, code2wav: Any, room: int | None = None) -> None:
        self.params, self.room = params, room
        code, rest = params.talker, params.predictor
        self.sampler = RowSampler(
            code, row_stream(code.seed, row) if code.do_sample else None, part="talker or code predictor"
        )
        self.noise = row_stream(rest.seed if rest.do_sample else 0, row, purpose=1)
        self.sampling = (rest.temperature, rest.top_k, rest.top_p) if rest.do_sample else None
        self.heard: Heard
        self.words: list[np.ndarray] = []
        self.ended = False
        self.table: list[int] = []
        self.read = 0
        self.rows: Tensor | None = None
        self.inputs: list[Place] = []
        self.codes: list[np.ndarray] = []
        self.total: Place | None = None
        self.stream = code2wav and code2wav.stream()
        self.drawn: list[int] = []  # every code 0, the one that ended the speech among them
        self.frames = 0

    @property
    def behind(self) -> int:
        """How many positions were read behind those of the prompt that are read in chunks."""
        return self.read - (self.heard.positions.shape[1] - 1)

    @property
    def position(self) -> np.ndarray:
        """Of what is read next, float32 `[3, 1]`."""
        heard = self.heard
        return (
            heard.positions[:, -1:] if self.behind == 0 else heard.following + np.full((3, 1), self.behind - 1, np.float32)
        )

    def draws(self, found: Found | None) -> int | None:
        """Code 0 of the next frame by what is chosen by, or None: the speech ends here. The last draw makes no frame.

        Raises `InputError` for logits that are not finite, and where there is no room for more.
        """
        assert found is not None, "a row that draws is one that is chosen for"
        code = self.sampler.choose(found)
        self.sampler.note(code)
        self.drawn.append(code)
        count = len(self.drawn)
        if count == self.params.talker.max_new_tokens or code in self.params.talker.eos_token_id:
            return None
        if count == self.room:
            raise cache_full("the speech", self.heard.positions.shape[1], count, "talker_max_new_tokens")
        return code


class SpeechStage:
    """`begin`, `hear` and `tell` say what is to be spoken, `place` and `follow` do what a plan asks for.

    ends float32 `[3, D]`: the thinker's embeddings of tts_bos, tts_eos and tts_pad; pool: keys and values of the talker; agree: see
    `ranks.Alone.codes`; rows: of a launch, at most.
    """

    elsewhere: Set[int] = frozenset()
    """Ids of rows whose speech no plan counts."""

    def __init__(
        self,
        talker: Any,
        code2wav: Any,
        ends: np.ndarray,
        pool: KVPool,
        compile_after: int | None = COMPILE_AFTER,
        agree: Callable = lambda draw, count: draw(),
        rows: int = LAUNCH_ROWS,
    ) -> None:
        self.agree = agree
        self.talker, self.code2wav, self.pool, self.compile_after = talker, code2wav, pool, compile_after
        self.bos, self.eos, self.silence = ends
        self.step = PoolStep(talker.model, talker.codec_head, pool, compile_after)
        self.chooser = Chooser(talker.codec_head, rows)
        self.frame_steps: dict[tuple, FrameStep] = {}
        self.mixed = mixed_by(prepared_frame(talker))
        self.voices: dict[int, Voice] = {}
        self._silent: dict[int, Tensor] = {}

    def warm(self, rows: int) -> None:
        """Makes the graphs for so many rows, where weights are packed."""
        self.step.warm(rows)
        self.chooser.warm([rows])
        if self.mixed(None):
            self._frame_step(rows, None).warm(rows)

    @staticmethod
    def job(speech: Speech) -> Speech | None:
        """What the engine's scheduler has to plan of a speech."""
        return speech

    def begin(self, id: int, params: SpeechParams, row: int, room: int | None = None) -> None:
        """An answer that will be spoken; its seeds are named. row, room: see `Voice`."""
        self.voices[id] = Voice(params, row, self.code2wav, room)

    def hear(self, id: int, heard: Heard) -> None:
        """What was asked, before the first `tell`."""
        self.voices[id].heard = heard

    def tell(self, id: int, words: np.ndarray, ended: bool) -> None:
        """More of the assistant turn: the thinker's embeddings `[n, D]`; ended: all of it."""
        self.voices[id].words += list(words)
        self.voices[id].ended = ended

    def cancel(self, id: int) -> None:
        """Forgets an answer."""
        self.voices.pop(id, None)

    def place(self, plan: Plan) -> None:
        """Whose blocks are whose from now on."""
        for (id,) in plan.gone:
            self.cancel(id)
        for (id,) in plan.dropped:
            if id in self.voices:
                self.voices[id].table, self.voices[id].read = [], 0
        for id, decoder, block in plan.blocks:
            if decoder == TALKER and id in self.voices:
                self.voices[id].table.append(block)

    def follow(self, plan: Plan, failed: Container[int] = ()) -> Said:
        """The speech of a tick whose blocks are placed, that of rows that have failed in it left out."""
        said, voices = Said(), self.voices
        for id, decoder, start, stop in plan.read:
            if decoder == TALKER and id in voices:
                said.guard(id, self.read, voices[id], start, stop)
        ids = [id for (id,) in plan.frames if id in voices and id not in failed and id not in said.failed]
        most = self.step.most or max(len(ids), 1)
        for start in range(0, len(ids), most):
            self._together(ids[start : start + most], said)
        for id, frames in plan.sound:
            found = said.guard(id, self.sound, voices[id], frames) if id in voices else None
            if found is not None:
                said.sounds.append((id, *found))
        said.ended |= said.failed.keys()
        return said

    def _together(self, ids, said):
        try:
            self.frames(ids, said)
        except Exception as error:  # of a launch for all of them
            said.failed.update(dict.fromkeys(ids, error))

    def read(self, voice: Voice, start: int, stop: int) -> Tensor:
        """Reads a chunk of the talker's prompt -> hidden states `[1, S, D]`, with those of padding."""
        if voice.rows is None:
            words = [self._said(voice, index) for index in range(ROLE_ROWS + 1)]
            ends = self.bos, self.silence
            voice.rows = talker_rows(self.talker, voice.heard, words, ends, voice.params.speaker_id)
        count, size = stop - start, chunk_size(stop - start)
        index = np.minimum(np.arange(start, start + size), stop - 1).astype(np.int32)
        x = ops.gather_rows(voice.rows, Tensor(index)).reshape(1, size, -1)
        rope = self.talker.model.rope(np.ascontiguousarray(voice.heard.positions[:, None, index]))
        voice.read = stop
        return self.pool.read_chunk(self.talker.model, x, rope, start, count, voice.table)

    def frames(self, ids: Rows[int], said: Said) -> None:
        """Every row's talker reads what comes next, and behind all that is known it draws a frame."""
        if not ids:
            return
        voices, size = [self.voices[id] for id in ids], self.step.size(len(ids))
        x, positions = self._inputs(voices, size), np.zeros((3, size, 1), np.float32)
        for index, voice in enumerate(voices):
            positions[:, index] = voice.position
        where = places(self.pool, [voice.table for voice in voices], [voice.read for voice in voices], size)
        logits, hidden = self.step(x, self.talker.model.rope(positions), *where)
        for index, voice in enumerate(voices):
            if voice.behind == len(voice.inputs):
                voice.inputs.append(Place(x, index))
        last = [index for index, voice in enumerate(voices) if voice.behind == len(voice.codes)]  # behind all that is known
        codes = self.agree(lambda: self._codes(ids, voices, last, logits, said), len(last))
        drawn = dict(zip(last, codes))
        for voice in voices:
            voice.read += 1
        said.ended |= {ids[index] for index, code in drawn.items() if code is None}
        self._predict(voices, {index: code for index, code in drawn.items() if code is not None}, hidden)

    def _codes(self, ids, voices, last, logits, said):
        """Code 0 of those that draw one. Whatever happens it returns: other ranks wait for it."""
        try:
            found = self.chooser([voice.sampler if index in last else None for index, voice in enumerate(voices)], logits)
        except Exception as error:
            said.failed.update((ids[index], error) for index in last)
            return [None] * len(last)
        return [said.guard(ids[index], voices[index].draws, found[index]) for index in last]

    def _inputs(self, voices, size):
        """What each row's talker reads next, `[size, 1, D]`."""
        fresh = [voice for voice in voices if 0 < voice.behind == len(voice.inputs)]
        made = {}
        if fresh:
            wide = bucket(fresh)
            sums = gathered([voice.total for voice in fresh], wide) + self._words(fresh, wide)
            made = {id(voice): Place(sums, index) for index, voice in enumerate(fresh)}
        return gathered([made.get(id(voice)) or self._known(voice) for voice in voices], size)

    @staticmethod
    def _known(voice):
        """The input that was read before, or the last row of the prompt."""
        if voice.behind < len(voice.inputs):
            return voice.inputs[voice.behind]
        return Place(voice.rows[-1:].reshape(1, 1, -1), 0)

    def _said(self, voice, index):
        """The embedding of a place of the assistant turn, as it is said: the words, an end, then silence."""
        if index < len(voice.words):
            return voice.words[index]
        assert voice.ended, "a frame is due whose word is not written yet"
        return self.eos if index == len(voice.words) else self.silence

    def _words(self, voices, size):
        """The talker's rows `[size, 1, D]` of the words that are said with the next frames; those behind the text are kept."""
        words = [self._said(voice, ROLE_ROWS + voice.behind) for voice in voices]
        silent = all(word is self.silence for word in words)
        if silent and size in self._silent:
            return self._silent[size]
        rows = np.stack(words + [self.silence] * (size - len(words)))[:, None]
        rows = self.talker.text_projection(Tensor(rows).astype(self.talker.dtype))
        if silent:
            self._silent[size] = rows
        return rows

    def _predict(self, voices, codes, hidden):
        """The other codes of the frames whose code 0 is `{index: code}`, in a launch for each kind of sampling."""
        kinds = {}
        for index in codes:
            sampling = voices[index].sampling
            kinds.setdefault(None if self.mixed(sampling) else sampling, []).append(index)
        for sampling, indices in kinds.items():
            size = self.step.size(len(indices))
            step = self._frame_step(size, sampling)
            first, noise = np.zeros((size, 1), np.int32), step.no_noise(size)
            for place, index in enumerate(indices):
                first[place] = codes[index]
                noise[place] = step.noise(voices[index].noise)
            state = gathered([Place(hidden, index) for index in indices], size)
            each = [voices[index].sampling for index in indices] + [None] * (size - len(indices))
            found, total = step(state, Tensor.from_numpy(first), Tensor.from_numpy(noise), each)
            found = host_array(found).astype(np.int64)
            for place, index in enumerate(indices):
                voices[index].codes.append(found[place])
                voices[index].total = Place(total, place)

    def _frame_step(self, size, sampling):
        """The launch for so many rows; callers may name any numbers for sampling, so few are kept: those used last."""
        step = self.frame_steps.pop((size, sampling), None)
        if step is None:
            step = FrameStep(self.talker, size, sampling, self.compile_after)
        self.frame_steps[size, sampling] = step
        if len(self.frame_steps) > FRAME_STEPS:
            del self.frame_steps[next(iter(self.frame_steps))]
        return step

    @staticmethod
    def sound(voice: Voice, frames: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Samples and codes of the next frames, or None where there are none."""
        codes = voice.codes[voice.frames : voice.frames + frames]
        if not codes:
            return None
        codes = np.stack(codes, axis=-1)
        pcm = host_array(voice.stream.step(codes[None]))[0, 0]
        if not np.isfinite(pcm).all():
            raise InputError(not_finite("vocoder's samples"))
        voice.frames += codes.shape[1]
        return pcm, codes


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
