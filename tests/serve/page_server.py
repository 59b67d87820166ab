"""A server without a model, for what the miniature never does: reasoning, tools, failures, long answers at a set pace.

`python -m tests.serve.page_server PORT`. What it answers follows from the words of the last message.
"""

import asyncio
import base64
import json
import sys
from contextlib import suppress
from itertools import count

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from ms_omni.serve.app import Page

KEY = "sk-page"
TEXT = "It is an orange star.\n```python\nprint('<b>star</b>')\n```\nAsk for `more`."
CHUNK_S = 0.08


def sound(seconds, hz=220):
    """Base64 of PCM16 at 24 kHz, shaped as syllables."""
    time = np.arange(int(seconds * 24000)) / 24000
    wave = sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 6)) * np.sin(np.pi * 3 * time) ** 2
    return base64.b64encode((wave * 9000).astype("<i2").tobytes()).decode()


def refuse(status, message, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": {"message": message, "type": "x", "code": None, "param": None}}, status, headers)


async def models(request):
    return JSONResponse({"object": "list", "data": [{"id": "Qwen3-Omni", "object": "model"}]})


async def voices(request):
    return JSONResponse(
        {"voices": [{"id": "Ethan", "name": "Ethan"}, {"id": "Chelsie", "name": "Chelsie"}], "default": "Ethan"}
    )


async def chat(request):
    body = await request.json()
    request.app.state.asked.append(body)
    last = body["messages"][-1]["content"]
    words = last if isinstance(last, str) else last[-1].get("text", "")
    if "key" in words and request.headers.get("authorization") != f"Bearer {KEY}":
        return refuse(401, "Incorrect API key.")
    if "full" in words:
        return refuse(429, "All rows are taken.", retry_after="3")
    return StreamingResponse(stream(body, words), media_type="text/event-stream")


async def stream(body, words):
    def chunk(delta, reason=None, **more):
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    if "think" in words:
        yield chunk({"role": "assistant", "reasoning_content": "Five points, "})
        yield chunk({"reasoning_content": "so a star."})
    if "weather" in words:
        function = {"name": "weather", "arguments": '{"city":'}
        yield chunk({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]})
        yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": ' "Xi\'an"}'}}]}, "tool_calls")
        yield "data: [DONE]\n\n"
        return
    for part in TEXT.split(" ") if "long" not in words else TEXT.split(" ") * 40:
        spoken = (
            {"audio": {"id": "audio_1", "transcript": part + " "}}
            if body["modalities"] != ["text"]
            else {"content": part + " "}
        )
        yield chunk(spoken)
        if "audio" in body["modalities"]:
            yield chunk({"audio": {"id": "audio_1", "data": sound(0.3)}})
        await asyncio.sleep(0.02)
        if "break" in words:
            yield f"data: {json.dumps({'error': {'message': 'The engine has stopped.'}})}\n\n"
            return
    yield chunk({}, "stop")
    yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': 12}})}\n\n"
    yield "data: [DONE]\n\n"


class Conversation:
    """A realtime session that hears an utterance wherever the sound is loud, and answers with six seconds."""

    def __init__(self, socket, log):
        self.socket, self.log, self.ids, self.loop = socket, log, count(1), asyncio.get_running_loop()
        self.loud, self.quiet, self.answering, self.detection = None, 0, None, True

    async def send(self, kind, **fields):
        with suppress(WebSocketDisconnect, RuntimeError):  # he has hung up, which the loop below is told too
            await self.socket.send_text(json.dumps({"type": kind, **fields}))

    def run_soon(self, coroutine):
        """From another thread; returns when it is done."""
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    async def run(self):
        await self.send("session.created", session={})
        async for text in self.socket.iter_text():
            event = json.loads(text)
            kind = event["type"]
            self.log.append(event)
            if kind == "session.update":
                self.detection = event["session"]["audio"]["input"]["turn_detection"]
                await self.send("session.updated", session=event["session"])
            elif kind == "input_audio_buffer.append" and self.detection:
                await self.hear(np.frombuffer(base64.b64decode(event["audio"]), "<i2"))
            elif kind in ("response.create", "response.cancel"):
                self.cancel()
                if kind == "response.create":
                    self.answering = asyncio.create_task(self.answer())

    async def hear(self, samples):
        loud = np.abs(samples).max(initial=0) > 1500
        self.quiet = 0 if loud else self.quiet + len(samples)
        if loud and not self.loud:
            self.loud = f"item_{next(self.ids)}"
            self.cancel()
            await self.send("input_audio_buffer.speech_started", audio_start_ms=0, item_id=self.loud)
        if self.loud and self.quiet > 12000:
            await self.send("input_audio_buffer.speech_stopped", audio_end_ms=0, item_id=self.loud)
            await self.send("input_audio_buffer.committed", item_id=self.loud)
            done = "conversation.item.input_audio_transcription.completed"
            await self.send(done, item_id=self.loud, content_index=0, transcript="Three seven four")
            self.loud = None
            self.answering = asyncio.create_task(self.answer())

    def cancel(self):
        if self.answering:
            self.answering.cancel()

    async def answer(self):
        number = next(self.ids)
        item = {"response_id": f"resp_{number}", "item_id": f"item_{number}", "output_index": 0, "content_index": 0}
        await self.send("response.created", response={"id": f"resp_{number}"})
        for word in ("You", "said", "three,", "seven,", "four.", "And", "so", "on."):
            await self.send("response.output_audio_transcript.delta", delta=word + " ", **item)
            for _ in range(9):
                await self.send("response.output_audio.delta", delta=sound(CHUNK_S), **item)
                await asyncio.sleep(CHUNK_S / 2)
        await self.send("response.output_audio.done", **item)
        await self.send(
            "response.done", response={"id": f"resp_{number}", "status": "completed", "usage": {"output_tokens": 80}}
        )


async def realtime(socket):
    await socket.accept(subprotocol="realtime")
    state = socket.app.state
    state.protocols.append(socket.scope["subprotocols"])
    state.conversation = Conversation(socket, state.events)
    with suppress(RuntimeError):  # closed from here, by a test
        await state.conversation.run()


def create_app():
    routes = [
        Route("/v1/models", models),
        Route("/v1/audio/voices", voices),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        WebSocketRoute("/v1/realtime", realtime),
        Mount("/", Page()),
    ]
    app = Starlette(routes=routes)
    app.state.asked, app.state.events, app.state.protocols = [], [], []
    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), port=int(sys.argv[1]), log_level="warning")
