"""Bodies that are refused with a reason, and answers that go on for a while: whoever goes away ends them."""

import asyncio
import json

import pytest

from ms_omni.serve.affinity import ANY_ENGINE, affinity_of
from ms_omni.serve.protocol import MAX_MISTAKES, MAX_SEPARATORS, MAX_VALUES, ApiError, Body, EventStream, parse_body, within
from ms_omni.serve.realtime.events import decoded


class Wanted(Body):
    text: str
    inner: dict[str, list[str]] | None = None
    share: float | None = None


def deep(depth):
    return b'{"text": "x", "inner": ' + b'{"a": ' * depth + b"[]" + b"}" * depth + b"}"


REFUSED = {
    "nothing": (b"", "the body is not JSON"),
    "half of it": (b'{"text": ', "the body is not JSON"),
    "no UTF-8": (b'{"text": "\xff"}', "the body is not JSON"),
    "a long number": (b'{"share": ' + b"1" * 5000 + b"}", "the body is not JSON"),
    "very deep": (deep(50_000), "the body is not JSON"),
    "deep": (deep(300), "nested more than 200 deep"),
    "a list": (b"[]", "the body is a list, expected a JSON object"),
    "half of a pair": (b'{"text": "\\ud800"}', "half of a pair of surrogates"),
    "half of a pair, far in": (b'{"text": "x", "inner": {"a": ["b", "\\udfff"]}}', "half of a pair of surrogates"),
    "half of a pair as a name": (b'{"text": "x", "\\ud800": 1}', "half of a pair of surrogates"),
    "no number": (b'{"text": "x", "share": NaN}', "share: "),
    "left out": (b"{}", "text is missing"),
    "one too many": (b'{"text": "x", "txt": 1}', "unknown argument 'txt'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_said(what):
    body, message = REFUSED[what]
    with pytest.raises(ApiError) as caught:
        parse_body(body, Wanted)
    assert caught.value.status == 400 and message in caught.value.message and len(caught.value.message) < 400


@pytest.mark.parametrize("item", ["0", "[]", "{}", '""'])
def test_small_bodies_do_not_grow(item):
    for count, status in ((MAX_SEPARATORS + 1, 413), (MAX_VALUES + 1, 400)):
        text = '{"text": "x", "inner": {"a": [' + ",".join([item] * count) + "]}}"
        for read in (lambda text: parse_body(text.encode(), Wanted), decoded):
            with pytest.raises(ApiError, match="most that this server takes") as caught:
                read(text)
            assert caught.value.status == status
    assert affinity_of(b'{"messages": [' + b"[]," * MAX_SEPARATORS + b"[]]}") == ANY_ENGINE


def test_mistakes_without_end_are_counted():
    with pytest.raises(ApiError, match=f"wrong in {MAX_MISTAKES + 1} places") as caught:
        parse_body(json.dumps({"text": "x", "inner": {"a": [0] * (MAX_MISTAKES + 1)}}), Wanted)
    assert caught.value.status == 400


def test_commas_of_long_texts_are_taken():
    assert parse_body(json.dumps({"text": "a, b, " * 100_000}), Wanted).text


def test_a_whole_pair_is_a_text():
    assert parse_body(json.dumps({"text": "\U0001f600 ä"}), Wanted).text == "\U0001f600 ä"


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
