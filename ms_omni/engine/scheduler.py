"""Who does what in the next tick: numbers in, a `Plan` out. No model, no device, and the clock is given.

    add --> waiting --------> running:  media --> prompt --> text ---------------> ended
               ^                 |                  |          v token by token
               +--- preempted ---+                  +--> speech: prompt --> frames --> sound

A tick is short, however many callers there are: some tokens of prompts, a token for all who need one now, one launch of frames, one
of the vocoder. Who comes first follows from one number, a row's deadline: the time at which all sound that was sent will
have been played. Before the first sound it is the time from which on it is late.

Nobody starves: who only writes gets a token in every tick; who speaks gets a frame in every tick while no more speak than fit into a
launch, else after those who are further behind; the oldest prompt is read in at least one of 2 * (SKIPS + 1) ticks; rows are scheduled
in the order of their calls, and only newer rows lose their blocks. Who reads ahead of a question waits for all who have asked one.

A row is asleep while a function of its caller's is waited for. It keeps its blocks, and who needs one of them waits; but behind
REST_S it gives up its blocks and its place among the rows at work to whoever needs them, newer ones too, for that function may
itself wait for their answers.
"""

import math
import time
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .blocks import BLOCK, CHUNK, BlockPool, blocks_for
from .plan import FRAME_S, TALKER, THINKER, UNDERRUN_S, Facts, Job, Plan, Row, Track

PATIENCE_S = 1.0
"""From a call with a prompt of up to one chunk to the time at which its first sound is late; longer prompts may take longer."""
LAUNCH_ROWS = 16
"""Rows of a launch at most."""
CHUNK_COST = 128
"""Tokens that the smallest chunk counts as: a launch has its price."""
TALKER_SHARE = 4
"""Tokens of the talker that count as one of the thinker: at least so much smaller it is in the published sizes."""
SKIPS = 3
"""Ticks in a row in which nothing may be read, because a row would run out of sound."""
REST_S = 1.0
"""How long a row holds what others need while its caller does not go on."""


