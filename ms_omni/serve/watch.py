"""Around every request: it is counted, and one line says what it was and how long it took. What was asked stays out of it."""

import json
import re
import sys
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Measured

if TYPE_CHECKING:
    from .server import Server

QUIET = ("/health", "/ready", "/metrics")
"""Asked every few seconds by machines: they are not told of as long as they succeed."""
GONE = 499
"""The status of a request whose caller went away before there was one."""
OTHER = "other"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SPECIAL = re.compile(r"(<\|[a-z_]+_pad\|>)\1+")


class Answers:
    """Those of a request, summed up: a socket may be open for hours."""

    def __init__(self) -> None:
        self.read = self.written = 0
        self.sound_s = 0.0
        self._going: list[Measured] = []

    def add(self, answer: Measured) -> None:
        """Of one that begins."""
        self.sum_up()
        self._going.append(answer)

    def sum_up(self, last: bool = False) -> None:
        """Of those that have ended, or all."""
        ended = [one for one in self._going if last or one.reason is not None]
        self._going = [one for one in self._going if one not in ended]
        for one in ended:
            if one.taken:
                self.read, self.written = self.read + one.prompt_tokens, self.written + len(one.ids)
                self.sound_s += one.times.sound_s


_answers: ContextVar[Answers | None] = ContextVar("answers", default=None)


def note(answer: Measured) -> None:
    """An answer belongs to the request that is being handled."""
    answers = _answers.get()
    if answers is not None:
        answers.add(answer)


class Watch:
    """Middleware, around all others."""

    def __init__(self, app: ASGIApp, server: "Server"):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        started, status, answers = time.monotonic(), GONE, Answers()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.close" and status == GONE:
                status = 403  # as servers say it to whoever asked for a socket
            await send(message)

        token = _answers.set(answers)
        try:
            await self.app(scope, receive, watched)
        finally:
            _answers.reset(token)
            self._end(scope, status, time.monotonic() - started, answers)

    def _end(self, scope, status, seconds, answers):
        method = scope.get("method", "WS")
        handler, metrics = _route(scope) or ("page" if status < 400 else OTHER), self.server.metrics
        named = method if method in (*METHODS, "WS") else OTHER
        metrics.requests.labels(named, str(status), handler).inc()
        if method != "WS":  # which lasts as long as people talk
            metrics.request_s.labels(named, handler).observe(seconds)
        if not self.server.settings.access_log or (scope["path"] in QUIET and status == 200):
            return
        parts = [f"{1000 * seconds:.0f} ms"]
        answers.sum_up(last=True)
        if answers.read:
            parts.append(f"{answers.read} + {answers.written} tokens")
        if answers.sound_s:
            parts.append(f"{answers.sound_s:.2f} s of sound")
        moment = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{moment} {named} {quote(scope['path'])[:200]} {status} {', '.join(parts)}", file=sys.stderr, flush=True)


def tell_content(processor: Any, asked: Any, answer: Measured) -> None:
    """A line of JSON with a prompt's ids `[T]` and an answer as text; for those who run a server and want to see what it is asked."""
    decode = processor.tokenizer.decode
    content = {
        "asked": SPECIAL.sub(r"\1", decode(list(map(int, asked)))),
        "answered": decode(answer.ids),
        "end": answer.reason,
    }
    print(json.dumps(content, ensure_ascii=False), file=sys.stderr, flush=True)


def _route(scope):
    """The path as the routes have it: there are as many as those, whatever callers ask for. None for what is no route's."""
    endpoint = scope.get("endpoint")
    app = scope.get("app")
    for route in getattr(app, "routes", ()):
        if endpoint is not None and getattr(route, "endpoint", None) is endpoint:
            return route.path
    return None
