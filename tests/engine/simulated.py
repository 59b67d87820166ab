"""An engine without a model: it follows plans as any rank would, on a clock that moves by what launches cost.

What a block holds is remembered, so every step can look whether it finds what its row has read.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ms_omni.engine.blocks import BLOCK, CHUNK, BlockPool
from ms_omni.engine.plan import FRAME_S, TALKER, THINKER, Facts, Job, Plan, Speech
from ms_omni.engine.scheduler import LAUNCH_ROWS, REST_S, Scheduler


def keys_of(ids, chunk=CHUNK) -> tuple[bytes, ...]:
    """Of the full chunks of a prompt, from its beginning on."""
    return tuple(repr((chunk, *ids[:stop])).encode() for stop in range(chunk, len(ids) + 1, chunk))


UNNAMED = 1024, 4096
"""Limits of text and speech that nobody has named."""


@dataclass(frozen=True)
class Costs:
    """Seconds per launch: `read(decoder, tokens)`, `decode(rows)`, `frame(rows)`, `sound(rows, frames)`, `encode(tokens)`."""

    read: Callable
    decode: Callable
    frame: Callable
    sound: Callable
    encode: Callable

    def prompt(self, caller: "Caller") -> float:
        """All that is read until one caller speaks."""
        chunks = [(THINKER, n) for n in _chunks(caller.prompt)] + [(TALKER, n) for n in _chunks(caller.talker - 1)]
        return sum(self.read(*chunk) for chunk in chunks)

    def factor(self, piece: int = 25) -> float:
        """Seconds of work for a second of sound of one caller alone, a token of text per frame."""
        return (self.decode(1) + self.frame(1)) / FRAME_S + self.sound(1, piece) / (piece * FRAME_S)


def _chunks(tokens):
    return [min(512, tokens - start) for start in range(0, tokens, 512)]


def ascend() -> Costs:
    """The published model on one card: the host starts kernels one after another, however many rows there are.

    The numbers are those for which the scheduler's rules were chosen, 5 us for each launch of a graph and 15 for one alone; what steps
    cost today is in `ms_omni/parallel/hardware.py`.
    """
    return Costs(
        read=lambda decoder, tokens: (0.0281, 0.0144)[decoder] + 4e-6 * tokens,
        decode=lambda rows: 0.0070,
        frame=lambda rows: 0.0175,
        sound=lambda rows, frames: 0.0105,
        encode=lambda tokens: 0.02 + 2e-5 * tokens,
    )


def processor() -> Costs:
    """A small model on a CPU: nearly everything is paid per row and per token."""
    return Costs(
        read=lambda decoder, tokens: (3e-4, 1e-4)[decoder] * tokens,
        decode=lambda rows: 0.001 + 0.0010 * rows,
        frame=lambda rows: 0.002 + 0.0030 * rows,
        sound=lambda rows, frames: rows * (0.002 + 0.0005 * frames),
        encode=lambda tokens: 3e-4 * tokens,
    )


@dataclass(frozen=True)
class Caller:
    """at: when it calls; ids: its prompt; text: tokens until the end one, that included; frames: until the end, None without
    speech; fails: tokens until it does; cancels: seconds after the call; has_callbacks: seconds that a function of its own takes to choose a
    token, None without one; named: whether it says how long its answer may be; chunk: tokens that are read at a time; prefill_only: no more
    than that is done (text: 0).
    """

    at: float
    ids: tuple
    text: int
    frames: int | None = None
    talker: int = 64
    media: tuple = ()
    fails: int | None = None
    cancels: float | None = None
    has_callbacks: float | None = None
    named: bool = True
    chunk: int = CHUNK
    prefill_only: bool = False

    @property
    def prompt(self):
        return len(self.ids)

    def job(self) -> Job:
        limits = (self.text, (self.frames or 0) + 1) if self.named else UNNAMED
        speech = None if self.frames is None else Speech(self.talker, limits[TALKER], named=self.named)
        has_callbacks = self.has_callbacks is not None
        keys, limit = keys_of(self.ids, self.chunk), max(limits[THINKER], 1)
        return Job(self.prompt, limit, keys, self.media, speech, 0, has_callbacks, self.named, self.chunk, self.prefill_only)


@dataclass
class Answer:
    """What a caller has got. ids: prompt and text; limits: of the tokens and frames that fit; heard: when pieces came, and their
    frames; tables, read: per decoder.
    """

    caller: Caller
    ids: list
    limits: tuple[int, int]
    frames: list = field(default_factory=list)
    heard: list = field(default_factory=list)
    first_token: float | None = None
    text_ended: bool = False
    encoded: int = 0
    tables: tuple = ()
    read: list = field(default_factory=list)
    preempted: int = 0

    @property
    def said(self):
        return sum(frames for _, frames in self.heard)

    @property
    def first_sound(self):
        return self.heard[0][0] if self.heard else None

    def underruns(self) -> float:
        """Seconds of silence within its speech."""
        silence, end = 0.0, None
        for time, frames in self.heard:
            if end is not None and time > end:
                silence, end = silence + time - end, time
            end = (time if end is None else end) + frames * FRAME_S
        return silence


def limits_of(job: Job, caller: Caller) -> tuple[int, int]:
    """Tokens and frames that a caller will get: the draw that ends a speech makes no frame."""
    return min(caller.text, job.limit), min(caller.frames or 0, job.speech.limit - 1 if job.speech else 0)


def ignore(simulation, plan):
    """What `Simulation.run` calls with every plan, where nobody wants to know."""


class Simulation:
    """Runs callers through a scheduler; pools: blocks of thinker and talker."""

    def __init__(self, callers, costs, pools=(4096, 4096), kind=Scheduler, **options):
        self.now, self.ticks, self.costs = 0.0, 0, costs
        self.pools = tuple(BlockPool(blocks) for blocks in pools)
        self.scheduler = kind(*self.pools, clock=lambda: self.now, **options)
        self.callers = sorted(callers, key=lambda caller: caller.at)
        self.cells: list[dict] = [{}, {}]
        self.answers: dict[int, Answer] = {}
        self.ended: dict[str, list] = {"finished": [], "cancelled": [], "failed": []}
        self.random = random.Random(0)
        self.asleep: dict[int, float] = {}  # until when

    def run(self, watch=ignore):
        """Until everybody is gone; watch is called with every plan before it is done."""
        coming = list(self.callers)
        while coming or self.scheduler.rows:
            while coming and coming[0].at <= self.now:
                caller = coming.pop(0)
                id = self.scheduler.add(caller.job())
                job = self.scheduler.rows[id].job
                self.answers[id] = Answer(caller, list(caller.ids), limits_of(job, caller))
            self._cancel()
            self._wake()
            plan = self.scheduler.plan()
            watch(self, plan)
            if plan:
                self.ticks += 1
                again = Plan.from_array([*plan.to_array(), 0, 0])
                assert again == plan
                facts = self.follow(again)
                self.ended["finished"] += self.scheduler.done(plan, facts)
                self.ended["failed"] += facts.failed
            else:
                assert not self.scheduler.rows or self.asleep, "nobody goes on"
                events = [*(caller.at for caller in coming[:1]), *self.asleep.values()]
                events += [since + REST_S + 1e-3 for since in self.scheduler.asleep.values()]
                self.now = min([event for event in events if event > self.now], default=self.now)
            for pool in self.pools:
                assert pool.free + pool.cached + pool.used == pool.capacity
        return self

    def _cancel(self):
        for id in list(self.scheduler.rows):
            caller = self.answers[id].caller
            if caller.cancels is not None and self.now >= caller.at + caller.cancels:
                self.scheduler.cancel(id)
                self.ended["cancelled"].append(id)

    def follow(self, plan) -> Facts:
        """Does what a plan says, and looks whether it can be done."""
        answers, costs = self.answers, self.costs
        text_ended, speech_ended, failed = set(), set(), set()
        for (id,) in plan.preempted:
            answers[id].preempted += 1
        for id, found in plan.scheduled:
            answers[id].tables, answers[id].read = ([], []), [found, 0]
            answers[id].encoded = sum(stop <= found for stop, _ in answers[id].caller.media)
        for id, decoder, block in plan.blocks:
            answers[id].tables[decoder].append(block)
        for id, call in plan.encode:
            assert call == answers[id].encoded
            answers[id].encoded += 1
            self.now += costs.encode(answers[id].caller.media[call][1])
        for id, decoder, start, stop in plan.read:
            answer = answers[id]
            chunk = answer.caller.chunk if decoder == THINKER else CHUNK
            assert start == answer.read[decoder] and start % chunk == 0 and 0 < stop - start <= chunk
            assert decoder == TALKER or answer.encoded == len(answer.caller.media) or answer.text_ended
            assert stop <= (answer.caller.prompt if decoder == THINKER else answer.caller.talker - 1)
            self.now += costs.read(decoder, stop - start)
            for position in range(start, stop):
                self._write(id, decoder, position)
            self._look(id, decoder, stop)
            if decoder == THINKER and answer.caller.prefill_only:
                text_ended |= {id} if stop == answer.caller.prompt else set()
            elif decoder == THINKER and stop == len(answer.ids):
                self._draw(id, text_ended, speech_ended, failed)
        for start in range(0, len(plan.decode), LAUNCH_ROWS):
            self.now += costs.decode(len(plan.decode[start : start + LAUNCH_ROWS]))
        for (id,) in plan.decode:
            self._write(id, THINKER, answers[id].read[THINKER])
            self._look(id, THINKER, answers[id].read[THINKER])
            if answers[id].read[THINKER] == len(answers[id].ids):
                self._draw(id, text_ended, speech_ended, failed)
        for start in range(0, len(plan.frames), LAUNCH_ROWS):
            self.now += costs.frame(len(plan.frames[start : start + LAUNCH_ROWS]))
        for (id,) in plan.frames:
            answer = answers[id]
            self._write(id, TALKER, answer.read[TALKER])
            self._look(id, TALKER, answer.read[TALKER])
            if answer.read[TALKER] == answer.caller.talker + len(answer.frames):
                assert answer.text_ended or len(answer.ids) - answer.caller.prompt > len(answer.frames), "no word"
                if len(answer.frames) == answer.limits[TALKER]:
                    speech_ended.add(id)
                else:
                    answer.frames.append(len(answer.frames))
        for start in range(0, len(plan.sound), LAUNCH_ROWS):
            self.now += costs.sound(len(plan.sound[start : start + LAUNCH_ROWS]), plan.sound[start][1])
        for id, frames in plan.sound:
            frames = min(frames, len(answers[id].frames) - answers[id].said)
            if frames:
                answers[id].heard.append((self.now, frames))
        return Facts(frozenset(text_ended), frozenset(speech_ended), frozenset(failed))

    def _wake(self):
        """Those whose functions have chosen."""
        for id in [id for id, until in self.asleep.items() if until <= self.now]:
            del self.asleep[id]
            if id in self.scheduler.rows:
                facts = set(), set(), set()
                self._choose(id, *facts)
                self.scheduler.wake(id)
                self.ended["finished"] += self.scheduler.done(Plan(), Facts(*map(frozenset, facts)))
                self.ended["failed"] += facts[2]

    def _draw(self, id, *facts):
        if self.answers[id].caller.has_callbacks is None:
            self._choose(id, *facts)
        else:
            self.scheduler.sleep(id)
            self.asleep[id] = self.now + self.answers[id].caller.has_callbacks

    def _choose(self, id, text_ended, speech_ended, failed):
        answer = self.answers[id]
        answer.ids.append((id, len(answer.ids) - answer.caller.prompt))
        answer.first_token = answer.first_token or self.now
        made = len(answer.ids) - answer.caller.prompt
        if made == answer.caller.fails:
            failed.add(id)
        elif made == answer.limits[THINKER]:
            answer.text_ended = True
            text_ended.add(id)
            if made == 1 and answer.caller.frames is not None:  # the end and nothing else
                speech_ended.add(id)

    def _content(self, id, decoder, position):
        """What a row's position is: the same for equal prompts, else nobody else's."""
        return self.answers[id].ids[position] if decoder == THINKER else (id, position)

    def _write(self, id, decoder, position):
        block = self.answers[id].tables[decoder][position // BLOCK]
        assert block > 0
        self.cells[decoder][block, position % BLOCK] = self._content(id, decoder, position)
        self.answers[id].read[decoder] = position + 1

    def _look(self, id, decoder, length):
        """All positions are too many to look at each time: one of each block, and the last."""
        table = self.answers[id].tables[decoder]
        places = [self.random.randrange(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
        for position in [*places, length - 1]:
            cell = self.cells[decoder].get((table[position // BLOCK], position % BLOCK))
            assert cell == self._content(id, decoder, position), "somebody else's keys and values"

    def check(self):
        """Every answer is whole and in order, and all blocks are back."""
        assert sorted(id for ids in self.ended.values() for id in ids) == sorted(self.answers)
        for id in self.ended["finished"]:
            answer, caller = self.answers[id], self.answers[id].caller
            tokens, frames = answer.limits
            frames = 0 if tokens == 1 else frames
            assert answer.ids == [*caller.ids, *((id, index) for index in range(tokens))]
            assert answer.frames == list(range(frames)) and answer.said == frames
        assert all(pool.used == 0 for pool in self.pools)
        return self


class RoundRobin(Scheduler):
    """Without deadlines: in every tick as much of prompts, the oldest first, a token and a frame for everybody, pieces when they are
    full.
    """

    def speaking(self, now):
        rows = [row for row in self.running if row.speaks and row.speech.steps]
        return [row for row in rows if row.has_text or (row.text.steps and not row.text.replays)]

    def readers(self):
        return [row for row in self.running if row.reading()]

    def piece(self, row, frames, now):
        wanted = row.job.speech.pieces[min(row.pieces, len(row.job.speech.pieces) - 1)]
        return min(frames, wanted) if row.speech.ended or frames >= wanted else 0
