"""Choosing on the device, for the rows whose parameters it supports: a few numbers are copied to the host then, and not the logits.

    logits [B, V] -> penalised, where a row has penalties -> the likeliest ids -> one of them, drawn by each row's own noise

Greedy decoding takes the likeliest. Where ranks share the vocabulary each finds the likeliest ids of its part, and rank 0 chooses
among those of all (`SplitVocabulary.likeliest`). Every other row is chosen for on the host, see `RowSampler.choose`.

Penalties of a row are two numbers per id, `min(l * factor, l / factor) + bias`:

    repetition_penalty                                               factor, of what was read or written
    presence_penalty, frequency_penalty                              bias, of what was written
    suppress_tokens, begin_suppress_tokens, min_new_tokens,          bias -inf
    bad_words_ids of one id
"""

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Rows
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from ..generation.sampling import Chosen, Likeliest, RowSampler, SamplingParams
from ..locking import interruptible
from ..modeling import ops
from ..modeling.layer import Cell
from ..modeling.ops.fused import CANDIDATES, LEAST_NOISE, Kind, draw_terms, preceding_sums
from ..modeling.packing import host_array
from ..modeling.steps import LAUNCH_ROWS

Scores = np.ndarray | Chosen | Likeliest
KINDS = (False, False), (False, True), (True, False), (True, True)
"""Of launches: whether some rows have penalties, and whether some are sampled."""


class Chooser:
    """For the rows of a head; rows: how many are launched at most. Nothing is compiled but by `warm`; before, operators run one by one."""

    def __init__(self, head: Any, rows: int = LAUNCH_ROWS) -> None:
        vocabulary = getattr(head, "vocabulary", None)
        self.dtype, self.width = head.dtype, head.size
        self.first, self.draws = vocabulary.first if vocabulary else 0, vocabulary is None
        self.choices: dict[tuple, _Choice] = {}
        self.graphs: dict[tuple, Any] = {}
        self.count = min(CANDIDATES, self.width)
        self.enabled = ops.chooses()
        if self.enabled:
            self.planes = PenaltyBuffers(self.width, self.first, 1 + rows)
            self.before = Tensor(preceding_sums(self.count))

    def warm(self, sizes: Iterable[int], kinds: Iterable[tuple[bool, bool]] = KINDS) -> None:
        """Compiles what launches of so many rows may need."""
        for size in sizes if self.enabled else ():
            logits = Tensor(np.zeros((size, self.width), np.float32)).astype(self.dtype)
            for kind in kinds:
                self.graphs[(size, *kind)] = ms.jit(_Choice(self, *kind), jit_level="O0", fullgraph=True)
                self._launch(size, kind, logits, *self._inputs([None] * size, *kind, np.zeros(size, np.int32)))

    def _launch(self, size, kind, *inputs):
        """-> values and ids `[B, K]`, and indices of the drawn ones `[B, 1]`, without meaning where no row is sampled; all on the host."""
        if (size, *kind) not in self.graphs:
            choice = self.choices[kind] = self.choices.get(kind) or _Choice(self, *kind)
            return tuple(map(host_array, choice.construct(*inputs)))
        with interruptible():
            return tuple(map(host_array, self.graphs[(size, *kind)](*inputs)))

    def __call__(
        self, samplers: Rows[RowSampler | None], logits: Tensor, observed: Collection[int] = ()
    ) -> list[Scores | None]:
        """What each row chooses by; logits `[B, 1, V]`, the first are of the rows with these samplers, and of one that is None nothing
        is wanted. observed: numbers of rows whose logits are wanted on the host.
        """
        if not self.enabled:
            return list(host_array(logits)[: len(samplers), 0].astype(np.float32))
        found: list[Scores | None] = [None] * len(samplers)
        logits, rows = logits.reshape(-1, self.width), dict(enumerate(samplers))
        on_device = [row for row, sampler in rows.items() if sampler and row not in observed and expressible(sampler)]
        on_host = [row for row, sampler in rows.items() if sampler and row not in on_device]
        if on_host:
            lines = host_array(ops.gather_rows(logits, Tensor(np.array(on_host, np.int32)))).astype(np.float32)
            for row, line in zip(on_host, lines):
                found[row] = line
        if on_device:
            self._choose([sampler if row in on_device else None for row, sampler in enumerate(samplers)], logits, found)
        return found

    def _choose(self, samplers, logits, found):
        size = logits.shape[0]
        slots = np.zeros(size, np.int32)
        slots[: len(samplers)] = self.planes.slots(samplers)
        drawn = any(sampler is not None and sampler.params.do_sample for sampler in samplers)
        penalised = bool(slots.any())
        inputs = self._inputs([*samplers, *[None] * (size - len(samplers))], penalised, drawn, slots)
        values, ids, picks = self._launch(size, (penalised, drawn), logits, *inputs)
        values = values.astype(np.float32)
        for row, sampler in enumerate(samplers):
            if sampler is None:
                continue
            if not self.draws:
                found[row] = Likeliest(values[row], ids[row] + self.first)
            elif sampler.params.do_sample:
                found[row] = Chosen(int(ids[row, picks[row, 0]]), float(values[row].max()))
            else:
                first = np.where(values[row] == values[row, 0], ids[row], ids[row, 0]).min()  # of equals, as argmax
                found[row] = Chosen(int(first), float(values[row].max()))

    def _inputs(self, samplers, penalised, drawn, slots):
        """What a launch takes beside its logits."""
        found = (Tensor(slots), Tensor(slots + self.planes.count)) if penalised else ()
        if not (drawn and self.draws):
            return found
        noise = np.ones((len(samplers), CANDIDATES), np.float32)
        kinds: list[Kind] = [None] * len(samplers)
        for row, sampler in enumerate(samplers):
            if sampler is not None and sampler.params.do_sample:
                params = sampler.params
                kinds[row] = params.temperature, params.top_k, params.top_p
                noise[row] = np.maximum(sampler.stream.standard_exponential(CANDIDATES, np.float32), LEAST_NOISE)
        return *found, *_terms(tuple(kinds), self.count), Tensor(np.ascontiguousarray(noise[:, : self.count]))


