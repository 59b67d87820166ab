"""The one thread that runs the engine, and the answers that the event loop reads from it.

event loop      submit, cancel  ----commands---->  thread: engine.add, engine.cancel, engine.step
                Answer          <----events------
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
from .metrics import AnswerMeter
from .protocol import busy

if TYPE_CHECKING:  # MindSpore takes seconds, and the server listens before
    from ..engine.engine import Engine

IDLE_S = 0.001
LOG = logging.getLogger("ms_omni.serve")


class Answer:
    """One answer: an async iterator of `TextDelta`, `AudioChunk` and a last `StreamEnd`. Raises what went wrong with it.

    Whoever stops reading it must call `cancel`; it may be called at any time, by the event loop. end_ids: tokens that end it. prefill:
    it only reads a prompt ahead of its answer, and has no events but its end.
    """

    def __init__(self, worker: "EngineThread", meter: AnswerMeter | None = None, prefill: bool = False):
        self._worker, self._events, self._meter, self.prefill = worker, asyncio.Queue(), meter, prefill
        self.id: int | None = None
        self.ended = False
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

    def claim(self) -> None:
        """Somebody asks for what was begun before; from now on it counts."""
        if self._meter is not None:
            self._meter.claim()

    def cancel(self, complete: bool = False) -> None:
        """Frees its row within a tick; nothing happens if it has ended. complete: its caller has all that he wanted."""
        if not self.ended:
            if self._meter is not None:
                self._meter.leave(complete)
            self._worker.cancel(self)

    def put(self, event: Any) -> None:
        """Called by the event loop with what the thread has found."""
        if isinstance(event, (StreamEnd, StreamError)):
            if self.ended:
                return
            self.ended = True
            self._worker.forget(self)
        if self._meter is not None:
            self._meter.observe(event)
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
        self._reserved = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.ready: asyncio.Future = loop.create_future()
        self.failure: Exception | None = None
        self.stopped = asyncio.Event()
        self.engine: Any = None

    # -- the event loop ----------------------------------------------------------------------------------------------

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """For callers with several answers, one behind the other: once there is room for the first, none of them is refused, and the
        end of the server waits for the last.
        """
        self.check_room()
        self._reserved += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._reserved -= 1
            self._update_idle()

    async def submit(
        self,
        inputs: Mapping[str, Any],
        meter: AnswerMeter | None = None,
        reserved: bool = False,
        prefill: bool = False,
        **options: Any,
    ) -> Answer:
        """The answer to model inputs, with arguments of `engine.add`, or for `prefill` of `engine.read`; meter: observes its events;
        reserved: within the block of `reserved`. Raises `InputError`, and `ApiError` when too many wait.
        """
        if self.stopped.is_set():
            raise ProcessError(f"the engine has stopped: {self.failure or 'the server ends'}")
        if not reserved and not prefill:
            self.check_room()
        answer = Answer(self, meter, prefill)
        self.answers.add(answer)
        self.idle.clear()
        self._commands.put(lambda: self._add(answer, {**inputs, **options}))
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
    def pending(self) -> int:
        """Answers at work and waiting."""
        return sum(not answer.prefill for answer in self.answers)

    def check_room(self) -> None:
        """Raises `ApiError` 429 when too many wait."""
        if self.pending >= self.limit:
            raise busy(f"{self.pending} answers are at work or waiting already; try again later")

    def cancel(self, answer: Answer) -> None:
        """Ends an answer early, whether or not the engine has it already."""
        answer.ended = True
        self.forget(answer)
        self._commands.put(lambda: self._cancel(answer))

    def forget(self, answer: Answer) -> None:
        """An answer has ended."""
        self.answers.discard(answer)
        self._update_idle()

    def _update_idle(self):
        if not self.answers and not self._reserved:
            self.idle.set()

    def close(self) -> None:
        """Ends the thread behind the tick under way; what is not answered yet fails."""
        self._commands.put(None)

    # -- the thread --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until it is closed, or the engine fails as a whole."""
        error = None
        try:
            self.engine = self._load()
            self._resolve(self.ready, self.engine, None)
            while (command := self._next()) is not None:
                command()
        except Exception as problem:
            if self.engine is not None:  # else whoever waits for it says why
                LOG.exception("the engine has stopped")
            error = problem
        finally:
            self._loop.call_soon_threadsafe(self._engine_ended, error)
            if self.engine is not None:
                self.engine.close()

    def _next(self):
        """The next command; a tick where there is none and an answer is under way."""
        try:
            return self._commands.get(block=not self._by_id)
        except queue.Empty:
            return self._tick

    def _tick(self):
        started = time.perf_counter()
        events = self.engine.step()
        deliveries = [(self._by_id[id], event) for id, event in events if id in self._by_id]
        for id, event in events:
            if isinstance(event, (StreamEnd, StreamError)):
                self._by_id.pop(id, None)
        if deliveries:
            self._loop.call_soon_threadsafe(_deliver, deliveries)
        elif time.perf_counter() - started < IDLE_S:  # all speech is far enough ahead of its listeners
            time.sleep(IDLE_S)

    def _add(self, answer, arguments):
        if answer.ended:  # given up before its turn
            return
        try:
            answer.id = id = (self.engine.read if answer.prefill else self.engine.add)(**arguments)
        except Exception as error:
            return self._resolve(answer.added, None, error)
        answer.end_ids = self.engine.rows[id].text.params.eos_token_id
        self._by_id[id] = answer
        self._resolve(answer.added, None, None)

    def _cancel(self, answer):
        if self._by_id.pop(answer.id, None) is not None:
            self.engine.cancel(answer.id)

    def _resolve(self, future, value, error):
        self._loop.call_soon_threadsafe(_settle, future, value, error)

    def _engine_ended(self, error):
        """Called by the event loop when there is no engine any more."""
        self.failure = error
        self.stopped.set()
        stopped = ProcessError(f"the engine has stopped: {error or 'the server ends'}")
        _settle(self.ready, None, error or stopped)
        for answer in list(self.answers):
            _settle(answer.added, None, stopped)
            answer.put(StreamError(stopped))


def _deliver(deliveries):
    for answer, event in deliveries:
        answer.put(event)


def _settle(future, value, error):
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
