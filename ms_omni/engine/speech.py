"""Speech: what the talker reads, frames of codes for many rows in a launch, and pieces of sound.

position of the talker      0 .. S-2              S-1              S                    S+1
what it reads               user turn, opening    bos + word 0     frame 0 + word 1     frame 1 + word 2
what it draws then                                frame 0          frame 1              frame 2

What it knows of an answer comes in plain arrays, and it knows nothing of the thinker. So it works in the engine's process or in one
of its own (`speech_process.py`).
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
from ..generation.talker_prompt import ROLE_ROWS, TalkerContext, talker_rows
from ..modeling import ops
from ..modeling.packing import host_array
from ..modeling.steps import COMPILE_AFTER, LAUNCH_ROWS, FrameStep, bucket, mixed_by, prepared_frame
from .blocks import cache_full
from .choice import Chooser, Scores
from .kv_pool import KVPool, PoolStep
from .plan import TALKER, Plan, Speech
from .runner import chunk_size, step_tables

FRAME_STEPS = 32
"""Launches of the predictor that are cached: one per number of rows and kind of sampling."""


class TensorRow(NamedTuple):
    """A row of a tensor `[R, 1, D]`."""

    tensor: Tensor
    row: int


@dataclass
class SpeechOutput:
    """What came of a tick, by ids of rows. sounds: `(id, samples float32 [n], codes int64 [Q, frames])`; ended: those whose speech has
    ended, failed: the errors of those among them that failed.
    """

    sounds: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    failed: dict[int, Exception] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sounds or self.ended)

    def guard(self, id: int, function: Callable, *arguments: Any) -> Any:
        """The result of a function, or None and the row has failed."""
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
        if part.needs_seed:
            found[name] = replace(part, seed=fresh_seed())
    return replace(params, **found)


class SpeechSequence:
    """The speech of one answer. context: what was asked, see `TalkerContext`; embeds: the thinker's embeddings `[D]` of the
    assistant turn so far, ended: whether they are all.

    table: its blocks, read: positions in them; rows `[S, D]`: the talker's prompt; inputs: what was read behind it; codes int64
    `[Q]` per frame; total: the summed embeddings of the last one; frames, of which so many have become sound. row: see `Text`;
    max_codes: codes 0 that may be drawn, for the whole cache holds no more, or None.
    """

    def __init__(self, params: SpeechParams, row: int, code2wav: Any, max_codes: int | None = None) -> None:
        self.params, self.max_codes = params, max_codes
        code, rest = params.talker, params.predictor
        self.sampler = RowSampler(
            code, row_stream(code.seed, row) if code.do_sample else None, part="talker or code predictor"
        )
        self.noise = row_stream(rest.seed if rest.do_sample else 0, row, purpose=1)
        self.sampling = (rest.temperature, rest.top_k, rest.top_p) if rest.do_sample else None
        self.context: TalkerContext
        self.embeds: list[np.ndarray] = []
        self.ended = False
        self.table: list[int] = []
        self.read = 0
        self.rows: Tensor | None = None
        self.inputs: list[TensorRow] = []
        self.codes: list[np.ndarray] = []
        self.total: TensorRow | None = None
        self.stream = code2wav and code2wav.stream()
        self.drawn: list[int] = []  # every code 0, the one that ended the speech among them
        self.frames = 0

    @property
    def steps_read(self) -> int:
        """Positions that were read step by step, behind those of the prompt that are read in chunks."""
        return self.read - (self.context.positions.shape[1] - 1)

    @property
    def position(self) -> np.ndarray:
        """Of what is read next, float32 `[3, 1]`."""
        context = self.context
        return (
            context.positions[:, -1:]
            if self.steps_read == 0
            else context.following + np.full((3, 1), self.steps_read - 1, np.float32)
        )

    def next_code(self, scores: Scores | None) -> int | None:
        """Code 0 of the next frame, or None: the speech ends here. The last draw makes no frame.

        Raises `InputError` for logits that are not finite, and where there is no room for more.
        """
        assert scores is not None, "a row that draws is one that is chosen for"
        code = self.sampler.choose(scores)
        self.sampler.note(code)
        self.drawn.append(code)
        count = len(self.drawn)
        if count == self.params.talker.max_new_tokens or code in self.params.talker.eos_token_id:
            return None
        if count == self.max_codes:
            raise cache_full("the speech", self.context.positions.shape[1], count, "talker_max_new_tokens")
        return code


class SpeechStage:
    """`begin`, `set_prompt` and `append_text` take what is to be spoken, `apply_blocks` and `execute` do what a plan asks for.

    tts_embeds float32 `[3, D]`: the thinker's embeddings of tts_bos, tts_eos and tts_pad; pool: keys and values of the talker;
    share_codes: see `ranks.SingleRank.codes`; rows: of a launch, at most.
    """

    remote: Set[int] = frozenset()
    """Ids of rows that another process speaks, which no plan counts."""

    def __init__(
        self,
        talker: Any,
        code2wav: Any,
        tts_embeds: np.ndarray,
        pool: KVPool,
        compile_after: int | None = COMPILE_AFTER,
        share_codes: Callable = lambda draw, count: draw(),
        rows: int = LAUNCH_ROWS,
    ) -> None:
        self.share_codes = share_codes
        self.talker, self.code2wav, self.pool, self.compile_after = talker, code2wav, pool, compile_after
        self.bos, self.eos, self.pad = tts_embeds
        self.step = PoolStep(talker.model, talker.codec_head, pool, compile_after)
        self.chooser = Chooser(talker.codec_head, rows)
        self.frame_steps: dict[tuple, FrameStep] = {}
        self.mixed = mixed_by(prepared_frame(talker))
        self.sequences: dict[int, SpeechSequence] = {}
        self._pad_rows: dict[int, Tensor] = {}

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

    def begin(self, id: int, params: SpeechParams, row: int, max_codes: int | None = None) -> None:
        """An answer that will be spoken; its seeds are named. row, max_codes: see `SpeechSequence`."""
        self.sequences[id] = SpeechSequence(params, row, self.code2wav, max_codes)

    def set_prompt(self, id: int, context: TalkerContext) -> None:
        """What was asked, before the first `append_text`."""
        self.sequences[id].context = context

    def append_text(self, id: int, embeds: np.ndarray, ended: bool) -> None:
        """More of the assistant turn: the thinker's embeddings `[n, D]`; ended: all of it."""
        self.sequences[id].embeds += list(embeds)
        self.sequences[id].ended = ended

    def cancel(self, id: int) -> None:
        """Forgets an answer."""
        self.sequences.pop(id, None)

    def apply_blocks(self, plan: Plan) -> None:
        """Updates the block tables."""
        for (id,) in plan.removed:
            self.cancel(id)
        for (id,) in plan.preempted:
            if id in self.sequences:
                self.sequences[id].table, self.sequences[id].read = [], 0
        for id, decoder, block in plan.blocks:
            if decoder == TALKER and id in self.sequences:
                self.sequences[id].table.append(block)

    def execute(self, plan: Plan, failed: Container[int] = ()) -> SpeechOutput:
        """The speech of a tick whose blocks are placed, that of rows that have failed in it left out."""
        output, sequences = SpeechOutput(), self.sequences
        for id, decoder, start, stop in plan.read:
            if decoder == TALKER and id in sequences:
                output.guard(id, self.read, sequences[id], start, stop)
        ids = [id for (id,) in plan.frames if id in sequences and id not in failed and id not in output.failed]
        most = self.step.most or max(len(ids), 1)
        for start in range(0, len(ids), most):
            self._try_frames(ids[start : start + most], output)
        for id, frames in plan.sound:
            found = output.guard(id, self.sound, sequences[id], frames) if id in sequences else None
            if found is not None:
                output.sounds.append((id, *found))
        output.ended |= output.failed.keys()
        return output

    def _try_frames(self, ids, output):
        try:
            self.frames(ids, output)
        except Exception as error:  # of a launch for all of them
            output.failed.update(dict.fromkeys(ids, error))

    def read(self, sequence: SpeechSequence, start: int, stop: int) -> Tensor:
        """Reads a chunk of the talker's prompt -> hidden states `[1, S, D]`, with those of padding."""
        if sequence.rows is None:
            embeds = [self._text_embed(sequence, index) for index in range(ROLE_ROWS + 1)]
            tts_embeds = self.bos, self.pad
            sequence.rows = talker_rows(self.talker, sequence.context, embeds, tts_embeds, sequence.params.speaker_id)
        count, size = stop - start, chunk_size(stop - start)
        index = np.minimum(np.arange(start, start + size), stop - 1).astype(np.int32)
        x = ops.gather_rows(sequence.rows, Tensor(index)).reshape(1, size, -1)
        rope = self.talker.model.rope(np.ascontiguousarray(sequence.context.positions[:, None, index]))
        sequence.read = stop
        return self.pool.read_chunk(self.talker.model, x, rope, start, count, sequence.table)

    def frames(self, ids: Rows[int], output: SpeechOutput) -> None:
        """Every row's talker reads what comes next, and behind all that is known it draws a frame."""
        if not ids:
            return
        sequences, size = [self.sequences[id] for id in ids], self.step.size(len(ids))
        x, positions = self._inputs(sequences, size), np.zeros((3, size, 1), np.float32)
        for index, sequence in enumerate(sequences):
            positions[:, index] = sequence.position
        tables, read = [sequence.table for sequence in sequences], [sequence.read for sequence in sequences]
        where = step_tables(self.pool, tables, read, size)
        logits, hidden = self.step(x, self.talker.model.rope(positions), *where)
        for index, sequence in enumerate(sequences):
            if sequence.steps_read == len(sequence.inputs):
                sequence.inputs.append(TensorRow(x, index))
        drawing = [index for index, sequence in enumerate(sequences) if sequence.steps_read == len(sequence.codes)]
        codes = self.share_codes(lambda: self._codes(ids, sequences, drawing, logits, output), len(drawing))
        drawn = dict(zip(drawing, codes))
        for sequence in sequences:
            sequence.read += 1
        output.ended |= {ids[index] for index, code in drawn.items() if code is None}
        self._predict(sequences, {index: code for index, code in drawn.items() if code is not None}, hidden)

    def _codes(self, ids, sequences, drawing, logits, output):
        """Code 0 of those that draw one. Whatever happens it returns: other ranks wait for it."""
        try:
            samplers = [sequence.sampler if index in drawing else None for index, sequence in enumerate(sequences)]
            scores = self.chooser(samplers, logits)
        except Exception as error:
            output.failed.update((ids[index], error) for index in drawing)
            return [None] * len(drawing)
        return [output.guard(ids[index], sequences[index].next_code, scores[index]) for index in drawing]

    def _inputs(self, sequences, size):
        """What each row's talker reads next, `[size, 1, D]`."""
        fresh = [sequence for sequence in sequences if 0 < sequence.steps_read == len(sequence.inputs)]
        fresh_inputs = {}
        if fresh:
            wide = bucket(fresh)
            sums = gathered([sequence.total for sequence in fresh], wide) + self._text_rows(fresh, wide)
            fresh_inputs = {id(sequence): TensorRow(sums, index) for index, sequence in enumerate(fresh)}
        return gathered([fresh_inputs.get(id(sequence)) or self._known_input(sequence) for sequence in sequences], size)

    @staticmethod
    def _known_input(sequence):
        """The input that was read before, or the last row of the prompt."""
        if sequence.steps_read < len(sequence.inputs):
            return sequence.inputs[sequence.steps_read]
        return TensorRow(sequence.rows[-1:].reshape(1, 1, -1), 0)

    def _text_embed(self, sequence, index):
        """The thinker's embedding at an index of the assistant turn, as it is spoken: the text, tts_eos, then tts_pad."""
        if index < len(sequence.embeds):
            return sequence.embeds[index]
        assert sequence.ended, "a frame is due whose text is not written yet"
        return self.eos if index == len(sequence.embeds) else self.pad

    def _text_rows(self, sequences, size):
        """The talker's rows `[size, 1, D]` of the text of the next frames; those behind the end of the text are cached."""
        embeds = [self._text_embed(sequence, ROLE_ROWS + sequence.steps_read) for sequence in sequences]
        silent = all(embed is self.pad for embed in embeds)
        if silent and size in self._pad_rows:
            return self._pad_rows[size]
        rows = np.stack(embeds + [self.pad] * (size - len(embeds)))[:, None]
        rows = self.talker.text_projection(Tensor(rows).astype(self.talker.dtype))
        if silent:
            self._pad_rows[size] = rows
        return rows

    def _predict(self, sequences, codes, hidden):
        """The other codes of the frames whose code 0 is `{index: code}`, in a launch for each kind of sampling."""
        kinds = {}
        for index in codes:
            sampling = sequences[index].sampling
            kinds.setdefault(None if self.mixed(sampling) else sampling, []).append(index)
        for sampling, indices in kinds.items():
            size = self.step.size(len(indices))
            step = self._frame_step(size, sampling)
            first, noise = np.zeros((size, 1), np.int32), step.no_noise(size)
            for slot, index in enumerate(indices):
                first[slot] = codes[index]
                noise[slot] = step.noise(sequences[index].noise)
            state = gathered([TensorRow(hidden, index) for index in indices], size)
            each = [sequences[index].sampling for index in indices] + [None] * (size - len(indices))
            found, total = step(state, Tensor.from_numpy(first), Tensor.from_numpy(noise), each)
            found = host_array(found).astype(np.int64)
            for slot, index in enumerate(indices):
                sequences[index].codes.append(found[slot])
                sequences[index].total = TensorRow(total, slot)

    def _frame_step(self, size, sampling):
        """The launch for so many rows; callers may name any numbers for sampling, so few are cached: those used last."""
        step = self.frame_steps.pop((size, sampling), None)
        if step is None:
            step = FrameStep(self.talker, size, sampling, self.compile_after)
        self.frame_steps[size, sampling] = step
        if len(self.frame_steps) > FRAME_STEPS:
            del self.frame_steps[next(iter(self.frame_steps))]
        return step

    @staticmethod
    def sound(sequence: SpeechSequence, frames: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Samples and codes of the next frames, or None where there are none."""
        codes = sequence.codes[sequence.frames : sequence.frames + frames]
        if not codes:
            return None
        codes = np.stack(codes, axis=-1)
        pcm = host_array(sequence.stream.step(codes[None]))[0, 0]
        if not np.isfinite(pcm).all():
            raise InputError(not_finite("vocoder's samples"))
        sequence.frames += codes.shape[1]
        return pcm, codes


def gathered(rows: Rows[TensorRow], size: int) -> Tensor:
    """Rows of any tensors `[R, 1, D]` as one `[size, 1, D]`; what pads them repeats the first."""
    tensors = list({id(row.tensor): row.tensor for row in rows}.values())
    first = tensors[0]
    if len(tensors) == 1 and first.shape[0] == size and [row.row for row in rows] == list(range(len(rows))):
        return first
    starts, start = {}, 0
    for tensor in tensors:
        starts[id(tensor)] = start
        start += tensor.shape[0]
    index = [starts[id(row.tensor)] + row.row for row in rows]
    index = np.array(index + [index[0]] * (size - len(rows)), np.int32)
    whole = first if len(tensors) == 1 else ops.concat(tensors, 0)
    return ops.gather_rows(whole.reshape(start, -1), Tensor(index)).reshape(size, 1, -1)