@lru_cache(maxsize=32)
def _terms(kinds: tuple[Kind, ...], count: int) -> tuple[Tensor, ...]:
    """On the device, for the kinds stay the same from token to token."""
    return tuple(map(Tensor, draw_terms(kinds, count)))


class _Choice(Cell):
    """penalised: whether some rows have penalties; drawn: whether some are sampled."""

    def __init__(self, chooser, penalised, drawn) -> None:
        super().__init__(auto_prefix=False)
        self.penalised, self.draws, self.width = penalised, drawn and chooser.draws, chooser.width
        self.candidates = chooser.count if drawn else 1
        self.planes, self.before = chooser.planes.buffer, chooser.before

    def construct(self, logits, *inputs):
        if self.penalised:
            logits = ops.penalised(logits, self.planes.reshape(-1, self.width), inputs[0], inputs[1])
        values, ids = ops.likeliest(logits, self.candidates)
        return values, ids, ops.race(values, self.before, *inputs[-4:]) if self.draws else ids


class PenaltyBuffers:
    """The penalties of some rows on the device: a factor and a bias for each id from `first` on, `width` of them.

    buffer float32 `[2 * count * width, 1]`: `count` rows of factors, then the biases; row 0 of both is neutral, and the others belong
    to samplers: those that choose now, and earlier ones until their rows are needed. slot_of: the row of each sampler.
    """

    def __init__(self, width: int, first: int, count: int) -> None:
        self.width, self.first, self.count = width, first, count
        numbers = np.repeat(np.array(NEUTRAL, np.float32), count * width)[:, None]
        self.buffer = Parameter(Tensor(numbers), name=f"planes{id(self)}")
        self.slot_of: WeakKeyDictionary[RowSampler, int] = WeakKeyDictionary()
        self.terms: dict[int, PenaltyTerms] = {}

    def slots(self, samplers: Rows[RowSampler | None]) -> list[int]:
        """The row of each sampler, 0 where it has no penalties, brought up to date."""
        changes: dict[tuple[int, int], tuple[float, float]] = {}
        found = [self._slot(sampler, samplers, changes) if sampler and sampler.adjustments else 0 for sampler in samplers]
        own = {key: term for key, term in changes.items() if 0 <= key[1] - self.first < self.width}
        if own:
            index = np.array([slot * self.width + id - self.first for slot, id in own], np.int32)
            index = np.concatenate([index, index + self.count * self.width])
            numbers = np.array(list(own.values()), np.float32).T.reshape(-1, 1)
            ops.write_rows(self.buffer, Tensor(index), Tensor(numbers))
        return found

    def _slot(self, sampler, samplers, changes):
        slot = self.slot_of.get(sampler)
        if slot is None:
            free = set(range(1, self.count)) - set(self.slot_of.values())
            slot = min(free) if free else self.slot_of.pop(next(other for other in self.slot_of if other not in samplers))
            if slot in self.terms:
                changes.update(((slot, id), NEUTRAL) for id in self.terms[slot].sent)
            self.slot_of[sampler], self.terms[slot] = slot, PenaltyTerms()
        changes.update(((slot, id), term) for id, term in self.terms[slot].update(sampler).items())
        return slot


