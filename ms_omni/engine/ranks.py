"""One engine over several ranks: rank 0 decides, the others do the same.

    rank 0    add, cancel -> Scheduler -> [updates|plan] -> launches -> tokens, codes -> events
                                               |                             |
    others                       (woken)  one message a tick  -> launches   (in the next message; code 0 of frames at once)

Updates are what came of earlier ticks: tokens, rows that have ended, failed or were cancelled. Where there is no request, the others
wait to be woken, outside of any collective. There are two ways to ask, and the ranks find out which it is:

    every rank runs the same script    nothing travels; they compare fingerprints, once per request, and each has the answer
    only rank 0 is asked               the others are in `Engine.follow`, and a request travels once
"""

import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any, NoReturn

import numpy as np

from ..errors import InputError
from ..generation.request import DIGEST_BYTES, Request, digest, packed, unpacked
from ..generation.sampling import Likeliest, fresh_seed
from ..locking import exclusive
from ..parallel import watch
from ..parallel.mesh import Interrupts
from .blocks import BLOCK
from .choice import Scores
from .plan import THINKER, Facts, Job, Plan
from .sequence import Sequence

MESSAGE_INTS = 512
"""Of a message, in int32; what is longer takes a second one."""
GO, INTERRUPTED, CLOSED = range(3)
FOLLOWS = b"\xff" * DIGEST_BYTES
"""Instead of a fingerprint: this rank is in `Engine.follow`."""


