"""Many callers on one model: `add` at any time, `step` until everybody is answered.

callers --add, cancel--> Sequence --> Scheduler --Plan--> ThinkerRunner, SpeechStage --> events
"""

import sys
import time
from collections import deque
from collections.abc import Generator
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import InputError
from ..generation.checks import whole_number
from ..generation.inputs import prompt_of
from ..generation.request import Request, arguments_of, parse_reading, parse_request, parse_text_request
from ..generation.talker_prompt import OPENING_ROWS, ROLE_ROWS, assistant_turns, user_mask
from ..locking import exclusive
from ..modeling.steps import LAUNCH_ROWS, bucket, compiles_ahead, launch_sizes
from ..outputs import StreamError
from ..runtime import free_memory_gb
from .blocks import BlockPool, ContentCache, blocks_for
from .kv_pool import KVPool, check_cache_dtype
from .plan import TALKER, THINKER, Job, Plan, Speech
from .prompt import Prompt, prompts
from .ranks import SingleRank, ranks_of
from .runner import ThinkerRunner, Weights, talker_state_bytes
from .scheduler import Scheduler
from .sequence import Sequence, Text
from .speech import SpeechStage, seeded
from .speech_process import SpeechProcess, remote_talker_config, with_talker
from .work import Work

IDLE_S = 0.001
"""Between two looks whether another caller's function has returned."""
FEATURE_BYTES = 256 * 2**20
"""Of features of media that are cached for those who send the same again."""
MEMORY_SHARE = 0.5
"""Of the memory that is free, for keys and values, where `tokens` is not given."""
ROW_TOKENS = 4096
"""Tokens per row that are enough, where `tokens` is not given."""
FIRST_BLOCKS = 4
"""Of an engine that grows."""