MIN_TEMPERATURE = 1e-6
"""Below, quotients of logits leave float32."""
NEUTRAL = 1.0, 0.0


def expressible(sampler: RowSampler) -> bool:
    """Whether a device can choose the row's next token."""
    params = sampler.params
    forced = params.forced_eos_token_id and sampler.new == params.max_new_tokens - 1
    return not forced and _penalties_fit(params) and (not params.do_sample or _draw_fits(params))


def _penalties_fit(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty >= 1
        and all(len(ids) == 1 for ids in params.bad_words_ids)
        and not (params.sequence_bias or params.no_repeat_ngram_size or params.exponential_decay_length_penalty)
        and not params.remove_invalid_values
    )


def _draw_fits(params: SamplingParams) -> bool:
    return (
        0 < params.top_k <= CANDIDATES
        and params.temperature >= MIN_TEMPERATURE
        and params.top_h is None
        and params.typical_p == 1
        and not (params.min_p or params.epsilon_cutoff or params.eta_cutoff)
    )


class PenaltyTerms:
    """The numbers of one row. sent: `{id: (factor, bias)}` of those that are not neutral, as of the last `update`."""

    def __init__(self) -> None:
        self.sent: dict[int, tuple[float, float]] = {}
        self.penalised: set[int] = set()
        self.new: int | None = None

    def update(self, sampler: RowSampler) -> dict[int, tuple[float, float]]:
        """What has changed since the last call; all calls are for the same row."""
        params = sampler.params
        ends, begin = set(params.eos_token_id), set(params.begin_suppress_tokens)
        banned = {ids[0] for ids in params.bad_words_ids} - ends | set(params.suppress_tokens)
        passing = begin | (ends if params.min_new_tokens else set())
        if self.new is None:
            new_ids, banned_ids = set(sampler.counts) | set(sampler.seen.tolist()), banned
        else:
            new_ids, banned_ids = set(sampler.history[len(sampler.history) - sampler.new + self.new :]), set()
        self.new = sampler.new
        if sampler.new < params.min_new_tokens:
            banned |= ends
        if sampler.new == 0:
            banned |= begin
        if params.repetition_penalty != 1:
            self.penalised |= new_ids
        penalty, found = float(np.float32(params.repetition_penalty)), {}
        for id in new_ids | banned_ids | passing:
            count = sampler.counts.get(id, 0)
            bias = -float(np.float32(params.presence_penalty + params.frequency_penalty * count)) if count else 0.0
            term = penalty if id in self.penalised else 1.0, -np.inf if id in banned else bias
            if term != self.sent.get(id, NEUTRAL):
                found[id] = term
        self.sent |= found
        return found
