"""What a tick does for the answers that are at work: a plan is made, and followed."""

import time
from typing import Any

import numpy as np

from ..generation.talker_prompt import ROLE_ROWS, listen
from ..locking import exclusive, uninterrupted
from ..modeling import ops
from ..modeling.packing import host_array
from ..modeling.steps import bucket
from ..outputs import TextDelta
from .blocks import cache_full
from .kv_pool import take_over, taken_from
from .plan import TALKER, THINKER, Facts, Plan
from .ranks import Alone
from .runner import ThinkerRunner
from .scheduler import Scheduler
from .sequence import Sequence
from .speech import SpeechStage
from .speech_process import SpeechProcess

WAIT_S = 0.05
"""For the process that speaks, where there is nothing else to do; then it is looked whether there is."""


class failing:
    """A context: what goes wrong in it ends these answers, whatever it is, and no others."""

    def __init__(self, *rows: Sequence) -> None:
        self.rows = rows

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        for row in self.rows:
            row.error = error
        return True


class Work:
    """rows: the answers by their ids; scheduler: who does what; thinker, speech: where it is done; ranks: with whom; written: rows of
    which the rest is done elsewhere.
    """

    thinker_cell: Any
    config: Any
    ranks: Alone
    scheduler: Scheduler
    thinker: ThinkerRunner
    speech: SpeechStage | SpeechProcess | None

    def __init__(self) -> None:
        self.rows: dict[int, Sequence] = {}
        self.written: set[int] = set()
        self.busy = False
        self._ended: tuple[set[int], set[int]] = (set(), set())
        self._news: list[int] = []  # rows whose speech is to be told something

    def let_go(self) -> None:
        """Ends what nobody wants any more."""

    def tick(self) -> bool:
        """One for everybody; the caller holds the lock. Says whether there was something to do."""
        self.let_go()
        self.busy = True
        try:
            with self.ranks.together():
                plan = self.ranks.plan()
                self._place(plan)
                for id, number in plan.encode:  # which takes long, and can be done again
                    self._guard(self.rows[id], self.thinker.encode, number)
                with uninterrupted():
                    chunks, found = {}, None
                    for id, decoder, start, stop in plan.read:
                        if decoder == THINKER:
                            chunks[id] = self._guard(self.rows[id], self._read, id, start, stop)
                    writing = [self.rows[id] for (id,) in plan.decode]
                    if writing:
                        with failing(*writing):
                            found = self.thinker.decode(writing)
                    if found is not None:
                        self._decoded(plan, found)
                    said = self._speak(plan, self.speech) if self.speech is not None else None
                    idle = self._conclude(plan, chunks) and not (plan or said)  # but something is spoken elsewhere
        except Exception as error:  # of nobody alone
            if type(self.ranks) is not Alone:  # the others do not know
                raise
            self._lose(error)
            return True
        finally:
            self.busy = False
        self.let_go()
        self.ranks.finish()
        if idle and isinstance(self.speech, SpeechProcess):
            exclusive.released(self.speech.wait, WAIT_S)
        return idle or bool(plan)

    def _lose(self, error: Exception) -> None:
        """What went wrong ends everybody, for nobody knows how far they are; whoever comes next finds an engine that has read nothing."""
        for id, row in list(self.rows.items()):
            self.scheduler.cancel(id)
            if not row.ended:
                row.fail(error)
        self._ended = (set(), set())
        self._news.clear()
        self.written.clear()
        for pool in filter(None, self.scheduler.pools):
            pool.forget()

    def _conclude(self, plan: Plan, payloads: dict[int, Any] | None = None) -> bool:
        """What came of a plan, and of functions of the callers'. Says whether something is spoken elsewhere."""
        elsewhere = self.speech.elsewhere if self.speech is not None else frozenset()
        failed = frozenset(
            id for id, row in self.rows.items() if self.ranks.leads and row.error is not None and not row.ended
        )
        text_ended, speech_ended = map(frozenset, self._ended)
        facts = Facts(text_ended, speech_ended, failed, payloads or {})
        self._ended = (set(), set())
        self.written.update(self.ranks.done(plan, facts))
        for id in (self.written - elsewhere) | failed:
            self.finish(self.rows[id])
        self.written &= elsewhere
        return bool(elsewhere)

    @staticmethod
    def finish(row: Sequence) -> None:
        """Hands out the last event."""
        error = row.error or row.late_error
        row.end(time.perf_counter()) if error is None else row.fail(error)

    def _place(self, plan: Plan) -> None:
        """Whose blocks are whose from now on."""
        for (id,) in plan.dropped:
            row = self.rows[id]
            if row.text.asks and row.text.going:  # the token that it is to be told may be its last
                self._keep(row)
            row.drop()
        for id, found in plan.admitted:
            row = self.rows[id]
            row.read, row.cached = found, row.cached if row.text.tokens else found
        for id, decoder, block in plan.blocks:
            if decoder == THINKER:
                self.rows[id].table.append(block)
        if self.speech is not None:
            self.speech.place(plan)
        self.thinker.pool.reserve(self.scheduler.pool(THINKER).capacity + 1)
        if isinstance(self.speech, SpeechStage):
            self.speech.pool.reserve(self.scheduler.pool(TALKER).capacity + 1)
        for id, found in plan.admitted:
            row = self.rows[id]
            if row.speech is not None and not row.told:
                row.states = self.ranks.heard(id, found)
            if row.held is not None:
                take_over(self.thinker.pool, row.table, *row.held)

    @staticmethod
    def _guard(row, function, *arguments):
        """What a function makes of a row, or None and the row has failed."""
        if row.error is None:
            with failing(row):
                return function(row, *arguments)
        return None

    def _read(self, row, id, start, stop):
        """A chunk of a prompt; returns what is kept beside it."""
        if start == row.prompt.held:
            row.watched.clear()
        found, heard = self.thinker.read(row, start, stop)
        row.read = stop
        if row.speech is not None and not row.told:
            row.states.append(heard)
        if stop == len(row.prompt):
            row.features.clear()
            if row.given or row.reads:
                self._ended[THINKER].add(id)
            if row.given:
                self._news.append(id)
        if found is not None:
            self._draw([id], [found])
        return heard

    def _draw(self, ids, found):
        """The next tokens, at once, or when a caller asks for it whose functions have a say in it; found: what they are chosen by."""
        rows = [self.rows[id] for id in ids]
        for id, row, scores in zip(ids, rows, self.ranks.scores(rows, found)):
            if not self.ranks.leads:
                self._guard(row, self._look, *scores)
            elif row.text.asks:
                row.asked = scores
                self.scheduler.sleep(id)
            else:
                self._guard(row, self._write, id, *scores)

    @staticmethod
    def _look(row, scores, adjusted):
        if row.text.options.kept:
            row.text.look(scores, adjusted)

    def _write(self, row, id, scores, adjusted):
        delta, text = row.text.take(scores, adjusted), row.text
        if text.going and len(text.tokens) == row.room:
            text.going = False
            row.late_error = cache_full("the text", len(row.prompt), row.room, "max_new_tokens")
        self.wrote(row, id, delta)

    def wrote(self, row: Sequence, id: int, delta: TextDelta) -> None:
        """Hands out a token."""
        row.add(delta, time.perf_counter())
        if not row.text.going:
            self._ended[THINKER].add(id)
            self._keep(row)
        if row.speech is not None and not row.told_all:
            self._news.append(id)

    def _keep(self, row):
        """Keeps the keys and values of what was read, where they are wanted and there are any."""
        if row.table and (row.text.options.keep_cache or row.text.options.past_key_values is not None):
            row.left = taken_from(self.thinker.pool, row.table, row.prompt.held, row.read)

    def _decoded(self, plan, found):
        """Draws for all rows that have read all that they wrote, by what was found of each."""
        ids, last = [id for (id,) in plan.decode], []
        for index, id in enumerate(ids):
            row = self.rows[id]
            if row.choosing:
                last.append(index)
            row.read += 1
        self._draw([ids[index] for index in last], [found[index] for index in last])

    # -- speech ------------------------------------------------------------------------------------------------------

    def embeddings(self, ids: list[int]) -> np.ndarray:
        """The thinker's embeddings float32 `[n, D]` of text."""
        padded = np.array(ids + [0] * (bucket(ids) - len(ids)))[:, None]
        return host_array(self.thinker_cell.embed_text(padded))[: len(ids), 0].astype(np.float32)

    def _tell(self, speech):
        """Speech is told what was written in this tick."""
        told = {id: self.rows[id].news() for id in self._news if id in self.rows}
        self._news.clear()
        ids = [token for words in told.values() for token in words]
        words = self.embeddings(ids) if ids else np.zeros((0, 0), np.float32)
        for id, news in told.items():
            own, words = words[: len(news)], words[len(news) :]
            self._guard(self.rows[id], self._tell_of, id, own, speech)

    def _tell_of(self, row, id, words, speech):
        """Words float32 `[n, D]` of one answer."""
        row.told_all = row.written
        if not row.told and len(words) <= ROLE_ROWS:
            if row.written:  # nothing is to be said
                speech.cancel(id)
                self._ended[TALKER].add(id)
            return
        if not row.told:
            embeds, hidden = (ops.concat(parts, 0) if len(parts) > 1 else parts[0] for parts in map(list, zip(*row.states)))
            speech.hear(id, listen(self.config, row.prompt.ids, row.prompt.grids(), embeds, hidden))
            row.states.clear()
        row.told += len(words)
        speech.tell(id, words, row.written)

    def _speak(self, plan, speech):
        """What is spoken in this tick is handed out, and returned."""
        self.ranks.tell()
        self._tell(speech)
        said = speech.follow(plan, {id for id, row in self.rows.items() if row.error is not None})
        for id, pcm, codes in said.sounds:
            self.rows[id].sound(pcm, codes, time.perf_counter())
        for id, error in said.failed.items():
            self.rows[id].late_error = error
        self._ended[TALKER].update(said.ended)
        return said
