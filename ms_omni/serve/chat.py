"""`POST /v1/chat/completions`."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import InputError, OmniError
from ..outputs import StreamError
from .chat_request import check, conversation, engine_error, engine_options, processor_error, processor_options, seeds
from .completion import Choice, Delta, Message
from .grammar import Constraint, grammar_of, usable_tools
from .protocol import DONE, EventStream, busy, error_event, event, read_body, unless_disconnected, within
from .schema import ChatBody
from .server import Server

FIRST_EVENT_S = 10.0
"""How long a stream waits for its first event, so that what goes wrong before is told by a status."""


async def completions(request: Request) -> Response:
    """An answer, or several, to a conversation."""
    server: Server = request.app.state.server
    server.check_ready()
    server.worker.check_room()
    body = await read_body(request, ChatBody)
    check(body, server)
    completion = Completion(server, body)
    if not body.stream:
        whole = await unless_disconnected(request, completion.whole())
        return await server.in_pool(lambda _: JSONResponse(whole))  # with sound it is long
    stream = await unless_disconnected(request, completion.begin_stream())
    return EventStream(stream, closed=completion.close)


class Completion:
    """The answers to one body."""

    def __init__(self, server: Server, body: ChatBody):
        self.server, self.body = server, body
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.count = body.n or 1
        self.choices: list[Choice] = []
        self._answers: list[Any] = []
        self._prompt_tokens: dict[str, int] = {}

    async def whole(self) -> dict[str, Any]:
        """The JSON of an answer that is not streamed."""
        messages = [Message(self._format) for _ in range(self.count)]
        logprobs: list[list[Any]] = [[] for _ in messages]
        try:
            await self._submit()
            async for index, deltas in self._deltas():
                messages[index].add(deltas)
                logprobs[index] += self.choices[index].logprobs()
        finally:
            self.close()
        bodies = await self.server.in_pool(lambda _: [message.body() for message in messages])
        choices = [
            {
                "index": index,
                "message": message,
                "logprobs": self._shown(logprobs[index]),
                "finish_reason": choice.finish_reason,
            }
            for index, (message, choice) in enumerate(zip(bodies, self.choices))
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}

    async def begin_stream(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream; what goes wrong until the first one, or in its first seconds, is raised here."""
        source, first = self._deltas(), None
        try:
            await self._submit()
            first = asyncio.ensure_future(anext(source, None))
            await asyncio.wait([first], timeout=FIRST_EVENT_S)
            if first.done():
                first.result()
            return self._events(source, first)
        except BaseException:
            if first is not None:
                first.cancel()
            self.close()
            raise

    async def _events(self, source, first) -> AsyncGenerator[bytes, None]:
        try:
            opened = set()
            item = await first
            while item is not None:
                index, deltas = item
                if index not in opened:
                    opened.add(index)
                    content = None if self.body.speaks else ""
                    yield event(self._chunk(index, {"role": "assistant", "content": content, "refusal": None}))
                logprobs = self._shown(self.choices[index].logprobs())
                for delta in deltas or ([{}] if logprobs else []):
                    yield event(self._chunk(index, delta, logprobs=logprobs))
                    logprobs = None
                if (reason := self.choices[index].finish_reason) is not None:
                    yield event(self._chunk(index, {}, reason))
                item = await anext(source, None)
            if self.body.include_usage:
                yield event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})
        except Exception as error:
            yield error_event(error)
        else:
            yield DONE
        finally:
            first.cancel()
            self.close()

    @property
    def _format(self):
        """Of the sound, None for an answer in text."""
        return self.body.audio.format if self.body.speaks and self.body.audio else None

    def _head(self, kind):
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.server.settings.name,
            "service_tier": "default",
            "system_fingerprint": self.server.fingerprint,
        }

    def _shown(self, logprobs):
        return {"content": logprobs, "refusal": None} if self.body.logprobs and logprobs else None

    def _chunk(self, index, delta, reason=None, logprobs=None):
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self.body.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    # -- the engine --------------------------------------------------------------------------------------------------

    async def _submit(self):
        server, body = self.server, self.body
        tools = usable_tools(body)
        messages = await server.in_pool(lambda _: conversation(body.messages, server.transcripts))
        try:
            inputs = await server.prepare(messages, **processor_options(body, tools, server.processor.chat_template))
        except OmniError as error:
            raise processor_error(error) from None
        self._prompt_tokens = server.prompt_tokens(inputs["input_ids"])
        thinking = server.opens_thoughts(inputs["input_ids"])
        constraints = await server.in_pool(lambda _: self._constraints(tools, thinking))
        options = {**engine_options(body, server), "tokenizer": server.processor.tokenizer}
        if tools and body.speaks and server.call_token is not None:  # calls are not spoken
            options["unspoken_from"] = [server.call_token]
        for seed, constraint in zip(seeds(body.seed, self.count), constraints):
            if constraint is not None:
                options["logits_processor"] = [constraint]
            try:
                self._answers.append(await server.submit(inputs, seed=seed, **options))
            except InputError as error:
                raise engine_error(error) from None
            self.choices.append(self._choice(tools, thinking))

    def _constraints(self, tools, thinking):
        grammars = self.server.grammars
        grammar = grammars and grammar_of(self.body, tools, grammars.mark, thinking)
        if not (grammars and grammar):
            return [None] * self.count
        return [Constraint(grammars.matcher(*grammar)) for _ in range(self.count)]

    def _choice(self, tools, thinking):
        body = self.body
        return Choice(
            body.stops,
            thinking=thinking,
            calls=(1 if body.parallel_tool_calls is False else None) if tools else 0,
            texts=self.server.token_texts if body.logprobs else None,
            end_ids=self.server.end_ids,
            format=self._format,
            transcripts=self.server.transcripts,
            talker_limit=body.talker_max_new_tokens,
            stream=bool(body.stream),
        )

    async def _deltas(self) -> AsyncIterator[tuple[int, Sequence[Delta]]]:
        """`(index, deltas)` as they come, until all choices have ended."""
        ends = asyncio.get_running_loop().time() + self.server.settings.request_s
        events: asyncio.Queue = asyncio.Queue()
        pumps = [asyncio.ensure_future(_pump(index, answer, events)) for index, answer in enumerate(self._answers)]
        try:
            while any(choice.finish_reason is None for choice in self.choices):
                try:
                    index, item = await within(ends - asyncio.get_running_loop().time(), events.get())
                except asyncio.TimeoutError:
                    for late in self._cut_off():
                        yield late
                    return
                choice = self.choices[index]
                if choice.finish_reason is not None:
                    continue
                deltas = choice.take(item)
                if choice.full:
                    self._answers[index].cancel(complete=True)
                    deltas += choice.end("stop")
                if deltas or choice.finish_reason is not None:
                    yield index, deltas
        finally:
            for pump in pumps:
                pump.cancel()

    def _cut_off(self):
        """What there is when the time is over. Raises `ApiError` where that is nothing."""
        if not any(choice.tokens for choice in self.choices):
            seconds = self.server.settings.request_s
            raise busy(f"there was no answer in {seconds:g} s; try again later", 503, "timeout", again=False)
        self.close()
        return [(n, choice.end("length")) for n, choice in enumerate(self.choices) if choice.finish_reason is None]

    def close(self) -> None:
        """Cancels what is not answered yet."""
        for answer in self._answers:
            answer.cancel()

    def _usage(self):
        text = sum(choice.tokens for choice in self.choices)
        frames = sum(choice.frames for choice in self.choices)
        prompt = sum(self._prompt_tokens.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": text + frames,
            "total_tokens": prompt + text + frames,
            "prompt_tokens_details": {**self._prompt_tokens, "cached_tokens": max(choice.cached for choice in self.choices)},
            "completion_tokens_details": {
                "audio_tokens": frames,
                "text_tokens": text,
                "reasoning_tokens": sum(choice.thought_tokens for choice in self.choices),
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


async def _pump(index, answer, events):
    try:
        async for item in answer:
            events.put_nowait((index, item))
    except Exception as error:
        events.put_nowait((index, StreamError(error)))


ROUTES = [Route("/v1/chat/completions", completions, methods=["POST"])]
