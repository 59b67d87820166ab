"""What a tick does for the answers that are at work: a plan is made and executed."""

import time
from typing import Any

import numpy as np

from ..generation.talker_prompt import ROLE_ROWS, talker_context
from ..locking import exclusive, uninterrupted
from ..modeling import ops
from ..modeling.packing import host_array
from ..modeling.steps import bucket
from ..outputs import TextDelta
from .blocks import cache_full
from .kv_pool import copy_in, copy_out
from .plan import TALKER, THINKER, Facts, Plan
from .ranks import SingleRank
from .runner import ThinkerRunner
from .scheduler import Scheduler
from .sequence import Sequence
from .speech import SpeechStage
from .speech_process import SpeechProcess

WAIT_S = 0.05
"""For sound of the process that speaks, where there is nothing else to do."""


class failing:
    """A context: an exception in it ends these answers, and no others."""

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
    """rows: the answers by their ids; scheduler: who does what; thinker, speech: where it is done; ranks: with whom; finishing: rows
    whose text has ended, and whose speech the process that speaks has not ended yet.
    """

    thinker_cell: Any
    config: Any
    ranks: SingleRank
    scheduler: Scheduler
    thinker: ThinkerRunner
    speech: SpeechStage | SpeechProcess | None

    def __init__(self) -> None:
        self.rows: dict[int, Sequence] = {}
        self.finishing: set[int] = set()
        self.busy = False
        self._ended: tuple[set[int], set[int]] = (set(), set())
        self._speech_updates: list[int] = []  # rows with new text for their speech

    def drop_cancelled(self) -> None:
        """Ends what was cancelled."""

    def tick(self) -> bool:
        """One for everybody; the caller holds the lock. Says whether there was something to do."""
        self.drop_cancelled()
        self.busy = True
        try:
            with self.ranks.synchronized():
                plan = self.ranks.plan()
                self._apply_blocks(plan)
                for id, number in plan.encode:  # it may be interrupted: it takes long, and can be done again
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
                    output = self._run_speech(plan, self.speech) if self.speech is not None else None
                    idle = self._finish_tick(plan, chunks) and not (plan or output)  # but another process speaks
        except Exception as error:  # not of a single row
            if type(self.ranks) is not SingleRank:  # the others do not know
                raise
            self._fail_all(error)
            return True
        finally:
            self.busy = False
        self.drop_cancelled()
        self.ranks.finish()
        if idle and isinstance(self.speech, SpeechProcess):
            exclusive.released(self.speech.wait, WAIT_S)
        return idle or bool(plan)

    def _fail_all(self, error: Exception) -> None:
        """Ends all answers, since it is unknown how far they are, and forgets all that was read."""
        for id, row in list(self.rows.items()):
            self.scheduler.cancel(id)
            if not row.ended:
                row.fail(error)
        self._ended = (set(), set())
        self._speech_updates.clear()
        self.finishing.clear()
        for pool in filter(None, self.scheduler.pools):
            pool.forget()

    def _finish_tick(self, plan: Plan, payloads: dict[int, Any] | None = None) -> bool:
        """Reports what came of a plan, and of functions of the callers'. Says whether another process speaks."""
        remote = self.speech.remote if self.speech is not None else frozenset()
        failed = frozenset(
            id for id, row in self.rows.items() if self.ranks.is_leader and row.error is not None and not row.ended
        )
        text_ended, speech_ended = map(frozenset, self._ended)
        facts = Facts(text_ended, speech_ended, failed, payloads or {})
        self._ended = (set(), set())
        self.finishing.update(self.ranks.done(plan, facts))
        for id in (self.finishing - remote) | failed:
            self.finish(self.rows[id])
        self.finishing &= remote
        return bool(remote)

    @staticmethod
    def finish(row: Sequence) -> None:
        """Hands out the last event."""
        error = row.error or row.late_error
        row.end(time.perf_counter()) if error is None else row.fail(error)

    def _apply_blocks(self, plan: Plan) -> None:
        """Updates the block tables, and the sizes of the pools."""
        for (id,) in plan.preempted:
            row = self.rows[id]
            if row.text.has_callbacks and row.text.active:  # its next token may be its last, and is chosen without reading
                self._store_kv(row)
            row.drop_blocks()
        for id, found in plan.scheduled:
            row = self.rows[id]
            row.read, row.cached = found, row.cached if row.text.tokens else found
        for id, decoder, block in plan.blocks:
            if decoder == THINKER:
                self.rows[id].table.append(block)
        if self.speech is not None:
            self.speech.apply_blocks(plan)
        self.thinker.pool.reserve(self.scheduler.pool(THINKER).capacity + 1)
        if isinstance(self.speech, SpeechStage):
            self.speech.pool.reserve(self.scheduler.pool(TALKER).capacity + 1)
        for id, found in plan.scheduled:
            row = self.rows[id]
            if row.speech is not None and not row.fed:
                row.talker_states = self.ranks.talker_states(id, found)
            if row.past is not None:
                copy_in(self.thinker.pool, row.table, *row.past)

    @staticmethod
    def _guard(row, function, *arguments):
        """The result of a function for a row, or None and the row has failed."""
        if row.error is None:
            with failing(row):
                return function(row, *arguments)
        return None

    def _read(self, row, id, start, stop):
        """Reads a chunk of a prompt -> what is stored beside it."""
        if start == row.prompt.past_tokens:
            row.hidden_states.clear()
        found, states = self.thinker.read(row, start, stop)
        row.read = stop
        if row.speech is not None and not row.fed:
            row.talker_states.append(states)
        if stop == len(row.prompt):
            row.features.clear()
            if row.given or row.prefill_only:
                self._ended[THINKER].add(id)
            if row.given:
                self._speech_updates.append(id)
        if found is not None:
            self._draw([id], [found])
        return states

    def _draw(self, ids, found):
        """Chooses the next tokens, at once or, where functions of the caller's take part, when that caller comes; found: their scores."""
        rows = [self.rows[id] for id in ids]
        for id, row, scores in zip(ids, rows, self.ranks.scores(rows, found)):
            if not self.ranks.is_leader:
                self._guard(row, self._record_logits, *scores)
            elif row.text.has_callbacks:
                row.pending_scores = scores
                self.scheduler.sleep(id)
            else:
                self._guard(row, self._choose_token, id, *scores)

    @staticmethod
    def _record_logits(row, scores, adjusted):
        if row.text.options.stores_logits:
            row.text.process(scores, adjusted)

    def _choose_token(self, row, id, scores, adjusted):
        delta, text = row.text.choose(scores, adjusted), row.text
        if text.active and len(text.tokens) == row.max_tokens:
            text.active = False
            row.late_error = cache_full("the text", len(row.prompt), row.max_tokens, "max_new_tokens")
        self.emit_token(row, id, delta)

    def emit_token(self, row: Sequence, id: int, delta: TextDelta) -> None:
        """Hands out a token, and takes note of what follows from it."""
        row.add(delta, time.perf_counter())
        if not row.text.active:
            self._ended[THINKER].add(id)
            self._store_kv(row)
        if row.speech is not None and not row.speech_complete:
            self._speech_updates.append(id)

    def _store_kv(self, row):
        """Copies the keys and values of what was read, where they are wanted and there are any."""
        if row.table and (row.text.options.keep_cache or row.text.options.past_key_values is not None):
            row.new_kv = copy_out(self.thinker.pool, row.table, row.prompt.past_tokens, row.read)

    def _decoded(self, plan, found):
        """Chooses a token for all rows that have read all that they wrote."""
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

    def _feed_speech(self, speech):
        """Gives the speech what was written in this tick."""
        updates = {id: self.rows[id].unfed_ids() for id in self._speech_updates if id in self.rows}
        self._speech_updates.clear()
        ids = [token for tokens in updates.values() for token in tokens]
        embeds = self.embeddings(ids) if ids else np.zeros((0, 0), np.float32)
        for id, tokens in updates.items():
            own, embeds = embeds[: len(tokens)], embeds[len(tokens) :]
            self._guard(self.rows[id], self._feed_row, id, own, speech)

    def _feed_row(self, row, id, new, speech):
        """new: embeddings float32 `[n, D]` of more text of one answer."""
        row.speech_complete = row.text_complete
        if not row.fed and len(new) <= ROLE_ROWS:
            if row.text_complete:  # there is nothing to speak
                speech.cancel(id)
                self._ended[TALKER].add(id)
            return
        if not row.fed:
            embeds, hidden = (
                ops.concat(parts, 0) if len(parts) > 1 else parts[0] for parts in map(list, zip(*row.talker_states))
            )
            speech.set_prompt(id, talker_context(self.config, row.prompt.ids, row.prompt.grids(), embeds, hidden))
            row.talker_states.clear()
        row.fed += len(new)
        speech.append_text(id, new, row.text_complete)

    def _run_speech(self, plan, speech):
        """Executes the speech of a tick, hands its sound out and returns it."""
        self.ranks.sync_text()
        self._feed_speech(speech)
        output = speech.execute(plan, {id for id, row in self.rows.items() if row.error is not None})
        for id, pcm, codes in output.sounds:
            self.rows[id].sound(pcm, codes, time.perf_counter())
        for id, error in output.failed.items():
            self.rows[id].late_error = error
        self._ended[TALKER].update(output.ended)
        return output