class Engine(Work):
    """Answers of one model, several at a time.

    model: the whole one, or a thinker alone; max_rows: answers at work at a time, more wait; tokens: of all answers together that
    the caches hold (default: `ROW_TOKENS` per row, or what fits into a part of the free memory); grows: whether they begin small and
    become as large when it is needed, or take all at once; speech: None, or "process" for one of its own, with the card of number
    speech_device (see `SpeechProcess`: the model had better be loaded with enable_audio_output=False then); kv_cache_dtype: how keys
    and values are stored, of `CACHE_DTYPES`.

    Any thread may call anything at any time. What was read once is found again, also by other callers; weights that change are
    noticed if they were trained, set, or replaced, at the first request that finds the engine idle.
    """

    def __init__(
        self,
        model: Any,
        max_rows: int = 16,
        tokens: int | None = None,
        grows: bool = False,
        speech: str | None = None,
        speech_device: int | None = None,
        kv_cache_dtype: str = "auto",
    ) -> None:
        super().__init__()
        check_cache_dtype(kv_cache_dtype)
        self.kv_cache_dtype = kv_cache_dtype
        self.max_rows = whole_number("max_rows", max_rows)
        self.whole = hasattr(model, "thinker")
        self.model, self.thinker_cell = model, model.thinker if self.whole else model
        self.remote_config = remote_talker_config(model, speech)  # of a talker in another process
        self.device = speech_device
        parts = (model.talker, model.code2wav) if self.speaks and self.remote_config is None else ()
        self.ranks = ranks_of(self, model, self.thinker_cell, *parts)
        if speech is not None and type(self.ranks) is not SingleRank:
            raise InputError("speech='process' is for a model that one process holds; leave it out")
        decoders = [self.thinker_cell.model, *([model.talker.model] if self.speaks and self.remote_config is None else [])]
        self.shared = grows
        if grows and compiles_ahead(model.compile_after) and KVPool.packs(decoders[THINKER]):
            max_rows, grows = LAUNCH_ROWS, False  # graphs are compiled for buffers of one size
        if tokens is None:
            states = talker_state_bytes(decoders[THINKER]) if self.speaks else 0
            stored = sum(KVPool.block_bytes(decoder, dtype=kv_cache_dtype) for decoder in decoders)
            blocks = _blocks_that_fit(stored + states, max_rows, grows)
        else:
            blocks = blocks_for(whole_number("tokens", tokens))
        self.blocks = self.ranks.minimum(blocks)
        first = min(FIRST_BLOCKS, self.blocks) if grows else self.blocks
        pools = [BlockPool(first + 1, self.blocks + 1) for _ in decoders]
        self.scheduler = Scheduler(*pools, *[None] * (2 - len(pools)), max_rows=self.max_rows)
        self.added: set[int] = set()  # whose events `step` hands out
        self._weights: Weights | None = None
        self.speech: SpeechStage | SpeechProcess | None = None
        self._cancelled: deque[int] = deque()  # rows that are still to be removed
        self.closed = False
        self._refresh()

    @property
    def speaks(self) -> bool:
        """Whether there is a talker."""
        return self.remote_config is not None or (self.whole and self.model.has_talker)

    @property
    def config(self) -> Any:
        """That of the model, with its talker wherever it is."""
        return self.model.config if self.remote_config is None else self.remote_config

    @property
    def settings(self) -> tuple:
        """Those that ranks must have alike."""
        return self.max_rows, self.blocks, self.kv_cache_dtype

    def fits(self, model: Any) -> bool:
        """Whether it is that of a model, or of a thinker that may be a part of one."""
        whole = hasattr(model, "thinker")
        return (
            not self.closed
            and (model.thinker if whole else model) is self.thinker_cell
            and (self.model is model or not whole)
        )

    def __reduce__(self) -> tuple:
        return type(None), ()  # a copy of a model makes an engine of its own

    def _refresh(self) -> None:
        """Prepares everything for the weights of the model, if they have changed, and the launches of an engine that does not grow."""
        if self._weights is not None and not self._weights.changed():
            return
        thinker, compile_after = self.thinker_cell, self.model.compile_after
        accept_hidden_layer = self.config.talker_config.accept_hidden_layer if self.speaks else None
        pool = KVPool.of(thinker.model, self.scheduler.pool(THINKER).capacity + 1, dtype=self.kv_cache_dtype)
        self.thinker = ThinkerRunner(
            thinker, pool, ContentCache(FEATURE_BYTES), accept_hidden_layer, compile_after, self.max_rows
        )
        if isinstance(self.speech, SpeechProcess):  # one at a time, for it may fill its card
            self.speech.close()
        self.speech = self._stage(compile_after) if self.speaks else None
        for pool in filter(None, self.scheduler.pools):
            pool.forget()
        cells = self.model._cells if self.whole else {}
        self._weights = Weights([self.thinker_cell, *(cells[name] for name in ("talker", "code2wav") if name in cells)])
        if not (self.shared or self.ranks.has_followers):  # ranks that only follow do not know of weights that change here
            self._warm(launch_sizes(self.max_rows))

    def _warm_for(self, rows: int) -> None:
        """Before rows of a request begin, unless others are at work. Every rank does so, since they may differ in which rows they hold."""
        if rows > (self.thinker.step.most or 0) and (not self.rows or type(self.ranks) is not SingleRank):
            self._warm([bucket(rows)])

    def _warm(self, sizes: list[int]) -> None:
        """Compiles the graphs for launches of these sizes, where steps are graphs (see `ops.packs`), before any caller waits for them."""
        if not compiles_ahead(self.model.compile_after) or self.thinker.pool.stack is None:
            return
        stages = [self.thinker, *([self.speech] if isinstance(self.speech, SpeechStage) else [])]
        missing = [(stage, size) for stage in stages for size in sizes if size not in stage.step.sizes]
        for stage, size in tqdm(missing, "compiling steps", leave=False, disable=not sys.stderr.isatty()):
            with exclusive, self.ranks.defer_interrupts():  # compiling may take long, which is no hang
                stage.warm(size)

    def _stage(self, compile_after: int | None) -> SpeechStage | SpeechProcess:
        config, model = self.config, self.model
        tts_embeds = self.embeddings([config.tts_bos_token_id, config.tts_eos_token_id, config.tts_pad_token_id])
        if self.remote_config is not None:
            return SpeechProcess(model, config, tts_embeds, self.blocks + 1, self.max_rows, self.device, self.kv_cache_dtype)
        blocks = self.scheduler.pool(TALKER).capacity + 1
        pool = KVPool.of(model.talker.model, blocks, dtype=self.kv_cache_dtype)
        return SpeechStage(model.talker, model.code2wav, tts_embeds, pool, compile_after, self.ranks.codes, self.max_rows)

    # -- callers -----------------------------------------------------------------------------------------------------

    @exclusive
    def add(self, input_ids: Any = None, speaker: str | None = None, given: bool = False, **kwargs: Any) -> int:
        """Asks for one answer; arguments as of `model.stream`, or of `thinker.generate`; given: speaks the assistant turn that the
        prompt ends with, as `model.say` does. Returns its id. Raises `InputError`.
        """
        request = self._parsed(arguments_of(kwargs, input_ids=input_ids, speaker=speaker), given)
        count = len(prompt_of(request.inputs)[1]) * request.options.num_return_sequences
        if count > 1:
            raise InputError(f"engine.add takes one conversation and gives one answer, got {count}; add each by itself")
        (id,) = self.submit(request)
        self.added.add(id)
        return id

    @exclusive
    def read(self, input_ids: Any = None, grows: bool = False, prefill_tokens: int | None = None, **kwargs: Any) -> int:
        """Reads a prompt ahead: a later one that begins alike, with the same prefill_tokens, finds it in the cache.

        kwargs: the processor's outputs. Only whole chunks of prefill_tokens are read; grows: of a prompt whose last sound goes on, no
        more than stands before the last window of the encoder in it. Returns an id, whose one event is a `StreamEnd` with
        the sequences that are in the cache then. Raises `InputError`.
        """
        arguments = arguments_of(kwargs, input_ids=input_ids, prefill_tokens=prefill_tokens)
        request = parse_reading(self.thinker_cell, arguments, grows)
        if len(prompt_of(request.inputs)[1]) > 1:
            raise InputError("engine.read takes one conversation; read each by itself")
        (id,) = self.submit(request)
        self.added.add(id)
        return id

    def _parsed(self, arguments: dict, given: bool) -> Request:
        if self.whole:
            return parse_request(with_talker(self.model, self.remote_config), arguments, given)
        if given:
            raise InputError(
                "given=True speaks what is written, and this engine's thinker has no talker; use the whole model's"
            )
        return parse_text_request(self.model, arguments)

    @exclusive
    def step(self) -> list[tuple[int, Any]]:
        """One tick for everybody -> the events of what was added: `[(id, event), ...]`; a `StreamError` ends one that failed."""
        if any(not row.ended for row in self.rows.values()):
            self.tick()
        found = []
        for id in list(self.added):
            if id not in self.rows:  # cancelled, while a function of the caller's ran
                continue
            row = self.rows[id]
            if row.pending_scores is not None:
                self._run_callbacks(id, row)
            while row.events:
                found.append((id, row.events.popleft()))
            if row.ended:
                self.forget(id)
        return found

    def cancel(self, id: int) -> None:
        """Ends an answer early; nothing happens if it has ended."""
        self._cancelled.append(id)  # and no more while a tick runs: this may be called by the collector of garbage
        if exclusive.acquire(blocking=False):
            try:
                self.drop_cancelled()
                self.ranks.finish()
            finally:
                exclusive.release()

    def drop_cancelled(self) -> None:
        """Ends what was cancelled, between two ticks."""
        while self._cancelled and not self.busy:
            id = self._cancelled.popleft()
            self.scheduler.cancel(id)
            self.ranks.release(id)

    @exclusive
    def close(self) -> None:
        """Gives all up, what is under way with an error, and the memory back."""
        if self.closed:
            return
        self.drop_cancelled()
        for id, row in self.rows.items():
            self.scheduler.cancel(id)
            if not row.ended:
                row.fail(InputError("the engine was closed before the end of this answer"))
        self.ranks.close()
        if isinstance(self.speech, SpeechProcess):
            self.speech.close()
        self.closed, self.speech, self._weights = True, None, None
        del self.thinker

    def follow(self) -> None:
        """On all ranks but rank 0, where only that one is asked: does what it plans, until it closes its engine."""
        self.ranks.follow()

    def events(self, id: int) -> Generator[Any, None, None]:
        """The events of one answer; a caller that waits for them runs ticks for all. Closing the iterator cancels the answer."""
        return self._events(id, self.rows[id])

    def _events(self, id, row):
        try:
            while row.events or not row.ended:
                if not row.events:
                    with exclusive:
                        if row.pending_scores is not None:
                            self._run_callbacks(id, row)
                        idle = not (row.events or row.ended or self.tick())  # another thread may have run the tick
                    if idle:
                        time.sleep(IDLE_S)
                    continue
                event = row.events.popleft()
                if isinstance(event, StreamError):
                    raise event.error
                yield event
        finally:
            self.cancel(id)

    def _run_callbacks(self, id, row):
        """Chooses a token by the caller's functions too, which run in their caller's thread while others work."""
        scores, row.pending_scores = row.pending_scores, None
        self._guard(row, self._choose_token, id, *scores)
        self.scheduler.wake(id)
        self._finish_tick(Plan())
        self.ranks.finish()

    @exclusive
    def submit(self, request: Request) -> list[int]:
        """Adds a request -> the ids of its conversations, each as often as it is answered. Raises `InputError`."""
        if self.closed:
            raise InputError("this engine is closed; make another one with model.engine()")
        self.drop_cancelled()
        self.ranks.finish()
        self.ranks.await_begin()
        with self.ranks.defer_interrupts():
            request = self.ranks.begin(request)
            ids = self.enqueue(request)
            self.ranks.submitted(request, ids)
        return ids

    def enqueue(self, request: Request) -> list[int]:
        """Adds the rows of a request on this rank."""
        if not self.rows:
            self._refresh()
        options, (_, valid) = request.options, prompt_of(request.inputs)
        cache, ids = options.past_key_values, []
        found = prompts(self.thinker_cell.config, request.inputs, valid, cache, options.prefill_tokens)
        if request.prefill_only:
            found = [prompt.prefix(request.grows) for prompt in found]
        if self.shared and compiles_ahead(self.model.compile_after):
            self._warm_for(min(len(found) * options.num_return_sequences, LAUNCH_ROWS))
        try:
            for number, prompt in enumerate(prompt for prompt in found for _ in range(options.num_return_sequences)):
                row = self._row(request, number, prompt)
                if prompt.past_tokens:
                    row.past = cache, number, np.flatnonzero(valid[number, : cache.length])
                ids.append(self._schedule(row, number, request))
        except InputError:  # all rows of a request, or none
            for id in ids:
                self.cancel(id)
            raise
        return ids

    def _row(self, request: Request, number: int, prompt: Prompt) -> Sequence:
        row = Sequence(
            prompt,
            Text(prompt.ids, request.text, request.options.for_row(number // request.options.num_return_sequences), number),
            given=request.given,
            prefill_only=request.prefill_only,
        )
        row.started = time.perf_counter()
        if request.speech is not None:
            (row.turn,) = assistant_turns(prompt.ids[None], self.config, request.given)
            row.turn, row.speech = list(map(int, row.turn)), seeded(request.speech)
        return row

    def _schedule(self, row: Sequence, number: int, request: Request) -> int:
        speech, prompt, params, stage = None, row.prompt, row.speech, self.speech
        if params is not None and stage is not None:
            user_tokens = int(user_mask(prompt.ids[None], prompt.ids[None] >= 0, self.config).sum())
            lead = max(ROLE_ROWS - len(row.turn), 0)
            limit = params.talker.max_new_tokens
            speech = Speech(user_tokens + OPENING_ROWS, limit, tuple(params.chunk_frames), lead, params.named)
            speech = stage.job(speech)
        media = tuple((int(call.indices[-1]) + 1, len(call.indices)) for call in prompt.calls)
        limit, named = (1, True) if request.given or request.prefill_only else (request.text.max_new_tokens, request.named)
        whole = prompt.past_tokens or request.options.output_hidden_states  # all of it is read
        keys = () if whole else prompt.keys()
        job = Job(
            len(prompt),
            limit,
            keys,
            media,
            speech,
            prompt.past_tokens,
            row.text.has_callbacks,
            named,
            prompt.chunk,
            request.prefill_only,
        )
        job = self.scheduler.fitted(job)
        id, row.max_tokens = self.ranks.number(job), job.limit
        self.rows[id] = row
        if params is not None and stage is not None:
            stage.begin(id, params, number, job.speech and job.speech.limit)
        return id

    def forget(self, id: int) -> None:
        """Removes an answer, whose events are not read any more."""
        self.rows.pop(id, None)
        self.added.discard(id)
        self.finishing.discard(id)
        if self.speech is not None:
            self.speech.cancel(id)

    def abort_all(self) -> None:
        """Ends all answers without an event."""
        for id, row in list(self.rows.items()):
            row.ended = True
            self.scheduler.cancel(id)
            self.forget(id)


def _blocks_that_fit(nbytes, max_rows, grows):
    """Of each pool, in a part of the memory that is free; nbytes: of a block of all pools, with what is stored beside it."""
    fitting = max(int(MEMORY_SHARE * free_memory_gb()[0] * 1e9 / nbytes), FIRST_BLOCKS)
    return fitting if grows else min(fitting, max_rows * blocks_for(ROW_TOKENS))


MAX_ROWS = 64


@exclusive
def engine_of(model: Any) -> Engine:
    """That of a model, or of a thinker, created at the first call; it begins small and grows.

    A thinker shares the engine of the model that it is a part of, once that has one.
    """
    engine = model.own_engine
    if engine is None or not engine.fits(model):
        engine = model.own_engine = Engine(model, MAX_ROWS, grows=True)
        if engine.whole:
            model.thinker.own_engine = engine
    return engine
