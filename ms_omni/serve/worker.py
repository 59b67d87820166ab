"""The one thread that works the engine, and the answers that the event loop reads from it.

event loop      ask, cancel  ----commands---->  thread: engine.add, engine.cancel, engine.step
                Answer       <----events------
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import ProcessError
from ..outputs import StreamEnd, StreamError
from .errors import busy
from .metrics import end_of

if TYPE_CHECKING:  # MindSpore takes seconds, and the server listens before
    from ..engine.engine import Engine
    from .metrics import Measured

IDLE_S = 0.001
LOG = logging.getLogger("ms_omni.serve")


class Answer:
    """One answer: an async iterator of `TextDelta`, `AudioChunk` and a last `StreamEnd`. Raises what went wrong with it.

    Whoever stops reading it must call `cancel`; it may be called at any time, by the event loop. finish_reason: of one that has ended:
    "stop", "length" (as many tokens, or as much time, as it may have, or a full cache) or "error". end_ids: tokens that end it. reads:
    it reads ahead of an answer, and is none.
    """

    def __init__(self, worker: "EngineThread", measured: "Measured | None" = None, reads: bool = False):
        self._worker, self._events, self._measured, self.reads = worker, asyncio.Queue(), measured, reads
        self.id: int | None = None
        self.ended = False
        self.finish_reason: str | None = None
        self.end_ids: tuple[int, ...] = ()
        self.added: asyncio.Future = asyncio.get_running_loop().create_future()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self.ended and self._events.empty():
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, StreamError):
            raise event.error
        return event

    def take(self) -> None:
        """Somebody wants what was begun before he did; from now on it counts."""
        if self._measured is not None:
            self._measured.take()

    def cancel(self, wanted: bool = False) -> None:
        """Frees its row within a tick; nothing happens if it has ended. wanted: its caller has all that he asked for."""
        if not self.ended:
            if self._measured is not None:
                self._measured.leave(wanted)
            self._worker.cancel(self)

    def put(self, event: Any) -> None:
        """By the event loop, what the thread has found."""
        if isinstance(event, (StreamEnd, StreamError)):
            if self.ended:
                return
            self.ended, self.finish_reason = True, end_of(event)
            self._worker.forget(self)
        if self._measured is not None:
            self._measured.hear(event)
        self._events.put_nowait(event)


class EngineThread(threading.Thread):
    """Loads a model with `load`, then answers until `close`.

    load: returns the engine; called in this thread, which is the only one that enters MindSpore. loop: where answers are read.
    limit: answers at work and waiting; more are refused (429). `ready` is done when the engine is, or holds why there is none.
    """

    def __init__(self, load: "Callable[[], Engine]", loop: asyncio.AbstractEventLoop, limit: int):
        super().__init__(name="engine", daemon=True)
        self._load, self._loop, self.limit = load, loop, limit
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._by_id: dict[int, Answer] = {}  # of this thread alone
        self.answers: set[Answer] = set()  # of the event loop
        self._calls: set[asyncio.Future] = set()
        self._held = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.ready: asyncio.Future = loop.create_future()
        self.failure: Exception | None = None
        self.stopped = asyncio.Event()
        self.engine: Any = None

    # -- the event loop's side ---------------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """For who asks several times, one behind the other: if there is room for the first, he is not refused later, and the end
        of the server waits for the last.
        """
        self.check_room()
        self._held += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._held -= 1
            self._look()

    async def ask(
        self,
        inputs: Mapping[str, Any],
        measured: "Measured | None" = None,
        held: bool = False,
        reads: bool = False,
        **options: Any,
    ) -> Answer:
        """The answer to model inputs, with arguments of `engine.add`, or if it reads alone `engine.read`; measured: is told of its
        events; held: within the block of `held`. Raises `InputError`, and `ApiError` when too many wait.
        """
        if self.stopped.is_set():
            raise ProcessError(f"the engine has stopped: {self.failure or 'the server ends'}")
        if not held and not reads:
            self.check_room()
        answer = Answer(self, measured, reads)
        self.answers.add(answer)
        self.idle.clear()
        self._commands.put(lambda: self._add(answer, {**inputs, **options}, reads))
        try:
            await answer.added
        except asyncio.CancelledError:  # the caller has gone
            answer.cancel()
            raise
        except BaseException:  # refused
            self.cancel(answer)
            raise
        return answer

    @property
    def asked(self) -> int:
        """Answers at work and waiting."""
        return sum(not answer.reads for answer in self.answers)

    def check_room(self) -> None:
        """Raises `ApiError` 429 when too many wait."""
        if self.asked >= self.limit:
            raise busy(f"{self.asked} answers are at work or waiting already; try again later")

    def cancel(self, answer: Answer) -> None:
        """Ends an answer early, whether or not it has begun."""
        answer.ended = True
        self.forget(answer)
        self._commands.put(lambda: self._cancel(answer))

    def forget(self, answer: Answer) -> None:
        """It has ended."""
        self.answers.discard(answer)
        self._look()

    def _look(self):
        if not self.answers and not self._held:
            self.idle.set()

    async def call(self, function: Callable[[], Any]) -> Any:
        """What a function returns that is called between two ticks, by the thread that owns the engine."""
        done = self._loop.create_future()
        self._calls.add(done)
        self._commands.put(lambda: self._tell(done, *_outcome(function)))
        try:
            return await done
        finally:
            self._calls.discard(done)

    def close(self) -> None:
        """Ends the thread behind the tick under way; what is not answered yet fails."""
        self._commands.put(None)

    # -- the thread --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Of the thread: until it is closed, or the engine fails as a whole."""
        error = None
        try:
            self.engine = self._load()
            self._tell(self.ready, self.engine, None)
            while (command := self._next()) is not None:
                command()
        except Exception as problem:
            if self.engine is not None:  # else whoever waits for it says why
                LOG.exception("the engine has stopped")
            error = problem
        finally:
            self._loop.call_soon_threadsafe(self._over, error)
            if self.engine is not None:
                self.engine.close()

    def _next(self):
        """The next command; a tick, where nobody wants anything and somebody waits for an answer."""
        try:
            return self._commands.get(block=not self._by_id)
        except queue.Empty:
            return self._tick

    def _tick(self):
        started = time.perf_counter()
        events = self.engine.step()
        found = [(self._by_id[id], event) for id, event in events if id in self._by_id]
        for id, event in events:
            if isinstance(event, (StreamEnd, StreamError)):
                self._by_id.pop(id, None)
        if found:
            self._loop.call_soon_threadsafe(_hand_out, found)
        elif time.perf_counter() - started < IDLE_S:  # everybody is ahead of his listener
            time.sleep(IDLE_S)

    def _add(self, answer, arguments, reads):
        if answer.ended:  # given up before its turn
            return
        answer.id, error = _outcome(lambda: (self.engine.read if reads else self.engine.add)(**arguments))
        if error is None:
            answer.end_ids = self.engine.rows[answer.id].text.params.eos_token_id
            self._by_id[answer.id] = answer
        self._tell(answer.added, None, error)

    def _cancel(self, answer):
        if self._by_id.pop(answer.id, None) is not None:
            self.engine.cancel(answer.id)

    def _tell(self, future, value, error):
        self._loop.call_soon_threadsafe(_settle, future, value, error)

    def _over(self, error):
        """By the event loop: there is no engine any more."""
        self.failure = error
        self.stopped.set()
        stopped = ProcessError(f"the engine has stopped: {error or 'the server ends'}")
        _settle(self.ready, None, error or stopped)
        for call in self._calls:  # what the thread has not got to
            _settle(call, None, stopped)
        for answer in list(self.answers):
            _settle(answer.added, None, stopped)
            answer.put(StreamError(stopped))


def _hand_out(found):
    for answer, event in found:
        answer.put(event)


def _settle(future, value, error):
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _outcome(function):
    try:
        return function(), None
    except Exception as error:
        return None, error