class SingleRank:
    """One process, which shares its model with no other.

    is_leader: whether choices are made here; synchronized: a context around whatever needs all ranks at the same time;
    defer_interrupts: around what all of them do once they have begun with a request, each by itself.
    """

    is_leader, has_followers = True, False

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.synchronized: Callable[[], AbstractContextManager] = nullcontext
        self.defer_interrupts: Callable[[], AbstractContextManager] = nullcontext

    def await_begin(self) -> None:
        """Before a request is begun: comes to where rank 0 is."""

    def begin(self, request: Request) -> Request:
        """Before a request gets rows: the same, which all ranks have, with seeds that they share."""
        return request

    def number(self, job: Job) -> int:
        """The id of a new row, whose limits fit."""
        return self.engine.scheduler.add(job)

    def submitted(self, request: Request, ids: list[int]) -> None:
        """Once a request has rows."""

    def plan(self) -> Plan:
        """The next tick."""
        return self.engine.scheduler.plan()

    def sync_text(self) -> None:
        """Tells the words that are to be spoken in this tick."""

    def done(self, plan: Plan, facts: Facts) -> list[int]:
        """What came of a plan is noted -> rows that have ended with it."""
        return self.engine.scheduler.done(plan, facts)

    def talker_states(self, id: int, count: int) -> list[Any]:
        """The states for the talker of the first `count` tokens of a row, which were found, per chunk."""
        return list(self.engine.scheduler.rows[id].payloads)

    def finish(self) -> None:
        """After a tick, and after rows were given up."""

    def minimum(self, number: int) -> int:
        """The smallest one of all ranks."""
        return number

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers."""
        return numbers

    def release(self, id: int) -> None:
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

    def scores(self, rows: Rows[Sequence], found: Rows[Scores]) -> list[tuple[Scores, bool]]:
        """What each row chooses from, by what was found of it on every rank, and whether penalties are in there."""
        return [(line, False) for line in found]


def ranks_of(engine: Any, *cells: Any) -> SingleRank:
    """Of an engine whose model is held by the process group of the first of these cells that has one; None: for `broadcast` alone."""
    group = next((cell.process_group for cell in cells if getattr(cell, "process_group", None) is not None), None)
    return SingleRank(engine) if group is None or group.comm.size == 1 else Ranks(engine, group)


class Ranks(SingleRank):
    """One of several ranks; group: who they are.

    sent: the live rows of this rank's requests, and how many tokens of each rank 0 has sent; idle: whether the others wait for a
    wake-up; has_followers: whether they are in `follow`; request_pending: rank 0 is about to compare a request; requests: packed
    ones that are still to be sent.
    """

    def __init__(self, engine: Any, group: Any) -> None:
        super().__init__(engine)
        self.comm, self.wakeup, self.vocabulary = group.comm, group.wakeup, group.vocabulary
        self.is_leader = self.comm.rank == 0
        self.synchronized, self.defer_interrupts = self._synchronized, self._defer_interrupts
        self.interrupts = Interrupts()
        self.sent: dict[int, int] = {}
        self.requests: list[bytes] = []
        self.idle, self.has_followers, self.request_pending, self.closed, self.working = True, False, False, False, False
        self._count, self._thread, self._text_due = 0, threading.get_ident(), False
        self._talker_states: dict[int, tuple[Rows[int], Any]] = {}  # of chunks, by each of their blocks

    # -- what is asked -----------------------------------------------------------------------------------------------

    def begin(self, request: Request) -> Request:
        seeds = [fresh_seed() if params.needs_seed else 0 for params in request.sampling]
        if not self.has_followers:
            seeds = self._compare_requests(request, seeds + [0] * (3 - len(seeds)))
        if self.has_followers and request.options.past_key_values is not None:
            raise InputError(
                "past_key_values lie on rank 0 alone where the other ranks call engine.follow(); leave them out (what was read "
                "before is found again without them), or run the same script on every rank"
            )
        return request.with_seeds(seeds)

    def _compare_requests(self, request: Request, seeds: Rows[int]) -> list[int]:
        """Meets the other ranks and compares what they were asked -> rank 0's seeds."""
        with self._synchronized():
            if self.is_leader:
                self.wakeup.send() if self.idle else self._broadcast_plan(request_pending=True)
            return self._compare(digest(request, self.engine.settings), seeds)

    def await_begin(self) -> None:
        """There may be ticks of earlier requests on the way."""
        if self.has_followers:
            return
        self._check_thread()
        while not (self.is_leader or self.request_pending or self.idle):
            self.engine.tick()
        if not (self.is_leader or self.request_pending):
            exclusive.released(self.wakeup.wait)
        self.request_pending = False

    def _compare(self, fingerprint: bytes, seeds: Rows[int]) -> list[int]:
        """Rank 0's seeds, once all ranks have the same fingerprint, or are in `follow`. Raises `InputError`."""
        state = bytes([INTERRUPTED if self.interrupts.pending else GO]) * 8
        mine = fingerprint + state + np.array(seeds, np.int64).tobytes()
        everyone = [row.tobytes() for row in self.comm.gather_array(np.frombuffer(mine, np.uint8))]
        if everyone[0][DIGEST_BYTES] == INTERRUPTED:
            self._abort()
        others = [row[:DIGEST_BYTES] for row in everyone]
        self.has_followers = all(other == FOLLOWS for other in others[1:])
        different = [rank for rank, other in enumerate(others) if other != others[0]]
        if different and not self.has_followers:
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
        if self.is_leader:
            return super().number(job)
        self._count += 1
        return self._count - 1

    def submitted(self, request: Request, ids: list[int]) -> None:
        if self.has_followers and self.is_leader:
            self.requests.append(packed(request))
        else:
            self.idle = False
        self.sent |= dict.fromkeys(ids, 0)

    # -- a tick ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _synchronized(self) -> Iterator[None]:
        """One thread at a time, and an interruption waits."""
        with exclusive, self._defer_interrupts(), watch.busy():
            yield

    @contextmanager
    def _defer_interrupts(self) -> Iterator[None]:
        """An interruption waits until all ranks can learn of it: for the next message, where there is to be one."""
        with self.interrupts.held():
            outer, self.working = self.working, True
            try:
                yield
            finally:
                self.working = outer
        if self.idle and not self.sent and not outer and self.interrupts.pending:
            self.interrupts.act()

    def plan(self) -> Plan:
        if not self.is_leader:
            return self._receive_plan()
        plan = super().plan()
        self._broadcast_plan(plan)
        return plan

    def sync_text(self) -> None:
        if self._text_due:
            self._text_due = False
            self._broadcast_plan() if self.is_leader else self._receive_plan()

    def codes(self, draw: Callable[[], list[int | None]], count: int) -> list[int | None]:
        drawn = draw() if self.is_leader else [0] * count
        sent = self.broadcast([-1 if code is None else code for code in drawn])
        return [None if code < 0 else code for code in sent]

    def broadcast(self, numbers: list[int]) -> list[int]:
        return self.comm.broadcast_array(np.array(numbers, np.int64)).tolist() if numbers else []

    def minimum(self, number: int) -> int:
        self.wakeup.send() if self.is_leader else exclusive.released(self.wakeup.wait)
        with self._synchronized():
            return int(self.comm.gather_array(np.array([number], np.int64)).min())

    def done(self, plan: Plan, facts: Facts) -> list[int]:
        if self.is_leader:
            return super().done(plan, facts)
        for id, decoder, start, stop in plan.read:
            if decoder == THINKER and stop - start == self.engine.rows[id].prompt.chunk:
                self._store_talker_states(self.engine.rows[id].table[start // BLOCK : stop // BLOCK], facts.payloads[id])
        return []

    def _store_talker_states(self, blocks: Rows[int], talker_states: Any) -> None:
        """Stores the states for the talker of a chunk by its blocks, until one of them holds another chunk."""
        for block in blocks:
            for stale in self._talker_states.get(block, ((), None))[0]:
                del self._talker_states[stale]
        self._talker_states.update(dict.fromkeys(blocks, (tuple(blocks), talker_states)))

    def talker_states(self, id: int, count: int) -> list[Any]:
        if self.is_leader:
            return super().talker_states(id, count)
        table, chunk = self.engine.rows[id].table, self.engine.rows[id].prompt.chunk
        return [self._talker_states[table[start // BLOCK]][1] for start in range(0, count, chunk)]

    def scores(self, rows: Rows[Sequence], found: Rows[Scores]) -> list[tuple[Scores, bool]]:
        """One collective for all rows that choose alike."""
        self._text_due |= any(row.speech is not None for row in rows)
        if self.vocabulary is None:
            return super().scores(rows, found)
        kinds: dict[Any, list[int]] = {}
        for index, (row, line) in enumerate(zip(rows, found)):
            kinds.setdefault(_kind_of(row, line), []).append(index)
        scores: list[Any] = [None] * len(rows)
        for kind, indices in kinds.items():
            lines, samplers = [found[index] for index in indices], [rows[index].text.sampler for index in indices]
            for index, line in zip(indices, self.vocabulary.together(kind, lines, _Samplers(samplers))):
                scores[index] = line, kind is not None
        return scores

    def finish(self) -> None:
        """Sends the end of a row at once, since its caller may not run another tick."""
        if self.is_leader and not all(map(self._goes_on, self.sent)):
            with self._synchronized():
                self._broadcast_plan()

    def release(self, id: int) -> None:
        while (
            not self.is_leader and id in self.sent and not self.request_pending
        ):  # rank 0 needs this one's part until it is done
            self.engine.tick()
        if self.is_leader or id not in self.sent:
            self.engine.forget(id)

    def _goes_on(self, id: int) -> bool:
        return id in self.engine.rows and not self.engine.rows[id].ended

    # -- messages ----------------------------------------------------------------------------------------------------

    def _broadcast_plan(self, plan: Plan = Plan(), state: int = GO, request_pending: bool = False) -> None:
        """Rank 0 sends the updates, and the plan of this tick."""
        state = INTERRUPTED if self.interrupts.pending else state
        if self.idle:
            self.wakeup.send()
        updates, requests = self._updates(), self.requests
        self.idle, self.requests = not self.sent, []
        sizes = [0 if pool is None else pool.capacity for pool in self.engine.scheduler.pools]
        head = [state, 0, self.idle, request_pending, *sizes, len(requests), *map(len, requests)]
        numbers = np.array([*head, *updates, *plan.to_array()], np.int32)
        numbers[1] = len(numbers)
        first = np.zeros(MESSAGE_INTS, np.int32)
        first[: len(numbers)] = numbers[:MESSAGE_INTS]
        self.comm.broadcast_array(first)
        if len(numbers) > MESSAGE_INTS:
            self.comm.broadcast_array(numbers[MESSAGE_INTS:])
        if requests:
            self.comm.broadcast_array(np.frombuffer(b"".join(requests), np.uint8))
        if state == INTERRUPTED:
            self._abort()

    def _receive_plan(self) -> Plan:
        """Receives both, and applies the updates."""
        numbers = self.comm.broadcast_array(np.zeros(MESSAGE_INTS, np.int32))
        if numbers[1] > MESSAGE_INTS:
            numbers = np.concatenate([numbers, self.comm.broadcast_array(np.zeros(numbers[1] - MESSAGE_INTS, np.int32))])
        rest = iter(numbers.tolist())
        state, _, idle, request_pending, *sizes, count = islice(rest, 7)
        for pool, size in zip(self.engine.scheduler.pools, sizes):
            if pool is not None:
                pool.capacity = size
        sizes = list(islice(rest, count))
        requests = self.comm.broadcast_array(np.zeros(sum(sizes), np.uint8)).tobytes() if sizes else b""
        self.idle, self.request_pending, self.closed = bool(idle), bool(request_pending), state == CLOSED
        if state == INTERRUPTED:
            self._abort()
        for stop, size in zip(np.cumsum(sizes), sizes):
            self.engine.enqueue(unpacked(requests[stop - size : stop]))
        self._apply_updates(rest)
        return Plan.from_array(rest)

    def _updates(self) -> list[int]:
        """Rows that were cancelled, then of each row with something new: id, how many tokens, whether more follow, whether it has ended,
        the length of its error; the tokens, the error.
        """
        rows, found = self.engine.rows, []
        cancelled = [id for id in self.sent if id not in rows]
        for id in self.sent.keys() - cancelled:
            row, tokens = rows[id], rows[id].text.tokens[self.sent[id] :]
            error = row.error or (row.late_error if row.ended else None)
            error = b"" if error is None else str(error).encode()
            if tokens or row.ended or error:
                found.append([id, len(tokens), row.text.active, row.ended, len(error), *tokens, *error])
            self.sent[id] += len(tokens)
        self.sent = {id: count for id, count in self.sent.items() if id in rows and not rows[id].ended}
        return [len(cancelled), *cancelled, len(found), *(number for numbers in found for number in numbers)]

    def _apply_updates(self, rest: Iterator[int]) -> None:
        for id in list(islice(rest, next(rest))):
            self.sent.pop(id, None)
            self.engine.rows[id].ended = True
            self.engine.forget(id)
        for _ in range(next(rest)):
            id, count, active, ended, length = islice(rest, 5)
            row = self.engine.rows[id]
            for left in reversed(range(count)):
                self.engine.emit_token(row, id, row.text.add(next(rest), active=bool(left or active)))
            error = bytes(islice(rest, length))
            row.error = InputError(error.decode()) if error else row.error
            if ended:
                self.sent.pop(id, None)
                self.engine.finish(row)
                if id not in self.engine.added:
                    del self.engine.rows[id]

    def _abort(self) -> NoReturn:
        """Ends all answers on all ranks, at the same message: there was an interruption."""
        self.engine.abort_all()
        self.sent, self.requests, self.idle, self.has_followers = {}, [], True, False
        self.interrupts.act()

    # -- ranks that only follow --------------------------------------------------------------------------------------

    def follow(self) -> None:
        if self.is_leader:
            raise InputError("engine.follow() is for the ranks behind rank 0, which is asked")
        self.await_begin()
        with self._synchronized():
            self._compare(FOLLOWS, [0, 0, 0])
        self.has_followers, self.closed = True, False
        while not self.closed:
            if self.idle:
                self.wakeup.wait()
            self.engine.tick()
            for row in self.engine.rows.values():  # their events are read on rank 0
                for stored in (row.events, row.hidden_states, row.text.logits):
                    stored.clear()
        self.has_followers = False

    def close(self) -> None:
        if self.is_leader and self.has_followers:
            with self._synchronized():
                self._broadcast_plan(state=CLOSED)
            self.has_followers = False


class _Samplers:
    """Those of rows with the same `_kind_of`, as `SplitVocabulary` takes them."""

    def __init__(self, rows) -> None:
        self.rows, self.params = rows, rows[0].params

    def adjust(self, logits, first=0):
        return np.stack([row.adjusted(line, first) for row, line in zip(self.rows, logits)])


def _kind_of(row: Sequence, found: Scores) -> Any:
    """What a rank sends of this depends on it; None: everything."""
    params = row.text.params
    if isinstance(found, Likeliest):
        return Likeliest
    return None if row.text.options.whole_logits else params.do_sample and (params.temperature, params.top_k, params.top_h)
