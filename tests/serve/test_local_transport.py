"""An application asked without a socket: answers come piece by piece, and who closes one has gone away."""

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from ms_omni.serve.run import BASE_URL, LocalTransport


def ask(handler, work, path="/"):
    """What `work(client)` returns, where `handler` answers."""

    async def run():
        app = Starlette(routes=[Route("/", handler, methods=["GET", "POST"])])
        async with httpx.AsyncClient(transport=LocalTransport(app), base_url=BASE_URL, timeout=None) as client:
            return await work(client)

    return asyncio.run(asyncio.wait_for(run(), 10))


def test_bodies_and_headers_arrive():
    async def handler(request):
        return JSONResponse(
            {"body": (await request.body()).decode(), "a": request.headers["x-a"], "q": request.query_params["q"]}
        )

    async def work(client):
        return await client.post("/?q=1", content=b"hello", headers={"X-A": "b"})

    response = ask(handler, work)
    assert response.status_code == 200 and response.json() == {"body": "hello", "a": "b", "q": "1"}


def test_an_answer_comes_piece_by_piece_and_is_not_made_faster_than_it_is_read():
    made = []

    async def handler(request):
        async def pieces():
            for number in range(100):
                made.append(number)
                yield f"{number} "

        return StreamingResponse(pieces())

    async def work(client):
        async with client.stream("GET", "/") as response:
            found = ""
            async for text in response.aiter_text():
                await asyncio.sleep(0)
                found += text
                assert len(made) <= len(found.split()) + 8
            return found

    assert ask(handler, work).split() == [f"{number}" for number in range(100)]


@pytest.mark.parametrize("streams", [True, False])
def test_who_closes_an_answer_has_gone_away(streams):
    heard = asyncio.Event()

    async def pieces():
        try:
            while True:
                yield "more"
                await asyncio.sleep(0.01)
        finally:
            heard.set()

    async def handler(request):
        if streams:
            return StreamingResponse(pieces())
        try:
            await request.body()
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
        except ClientDisconnect:
            pass
        heard.set()
        return JSONResponse({})

    async def work(client):
        if streams:
            async with client.stream("GET", "/") as response:
                await response.aiter_text().__anext__()
        else:
            asking = asyncio.ensure_future(client.get("/"))
            await asyncio.sleep(0.05)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await heard.wait()
        return True

    assert ask(handler, work)


def test_what_fails_is_told():
    async def handler(request):
        raise RuntimeError("out of luck")

    async def work(client):
        return (await client.get("/")).status_code

    assert ask(handler, work) == 500