class Scheduler:
    """`add` and `cancel` at any time; `plan`, execute it, report what came of it to `done`, and again.

    thinker, talker: the pools of blocks; max_rows: rows at work; budget: tokens of prompts per tick; margin: tokens beyond what it
    reads that must be free when a row is scheduled, since it is unknown how much it will write; clock: seconds.
    """

    def __init__(
        self,
        thinker: BlockPool,
        talker: BlockPool | None = None,
        max_rows: int = 16,
        budget: int = CHUNK,
        margin: int = 2 * BLOCK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pools = (thinker, talker)
        self.max_rows, self.budget, self.margin, self.clock = max_rows, budget, margin, clock
        self.rows: dict[int, Row] = {}
        self.running: list[Row] = []
        self.waiting: list[Row] = []  # both in the order of their calls
        self.asleep: dict[int, float] = {}  # since when nothing is planned for a row, until the token that it drew is known
        self._removed_ids: list[int] = []
        self._next_id = self._turn = self._skipped = 0
        self.prompt_tokens = self.cached_tokens = self.preemptions = 0

    def pool(self, decoder: int) -> BlockPool:
        """The blocks of a decoder that there is."""
        pool = self.pools[decoder]
        assert pool is not None
        return pool

    def add(self, job: Job) -> int:
        """The id of a new row. Raises `InputError` as `fitted` does."""
        job = self.fitted(job)
        text = Track(job.prompt, job.limit, job.prompt, job.chunk)
        speech = job.speech and Track(job.speech.prompt, job.speech.limit, job.speech.prompt - 1)
        row = Row(self._next_id, job, self.clock() + PATIENCE_S * max(job.prompt / CHUNK, 1), text, speech)
        self._next_id += 1
        self.rows[row.id] = row
        self.waiting.append(row)
        return row.id

    def fitted(self, job: Job) -> Job:
        """With limits up to which it fits alone, so that it can always be finished. Raises `InputError`, see `BlockPool.fitting`."""
        limit, speech = job.limit, job.speech
        if job.prompt:
            limit = self.pool(THINKER).fitting(job.prompt, limit, job.named, "the answer")
        if speech is not None:
            frames = self.pool(TALKER).fitting(speech.prompt, speech.limit, speech.named, "its speech")
            speech = replace(speech, limit=frames)
        return replace(job, limit=limit, speech=speech)

    def cancel(self, id: int) -> None:
        """Ends a row, unless it has ended already; its blocks are free at once."""
        if id in self.rows:
            self._remove(self.rows[id])

    def add_text(self, id: int, tokens: int, ended: bool) -> None:
        """For text that another process writes: so many more tokens can be spoken, and whether they are the last."""
        if id in self.rows:
            self.rows[id].text.drawn += tokens
            self.rows[id].text.ended |= ended

    def sleep(self, id: int) -> None:
        """Nothing is planned for a row until it is woken: a function of its caller's takes part in the choice of its last token."""
        self.asleep[id] = self.clock()

    def wake(self, id: int) -> None:
        """That token is known, or the row has ended."""
        self.asleep.pop(id, None)

    def plan(self) -> Plan:
        """The next tick; empty when no row can go on."""
        now, plan = self.clock(), Plan(removed=[(id,) for id in self._removed_ids])
        self._removed_ids.clear()
        speaking = self.speaking(now)
        writing = self.writing(speaking)
        writing = self._grow(plan, THINKER, writing)
        speaking = self._grow(plan, TALKER, [row for row in speaking if row.has_text or row in writing])
        writing = [row for row in writing if row in self.running]
        self._schedule_waiting(plan)
        speaking += self._read(plan, now, bool(speaking))[: LAUNCH_ROWS - len(speaking)]
        plan.decode = [(row.id,) for row in writing]
        plan.frames = [(row.id,) for row in speaking]
        plan.sound = self.sounding(speaking, now)
        return plan

    def speaking(self, now: float) -> list[Row]:
        """Who gets a frame: those whose next one would be missed first."""
        awake = self.awake()
        need = any(row.awaits_first_output or row.underruns(now) for row in awake)
        ready = [row for row in awake if row.speaks and row.talker.steps and not (need and row.well_buffered(now))]
        able = [row for row in ready if row.has_text or row.can_write]
        return sorted(able, key=lambda row: row.next_frame)[:LAUNCH_ROWS]

    def writing(self, speaking: list[Row]) -> list[Row]:
        """Who gets a token: all who only write, or write again, and those whose next frame needs a word."""
        steps = [row for row in self.awake() if row.text.steps]
        due = [row for row in steps if row.speaks and not row.has_text and (row in speaking or row.job.has_callbacks)]
        return [row for row in steps if not row.speaks or row.awaits_text or row.text.replays or row in due]

    def awake(self) -> list[Row]:
        """Rows at work that go on."""
        return [row for row in self.running if row.id not in self.asleep]

    def readers(self) -> list[Row]:
        """Who reads, in order: every second time the oldest first, else those who have least to read; those ahead of a question
        last, unless a row with one waits, for what they read or for room among the rows at work.
        """
        rows = [row for row in self.awake() if row.reading()]
        rows = sorted(rows, key=Row.left) if self._turn % 2 else rows
        waits = any(not row.job.prefill_only for row in self.waiting)
        return rows if waits else sorted(rows, key=lambda row: row.job.prefill_only)

    def sounding(self, speaking: list[Row], now: float) -> list[tuple[int, int]]:
        """Pieces of sound of one size, that of the first deadline."""
        pieces = []
        for row in sorted((row for row in self.rows.values() if row.speech), key=lambda row: row.deadline):
            frames = self.piece(row, row.talker.drawn + (row in speaking and not row.talker.replays) - row.sent, now)
            if frames:
                pieces.append((row.id, frames, bisect_left(row.job.spoken.pieces, frames)))
        return [(id, frames) for id, frames, size in pieces if size == pieces[0][2]][:LAUNCH_ROWS]

    def piece(self, row: Row, frames: int, now: float) -> int:
        """How many of a row's frames become sound now. Pieces grow, but beside others a row gives what it has before it runs dry;
        once it did, it makes whole pieces again.
        """
        sizes = row.job.spoken.pieces
        wanted = sizes[min(row.pieces, len(sizes) - 1)]
        if row.talker.ended or frames >= wanted:
            return min(frames, wanted)
        if row.sent and abs(row.deadline - now) < UNDERRUN_S and len(self.rows) > 1:
            return max((size for size in sizes if size <= frames), default=0)
        return 0

    def _grow(self, plan: Plan, decoder: int, rows: list[Row]) -> list[Row]:
        """A block for each row whose next position needs one. When there is none, the newest row gives up its blocks, until there
        is: the oldest always goes on. Returns the rows that can.
        """
        for row in sorted(rows, key=lambda row: row.id):
            track = row.track(decoder)
            while row in self.running and track.full:
                if (taken := self.pool(decoder).take(1)) is not None:
                    track.blocks += taken
                    plan.blocks.append((row.id, decoder, taken[0]))
                elif not self._make_room(plan, decoder):
                    break
        return [row for row in rows if row in self.running and not row.track(decoder).full]

    def _make_room(self, plan: Plan, decoder: int) -> bool:
        """Preempts the newest of the rows that hold blocks (the one that needs another is among them), resting ones first. False: none
        may be: it will wake soon, or it is the one that needs a block and all others will wake soon.
        """
        holders = [row for row in self.running if (track := row.tracks[decoder]) and track.blocks]
        row = max(holders, key=lambda row: (self._is_resting(row), row.id))
        awake = [other for other in holders if other.id not in self.asleep]
        if not self._is_resting(row) and (row.id in self.asleep or awake == [row]):
            return False
        self._preempt(plan, row)
        return True

    def _is_resting(self, row: Row) -> bool:
        return self.clock() - self.asleep.get(row.id, math.inf) > REST_S

    def _preempt(self, plan: Plan, row: Row) -> None:
        self.preemptions += 1
        self._release(row)
        self.running.remove(row)
        insort(self.waiting, row, key=lambda row: row.id)
        plan.preempted.append((row.id,))
        plan.blocks = [entry for entry in plan.blocks if entry[0] != row.id]

    def _schedule_waiting(self, plan: Plan) -> None:
        """First come, first served, but a row that shares what another is reading just now waits for that, and finds it. Resting rows
        are preempted for those that wait.
        """
        for row in sorted(self.waiting, key=lambda row: row.job.prefill_only):
            if row.id in self.asleep or self._shares(row):
                continue
            while len(self.running) == self.max_rows or not self._allocate(row):
                resting = [row for row in self.running if self._is_resting(row)]
                if not resting:
                    return
                self._preempt(plan, resting[-1])
            self.waiting.remove(row)
            insort(self.running, row, key=lambda row: row.id)
            if not row.text.drawn and not row.job.prefill_only:
                self.prompt_tokens += row.text.prompt
                self.cached_tokens += row.text.read
            row.text.ended |= row.job.prefill_only and row.text.read == row.text.prompt
            row.encoded = sum(stop <= row.text.read for stop, _ in row.job.media)
            plan.scheduled.append((row.id, row.text.read))
            plan.blocks += [(row.id, decoder, b) for decoder, track in enumerate(row.tracks) if track for b in track.blocks]

    def _shares(self, row: Row) -> bool:
        """Whether a row at work is about to read the first chunk of a prompt that is not in the cache yet."""
        keys = row.job.findable
        known = self.pool(THINKER).known(keys)
        readers = (other for other in self.running if other.text.read <= known * row.job.chunk and not other.text.ended)
        return known < len(keys) and any(other.job.keys[known : known + 1] == keys[known : known + 1] for other in readers)

    def _allocate(self, row: Row) -> bool:
        """Finds or takes blocks for all that a row has to read, if there is room for that and the margin."""
        for decoder, track in enumerate(row.tracks):
            if track is None or track.ended or not track.prompt:
                continue
            pool = self.pool(decoder)
            found = pool.find(row.job.findable) if decoder == THINKER else []
            row.payloads += [chunk.payload for chunk in found]
            track.blocks = [block for chunk in found for block in chunk.blocks]
            track.read = len(track.blocks) * BLOCK or (row.job.past_tokens if decoder == THINKER else 0)
            needed = blocks_for(min(track.known + self.margin, track.prompt + track.limit)) - len(track.blocks)
            taken = pool.take(blocks_for(track.known) - len(track.blocks)) if needed <= pool.available else None
            if taken is None:
                self._release(row)
                return False
            track.blocks += taken
        return True

    def _read(self, plan: Plan, now: float, busy: bool) -> list[Row]:
        """Media and chunks of prompts, as many as the budget allows, one of a row; nothing for a while if a row would run out of sound
        before the first of them is late. Returns the rows that can speak at once.
        """
        rows, ready, left = self.readers(), [], self.budget
        soonest = min((row.deadline for row in self.awake() if row.underruns(now)), default=math.inf)
        self._skipped += 1
        if not rows or (
            busy
            and self._skipped <= SKIPS
            and soonest < min((row.deadline for row in rows if not row.job.prefill_only), default=math.inf)
        ):
            return []
        self._skipped, self._turn = 0, self._turn + 1
        for row in rows:
            decoder, tokens = row.reading() or (None, 0)
            cost = max(tokens, CHUNK_COST) // (TALKER_SHARE if decoder == TALKER else 1)
            if left < self.budget and left < cost:
                continue
            left -= cost
            if decoder is None:
                plan.encode.append((row.id, row.encoded))
                continue
            stop = row.track(decoder).read + tokens
            plan.read.append((row.id, decoder, stop - tokens, stop))
            if decoder == TALKER and stop == row.talker.chunked and row.has_text:
                ready.append(row)
        return ready

    def done(self, plan: Plan, facts: Facts = Facts()) -> list[int]:
        """Takes note of what was done; returns the rows that have ended with it."""
        now, rows = self.clock(), self.rows
        for id, _ in plan.encode:
            if id in rows:
                rows[id].encoded += 1
        for id, decoder, start, stop in plan.read:
            if id in rows:
                self._advance(rows[id], decoder, stop, facts)
                if id not in facts.failed:  # it is unknown how far those were read
                    self._store_chunk(rows[id], decoder, start, facts.payloads.get(id))
        for decoder, ids in ((THINKER, plan.decode), (TALKER, plan.frames)):
            for (id,) in ids:
                if id in rows:
                    self._advance(rows[id], decoder, rows[id].track(decoder).read + 1, facts)
        for id, frames in plan.sound:
            if id in rows:
                self._send(rows[id], frames, now)
        return self._retire(facts)

    def _advance(self, row: Row, decoder: int, read: int, facts: Facts) -> None:
        track = row.track(decoder)
        track.read = read
        if read == track.known and not (decoder == TALKER and row.id in facts.speech_ended):
            track.drawn += 1

    def _store_chunk(self, row: Row, decoder: int, start: int, payload: Any) -> None:
        """A full chunk of the thinker's prompt can be found from now on."""
        size, keys = row.job.chunk, row.job.keys
        index = start // size
        if decoder == THINKER and index < len(keys):
            blocks = row.text.blocks[blocks_for(start) : blocks_for(start + size)]
            self.pool(THINKER).store(keys[index], keys[index - 1] if index else None, blocks, payload)

    def _send(self, row: Row, frames: int, now: float) -> None:
        frames = min(frames, row.talker.drawn - row.sent)
        if frames:
            row.deadline = frames * FRAME_S + (row.deadline if row.sent else now)
            row.sent += frames
            row.pieces += 1

    def _retire(self, facts: Facts) -> list[int]:
        for decoder, ids in ((THINKER, facts.text_ended), (TALKER, facts.speech_ended)):
            for row in (self.rows[id] for id in ids if id in self.rows and self.rows[id].tracks[decoder]):
                row.track(decoder).ended = True
                self._release(row, decoder)
        for id in facts.failed:
            self.cancel(id)
        finished = [row for row in self.rows.values() if row.done]
        for row in finished:
            self._remove(row)
        return [row.id for row in finished]

    def _remove(self, row: Row) -> None:
        self._release(row)
        del self.rows[row.id]
        self.wake(row.id)
        (self.running if row in self.running else self.waiting).remove(row)
        self._removed_ids.append(row.id)

    def _release(self, row: Row, *decoders: int) -> None:
        """Gives up a row's blocks, of all decoders if none is named."""
        for decoder in decoders or (THINKER, TALKER):
            track = row.tracks[decoder]
            if track is not None and track.blocks:
                self.pool(decoder).release(track.blocks)
                track.read, track.blocks = 0, []
        row.payloads.clear()
