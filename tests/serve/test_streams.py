"""Answers that go on for a while: whoever goes away ends them, whatever they are waiting for."""

import asyncio

import pytest

from ms_omni.serve.protocol import EventStream, within


def test_work_within_a_time():
    async def main():
        assert await within(5, asyncio.sleep(0, "done")) == "done"
        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, asyncio.sleep(60))
        with pytest.raises(ZeroDivisionError):
            await within(5, _fails())
        waiting = asyncio.ensure_future(within(60, asyncio.sleep(60)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


async def _fails():
    return 1 / 0


@pytest.mark.parametrize("swallowed", [0, 1, 3])
def test_who_leaves_ends_a_stream_that_swallows_cancellations(swallowed):
    """As `asyncio.wait_for` of Python 3.10 and 3.11 does, where what it waits for is done at the same moment."""
    closed, left = [], swallowed

    async def events():
        try:
            while True:
                yield b"data: 1\n\n"
        finally:
            closed.append(True)

    async def send(message):
        nonlocal left
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            if not left:
                raise
            left -= 1

    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def main():
        await asyncio.wait_for(EventStream(events())({"type": "http"}, receive, send), 5)

    asyncio.run(main())
    assert closed == [True]
