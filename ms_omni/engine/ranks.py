"""One engine over several ranks: rank 0 decides, the others do the same.

    rank 0    add, cancel -> Scheduler -> [ news | plan ] -> launches -> tokens, codes -> events
                                               |                             |
    others                       (woken)  one message a tick  -> launches   (in the next message; code 0 of frames at once)

The news are what came of earlier ticks: tokens, rows that have ended, failed or were given up. Where nothing is asked, the others
wait to be woken, outside of any collective. There are two ways to ask, and the ranks find out which it is:

    every rank runs the same script    nothing travels; they compare fingerprints, once per request, and each has the answer
    only rank 0 is asked               the others are in `Engine.follow`, and a request travels once
"""

import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any, NoReturn

import numpy as np

from ..errors import InputError
from ..generation.request import DIGEST_BYTES, Request, digest, packed, unpacked
from ..generation.sampling import Likeliest, SamplingParams, fresh_seed
from ..locking import exclusive
from ..parallel import watch
from ..parallel.mesh import Interrupts
from .blocks import BLOCK
from .choice import Found
from .plan import THINKER, Facts, Job, Plan
from .sequence import Sequence

WORDS = 512
"""Of a message, in int32; what is longer takes a second one."""
GO, INTERRUPTED, CLOSED = range(3)
FOLLOWS = b"\xff" * DIGEST_BYTES
"""In the place of a fingerprint: whoever says so does what it is told."""


