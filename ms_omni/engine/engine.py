"""Many callers on one model: `add` at any time, `step` until everybody is answered.

callers --add, cancel--> Sequence --> Scheduler --Plan--> ThinkerRunner, SpeechStage --> events
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import InputError
from ..generation.hand_over import assistant_turns, user_mask
from ..generation.request import Request, arguments_of, parse_request, parse_text_request
from ..generation.talker_prompt import OPENING_ROWS, ROLE_ROWS
from ..generation.text import prompt_of
from ..locking import exclusive
from ..modeling import ops
from ..modeling.packing import host_array
from .blocks import CHUNK, BlockPool, ContentCache, blocks_for
from .hearing import listen
from .kv_pool import KVPool
from .plan import TALKER, THINKER, Facts, Job, Plan, Speech
from .prompt import Prompt, prompts
from .runner import ThinkerRunner
from .scheduler import Scheduler
from .sequence import Sequence, bucket
from .speech import SpeechStage, seeded
from .text import Text

FEATURE_BYTES = 256 * 2**20
"""Of features of media that are kept for those who send the same again."""


class Engine:
    """model: the whole one, or a thinker alone; max_rows: answers at work at a time, more wait; tokens: of all answers together
    that the caches hold.

    Any thread may call anything at any time.
    """

    def __init__(self, model: Any, max_rows: int = 16, tokens: int = 16384):
        self.model, self.config = model, model.config
        self.whole = hasattr(model, "thinker")
        thinker, speaks, blocks = (
            model.thinker if self.whole else model,
            self.whole and model.has_talker,
            blocks_for(tokens) + 1,
        )
        listen = self.config.talker_config.accept_hidden_layer if speaks else None
        self.thinker = ThinkerRunner(thinker, KVPool.of(thinker.model, blocks), ContentCache(FEATURE_BYTES), listen)
        self.speech = self._stage(blocks) if speaks else None
        self.scheduler = Scheduler(BlockPool(blocks), BlockPool(blocks) if speaks else None, max_rows)
        self.rows: dict[int, Sequence] = {}
        self.added: set[int] = set()  # whose events `step` hands out

    # -- callers -----------------------------------------------------------------------------------------------------

    @exclusive
    def add(self, input_ids: Any = None, speaker: str | None = None, **kwargs: Any) -> int:
        """Asks for one answer; arguments as of `model.stream`, or of `thinker.generate`. Returns its id. Raises `InputError`."""
        arguments = arguments_of(kwargs, input_ids=input_ids, speaker=speaker)
        request = parse_request(self.model, arguments) if self.whole else parse_text_request(self.model, arguments)
        ids = self.ask(request)
        if len(ids) > 1:
            for id in ids:
                self.cancel(id)
            raise InputError(f"engine.add takes one conversation, got {len(ids)}; add each by itself")
        self.added.add(ids[0])
        return ids[0]

    @exclusive
    def step(self) -> list[tuple[int, Any]]:
        """One tick for everybody -> the events of what was added: `[(id, event), ...]`, an exception for one that failed."""
        self._tick()
        found = []
        for id in list(self.added):
            row = self.rows[id]
            while row.events:
                found.append((id, row.events.popleft()))
            if row.ended:
                self._forget(id)
        return found

    @exclusive
    def cancel(self, id: int) -> None:
        """Ends an answer early; nothing happens if it has ended."""
        self.scheduler.cancel(id)
        self._forget(id)

    def events(self, id: int) -> Iterator[Any]:
        """The events of one answer; whoever waits for one works for all. Closing the iterator cancels it."""
        row = self.rows[id]
        try:
            while not (row.ended and not row.events):
                with exclusive:
                    while not (row.events or row.ended):
                        self._tick()
                while row.events:
                    event = row.events.popleft()
                    if isinstance(event, Exception):
                        raise event
                    yield event
        finally:
            self.cancel(id)

    @exclusive
    def ask(self, request: Request) -> list[int]:
        """The ids of the conversations of a request, each as often as it wants answers to it."""
        found = prompts(self.thinker.thinker.config, request.inputs, prompt_of(request.inputs)[1])
        found = [prompt for prompt in found for _ in range(request.options.num_return_sequences)]
        return [self._admit(self._row(request, number, prompt), number, request) for number, prompt in enumerate(found)]

    def _row(self, request: Request, number: int, prompt: Prompt) -> Sequence:
        row = Sequence(prompt, Text(prompt.ids, request.text, request.options, number), given=request.given)
        row.started = time.perf_counter()
        if request.speech is not None:
            (row.turn,) = assistant_turns(prompt.ids[None], self.config, request.given)
            row.turn, row.speech = list(map(int, row.turn)), seeded(request.speech)
        return row

    def _admit(self, row: Sequence, number: int, request: Request) -> int:
        speech, prompt, params = None, row.prompt, row.speech
        if params is not None:
            heard = int(user_mask(prompt.ids[None], prompt.ids[None] >= 0, self.config).sum())
            speech = Speech(heard + OPENING_ROWS, params.talker.max_new_tokens, tuple(params.chunk_frames))
        media = tuple((int(medium.places[-1]) + 1, len(medium.places)) for medium in prompt.media)
        limit = 1 if request.given else request.text.max_new_tokens
        id = self.scheduler.add(Job(len(prompt), limit, prompt.keys(CHUNK), media, speech))
        self.rows[id] = row
        if params is not None:
            self.speech.begin(id, params, number)
        return id

    def _forget(self, id):
        self.rows.pop(id, None)
        self.added.discard(id)

    # -- a tick ------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        plan = self.scheduler.plan()
        self._place(plan)
        self._ended: tuple[set[int], set[int]] = (set(), set())
        self._news: list[int] = []
        payloads = {}
        for id, number in plan.encode:
            self._guard(id, self.thinker.encode, number)
        for id, decoder, start, stop in plan.read:
            if decoder == THINKER:
                payloads[id] = self._guard(id, self._read, id, start, stop)
                self.rows[id].read[decoder] = stop
        self._decode([id for (id,) in plan.decode])
        if self.speech is not None:
            self._tell()
            self._hear(self.speech.follow(plan, {id for id, row in self.rows.items() if row.error is not None}))
        failed = frozenset(id for id, row in self.rows.items() if row.error is not None and not row.ended)
        facts = Facts(*map(frozenset, self._ended), failed, payloads)
        for id in self.scheduler.done(plan, facts):
            self.rows[id].end(time.perf_counter())
        for id in failed:
            self.rows[id].events.append(self.rows[id].error)
            self.rows[id].ended = True

    def _place(self, plan: Plan) -> None:
        """Whose blocks are whose from now on."""
        for (id,) in plan.dropped:
            self.rows[id].drop()
        for id, found in plan.admitted:
            row = self.rows[id]
            row.read[THINKER] = found
            if row.speech is not None and not row.told:
                row.states = list(self.scheduler.rows[id].payloads)
        for id, decoder, block in plan.blocks:
            self.rows[id].tables[decoder].append(block)

    def _guard(self, id, function, *arguments):
        """What a function makes of a row, or None and the row has failed."""
        row = self.rows[id]
        if row.error is not None:
            return None
        try:
            return function(row, *arguments)
        except InputError as error:
            row.error = error
            return None

    def _read(self, row, id, start, stop):
        """A chunk of a prompt; returns what is kept beside it."""
        logits, heard = self.thinker.read(row, start, stop)
        if row.speech is not None and not row.told:
            row.states.append(heard)
        if row.given and logits is not None:
            self._ended[THINKER].add(id)
            self._news.append(id)
        elif logits is not None and not row.text.tokens:
            self._write(row, id, logits)
        return heard

    def _write(self, row, id, logits):
        row.add(row.text.take(logits), time.perf_counter())
        if not row.text.going:
            self._ended[THINKER].add(id)
        if row.speech is not None:
            self._news.append(id)

    def _decode(self, ids):
        rows = [self.rows[id] for id in ids]
        if not rows:
            return
        for id, row, logits in zip(ids, rows, self.thinker.decode(rows)):
            row.read[THINKER] += 1
            if row.read[THINKER] == len(row.prompt) + len(row.text.tokens):
                self._guard(id, self._write, id, logits)

    def _tell(self):
        """Speech is told what was written in this tick."""
        told = {id: self.rows[id].news() for id in self._news if id in self.rows}
        ids = [token for words in told.values() for token in words]
        words = self.embeddings(ids) if ids else np.zeros((0, 0), np.float32)
        for id, news in told.items():
            row, own, words = self.rows[id], words[: len(news)], words[len(news) :]
            if not row.told and len(news) <= ROLE_ROWS:  # nothing is to be said
                self.speech.cancel(id)
                self._ended[TALKER].add(id)
                continue
            if not row.told:
                embeds, hidden = (ops.concat(parts, 0) if len(parts) > 1 else parts[0] for parts in zip(*row.states))
                self.speech.hear(id, listen(self.config, row.prompt.ids, row.prompt.grids(), embeds, hidden))
                row.states.clear()
            row.told += len(news)
            self.speech.tell(id, own, row.written)

    def _stage(self, blocks):
        config = self.config
        ends = self.embeddings([config.tts_bos_token_id, config.tts_eos_token_id, config.tts_pad_token_id])
        return SpeechStage(self.model.talker, self.model.code2wav, ends, KVPool.of(self.model.talker.model, blocks))

    def embeddings(self, ids: list[int]) -> np.ndarray:
        """The thinker's embeddings float32 `[n, D]` of text."""
        padded = np.array(ids + [0] * (bucket(ids) - len(ids)))[:, None]
        return host_array(self.thinker.thinker.embed_text(padded))[: len(ids), 0].astype(np.float32)

    def _hear(self, said):
        """What was spoken is handed out."""
        for id, pcm, codes in said.sounds:
            self.rows[id].sound(pcm, codes, time.perf_counter())
        for id, error in said.failed.items():
            self.rows[id].speech_error = error
        self._ended[TALKER].update(said.ended)