class Alone:
    """One process: it has nobody to tell.

    leads: whether choices are made here; together: a context around whatever needs all ranks at the same time; held: around what
    all of them do once they have begun with a request, each by itself.
    """

    leads, followed = True, False

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.together: Callable[[], AbstractContextManager] = nullcontext
        self.held: Callable[[], AbstractContextManager] = nullcontext

    def await_begin(self) -> None:
        """Before a request is begun: comes to where rank 0 is."""

    def begin(self, request: Request) -> Request:
        """Before a request is looked at: the one that all ranks were asked, with seeds that they share."""
        return request

    def number(self, job: Job) -> int:
        """The id of a new row, whose limits fit."""
        return self.engine.scheduler.add(job)

    def asked(self, request: Request, ids: list[int]) -> None:
        """Once a request has rows."""

    def plan(self) -> Plan:
        """The next tick."""
        return self.engine.scheduler.plan()

    def tell(self) -> None:
        """Tells the words that are to be spoken in this tick."""

    def done(self, plan: Plan, facts: Facts) -> list[int]:
        """What came of a plan is noted -> rows that have ended with it."""
        return self.engine.scheduler.done(plan, facts)

    def heard(self, id: int, count: int) -> list[Any]:
        """What a talker hears of the first `count` tokens of a row, which were found, per chunk."""
        return list(self.engine.scheduler.rows[id].payloads)

    def finish(self) -> None:
        """After a tick, and after rows were given up."""

    def least(self, number: int) -> int:
        """The smallest one of all ranks."""
        return number

    def same(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers."""
        return numbers

    def leave(self, id: int) -> None:
        """A row is given up here."""
        self.engine.forget(id)

    def close(self) -> None:
        """Nobody is asked again."""

    def follow(self) -> None:
        """Does what rank 0 plans, until it closes its engine."""
        raise InputError("engine.follow() is for the ranks behind rank 0 of a model that several processes hold together")

    def codes(self, draw: Callable[[], list[int | None]], count: int) -> list[int | None]:
        """So many codes 0, None where a speech ends; `draw()` draws them."""
        return draw()

    def scores(self, rows: Rows[Sequence], found: Rows[Found]) -> list[tuple[Found, bool]]:
        """What each row chooses from, by what was found of it on every rank, and whether penalties are in there."""
        return [(line, False) for line in found]


def ranks_of(engine: Any, *cells: Any) -> Alone:
    """Of an engine whose model is held by the process group of the first of these cells that has one; None: for `same` alone."""
    group = next((cell.process_group for cell in cells if getattr(cell, "process_group", None) is not None), None)
    return Alone(engine) if group is None or group.comm.size == 1 else Ranks(engine, group)


class Ranks(Alone):
    """One of several ranks; group: who they are.

    told: the live rows that were asked here, and how many tokens rank 0 has told of each; resting: whether the others wait for a
    wake-up; followed: whether they are in `follow`; begun: rank 0 is about to compare a request; letters: requests that are to travel.
    """

    def __init__(self, engine: Any, group: Any) -> None:
        super().__init__(engine)
        self.comm, self.wakeup, self.vocabulary = group.comm, group.wakeup, group.vocabulary
        self.leads = self.comm.rank == 0
        self.together, self.held = self._together, self._held
        self.interrupts = Interrupts()
        self.told: dict[int, int] = {}
        self.letters: list[bytes] = []
        self.resting, self.followed, self.begun, self.closed, self.working = True, False, False, False, False
        self._count, self._thread, self._due = 0, threading.get_ident(), False
        self._heard: dict[int, tuple[Rows[int], Any]] = {}  # of chunks, by each of their blocks

    # -- what is asked -----------------------------------------------------------------------------------------------

    def begin(self, request: Request) -> Request:
        seeds = [fresh_seed() if _draws_freely(params) else 0 for params in _sampled(request)]
        if not self.followed:
            seeds = self._agree(request, seeds + [0] * (3 - len(seeds)))
        if self.followed and request.options.past_key_values is not None:
            raise InputError(
                "past_key_values lie on rank 0 alone where the other ranks call engine.follow(); leave them out (what was read "
                "before is found again without them), or run the same script on every rank"
            )
        return _seeded(request, seeds)

    def _agree(self, request: Request, seeds: Rows[int]) -> list[int]:
        """Meets the other ranks and compares what they were asked -> rank 0's seeds."""
        with self._together():
            if self.leads:
                self.wakeup.send() if self.resting else self._say(begun=True)
            return self._compare(digest(request, self.engine.settings), seeds)

    def await_begin(self) -> None:
        """There may be ticks of earlier requests on the way."""
        if self.followed:
            return
        self._check_thread()
        while not (self.leads or self.begun or self.resting):
            self.engine.tick()
        if not (self.leads or self.begun):
            exclusive.released(self.wakeup.wait)
        self.begun = False

    def _compare(self, said: bytes, seeds: Rows[int]) -> list[int]:
        """Rank 0's seeds, once all ranks have said the same, or that they follow. Raises `InputError`."""
        state = bytes([INTERRUPTED if self.interrupts.pending else GO]) * 8
        mine = said + state + np.array(seeds, np.int64).tobytes()
        everyone = [row.tobytes() for row in self.comm.gather_array(np.frombuffer(mine, np.uint8))]
        if everyone[0][DIGEST_BYTES] == INTERRUPTED:
            self._abandon()
        others = [row[:DIGEST_BYTES] for row in everyone]
        self.followed = all(other == FOLLOWS for other in others[1:])
        different = [rank for rank, other in enumerate(others) if other != others[0]]
        if different and not self.followed:
            raise InputError(
                f"ranks {different} were asked something else than rank 0; run the same script with the same inputs and "
                "arguments on every rank, or call engine.follow() on all but rank 0"
            )
        return np.frombuffer(everyone[0][DIGEST_BYTES + 8 :], np.int64).tolist()

    def _check_thread(self) -> None:
        if any(map(self._goes_on, self.engine.rows)) and self._thread != threading.get_ident():
            raise InputError(
                "a model that several processes hold together is asked by one thread at a time, so that all processes take "
                "the requests in the same order; another thread's request is under way. Or call engine.follow() on all ranks "
                "but rank 0, which then may be asked by any thread"
            )
        self._thread = threading.get_ident()

    def number(self, job: Job) -> int:
        if self.leads:
            return super().number(job)
        self._count += 1
        return self._count - 1

    def asked(self, request: Request, ids: list[int]) -> None:
        if self.followed and self.leads:
            self.letters.append(packed(request))
        else:
            self.resting = False
        self.told |= dict.fromkeys(ids, 0)

    # -- a tick ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _together(self) -> Iterator[None]:
        """One thread at a time, and an interruption waits."""
        with exclusive, self._held(), watch.busy():
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        """An interruption waits until all ranks can hear of it: for the next message, where there is to be one."""
        with self.interrupts.held():
            outer, self.working = self.working, True
            try:
                yield
            finally:
                self.working = outer
        if self.resting and not self.told and not outer and self.interrupts.pending:
            self.interrupts.act()

    def plan(self) -> Plan:
        if not self.leads:
            return self._hear()
        plan = super().plan()
        self._say(plan)
        return plan

    def tell(self) -> None:
        if self._due:
            self._due = False
            self._say() if self.leads else self._hear()

    def codes(self, draw: Callable[[], list[int | None]], count: int) -> list[int | None]:
        drawn = draw() if self.leads else [0] * count
        told = self.same([-1 if code is None else code for code in drawn])
        return [None if code < 0 else code for code in told]

    def same(self, numbers: list[int]) -> list[int]:
        return self.comm.broadcast_array(np.array(numbers, np.int64)).tolist() if numbers else []

    def least(self, number: int) -> int:
        self.wakeup.send() if self.leads else exclusive.released(self.wakeup.wait)
        with self._together():
            return int(self.comm.gather_array(np.array([number], np.int64)).min())

    def done(self, plan: Plan, facts: Facts) -> list[int]:
        if self.leads:
            return super().done(plan, facts)
        for id, decoder, start, stop in plan.read:
            if decoder == THINKER and stop - start == self.engine.rows[id].prompt.chunk:
                self._note(self.engine.rows[id].table[start // BLOCK : stop // BLOCK], facts.payloads[id])
        return []

    def _note(self, blocks: Rows[int], heard: Any) -> None:
        """Keeps what a talker hears of a chunk beside its blocks, until one of them holds another chunk: no more than fit there."""
        for block in blocks:
            for stale in self._heard.get(block, ((), None))[0]:
                del self._heard[stale]
        self._heard.update(dict.fromkeys(blocks, (tuple(blocks), heard)))

    def heard(self, id: int, count: int) -> list[Any]:
        if self.leads:
            return super().heard(id, count)
        table, chunk = self.engine.rows[id].table, self.engine.rows[id].prompt.chunk
        return [self._heard[table[start // BLOCK]][1] for start in range(0, count, chunk)]

    def scores(self, rows: Rows[Sequence], found: Rows[Found]) -> list[tuple[Found, bool]]:
        """One collective for all rows that choose alike."""
        self._due |= any(row.speech is not None for row in rows)
        if self.vocabulary is None:
            return super().scores(rows, found)
        kinds: dict[Any, list[int]] = {}
        for index, (row, line) in enumerate(zip(rows, found)):
            kinds.setdefault(_kind_of(row, line), []).append(index)
        scores: list[Any] = [None] * len(rows)
        for kind, places in kinds.items():
            lines, samplers = [found[place] for place in places], [rows[place].text.sampler for place in places]
            for place, line in zip(places, self.vocabulary.together(kind, lines, _Samplers(samplers))):
                scores[place] = line, kind is not None
        return scores

    def finish(self) -> None:
        """Who has its answer may not ask for another tick, so the end of a row is told at once."""
        if self.leads and not all(map(self._goes_on, self.told)):
            with self._together():
                self._say()

    def leave(self, id: int) -> None:
        while not self.leads and id in self.told and not self.begun:  # rank 0 needs this one's part until it is done
            self.engine.tick()
        if self.leads or id not in self.told:
            self.engine.forget(id)

    def _goes_on(self, id: int) -> bool:
        return id in self.engine.rows and not self.engine.rows[id].ended

    # -- messages ----------------------------------------------------------------------------------------------------

    def _say(self, plan: Plan = Plan(), state: int = GO, begun: bool = False) -> None:
        """Rank 0 tells the news, and what is to be done now."""
        state = INTERRUPTED if self.interrupts.pending else state
        if self.resting:
            self.wakeup.send()
        news, letters = self._news(), self.letters
        self.resting, self.letters = not self.told, []
        sizes = [0 if pool is None else pool.capacity for pool in self.engine.scheduler.pools]
        head = [state, 0, self.resting, begun, *sizes, len(letters), *map(len, letters)]
        numbers = np.array([*head, *news, *plan.to_array()], np.int32)
        numbers[1] = len(numbers)
        first = np.zeros(WORDS, np.int32)
        first[: len(numbers)] = numbers[:WORDS]
        self.comm.broadcast_array(first)
        if len(numbers) > WORDS:
            self.comm.broadcast_array(numbers[WORDS:])
        if letters:
            self.comm.broadcast_array(np.frombuffer(b"".join(letters), np.uint8))
        if state == INTERRUPTED:
            self._abandon()

    def _hear(self) -> Plan:
        """Takes in what rank 0 says."""
        numbers = self.comm.broadcast_array(np.zeros(WORDS, np.int32))
        if numbers[1] > WORDS:
            numbers = np.concatenate([numbers, self.comm.broadcast_array(np.zeros(numbers[1] - WORDS, np.int32))])
        rest = iter(numbers.tolist())
        state, _, resting, begun, *sizes, count = islice(rest, 7)
        for pool, size in zip(self.engine.scheduler.pools, sizes):
            if pool is not None:
                pool.capacity = size
        sizes = list(islice(rest, count))
        letters = self.comm.broadcast_array(np.zeros(sum(sizes), np.uint8)).tobytes() if sizes else b""
        self.resting, self.begun, self.closed = bool(resting), bool(begun), state == CLOSED
        if state == INTERRUPTED:
            self._abandon()
        for stop, size in zip(np.cumsum(sizes), sizes):
            self.engine.take(unpacked(letters[stop - size : stop]))
        self._apply(rest)
        return Plan.from_array(rest)

    def _news(self) -> list[int]:
        """Rows that were given up, then of each row with news: id, how many tokens, whether more follow, whether it has ended,
        the length of its error; the tokens, the error.
        """
        rows, found = self.engine.rows, []
        gone = [id for id in self.told if id not in rows]
        for id in self.told.keys() - gone:
            row, tokens = rows[id], rows[id].text.tokens[self.told[id] :]
            error = row.error or (row.late_error if row.ended else None)
            error = b"" if error is None else str(error).encode()
            if tokens or row.ended or error:
                found.append([id, len(tokens), row.text.going, row.ended, len(error), *tokens, *error])
            self.told[id] += len(tokens)
        self.told = {id: count for id, count in self.told.items() if id in rows and not rows[id].ended}
        return [len(gone), *gone, len(found), *(number for numbers in found for number in numbers)]

    def _apply(self, rest: Iterator[int]) -> None:
        for id in list(islice(rest, next(rest))):
            self.told.pop(id, None)
            self.engine.rows[id].ended = True
            self.engine.forget(id)
        for _ in range(next(rest)):
            id, count, going, ended, length = islice(rest, 5)
            row = self.engine.rows[id]
            for left in reversed(range(count)):
                self.engine.wrote(row, id, row.text.add(next(rest), going=bool(left or going)))
            error = bytes(islice(rest, length))
            row.error = InputError(error.decode()) if error else row.error
            if ended:
                self.told.pop(id, None)
                self.engine.finish(row)
                if id not in self.engine.added:
                    del self.engine.rows[id]

    def _abandon(self) -> NoReturn:
        """All ranks give all up at the same place: there was an interruption."""
        self.engine.give_up()
        self.told, self.letters, self.resting, self.followed = {}, [], True, False
        self.interrupts.act()

    # -- ranks that only follow --------------------------------------------------------------------------------------

    def follow(self) -> None:
        if self.leads:
            raise InputError("engine.follow() is for the ranks behind rank 0, which is asked")
        self.await_begin()
        with self._together():
            self._compare(FOLLOWS, [0, 0, 0])
        self.followed, self.closed = True, False
        while not self.closed:
            if self.resting:
                self.wakeup.wait()
            self.engine.tick()
            for row in self.engine.rows.values():  # nobody listens
                for kept in (row.events, row.watched, row.text.logits):
                    kept.clear()
        self.followed = False

    def close(self) -> None:
        if self.leads and self.followed:
            with self._together():
                self._say(state=CLOSED)
            self.followed = False


class _Samplers:
    """Those of rows with the same `_kind_of`, as `SplitVocabulary` takes them."""

    def __init__(self, rows) -> None:
        self.rows, self.params = rows, rows[0].params

    def adjust(self, logits, first=0):
        return np.stack([row.adjusted(line, first) for row, line in zip(self.rows, logits)])


def _kind_of(row: Sequence, found: Found) -> Any:
    """What a rank sends of this depends on it; None: everything."""
    params = row.text.params
    if isinstance(found, Likeliest):
        return Likeliest
    return None if row.text.options.whole_logits else params.do_sample and (params.temperature, params.top_k, params.top_h)


def _sampled(request: Request) -> list[SamplingParams]:
    speech = request.speech
    return [request.text, *([] if speech is None else [speech.talker, speech.predictor])]


def _draws_freely(params: SamplingParams) -> bool:
    return params.do_sample and params.seed is None


def _seeded(request: Request, seeds: Rows[int]) -> Request:
    """With a seed wherever one is drawn with and none was given."""
    text, *speech = (
        replace(params, seed=seed) if _draws_freely(params) else params for params, seed in zip(_sampled(request), seeds)
    )
    if request.speech is not None:
        return replace(request, text=text, speech=replace(request.speech, talker=speech[0], predictor=speech[1]))
    return replace(request, text=text)
