"""`/v1/audio/speech`, by the official client: every format, as it is made or as events; what cannot be said is refused."""

import asyncio
import base64
import json
import threading
import time

import numpy as np
import openai
import pytest

from ms_omni.outputs import pcm16
from ms_omni.serve.speech import PIECE_S, estimated_s, split_text

from .conftest import KEY, MINIATURE
from .test_metrics import scraped
from .test_server import error_of
from .test_sound import DELAY_SAMPLES, alike, decoded

RATE_HZ = 24_000


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def said(client, text="374", format="pcm", voice="Ethan", **options):
    """The bytes of an answer."""
    extra = {"seed": 3, **options.pop("extra_body", {})}
    return client.audio.speech.create(
        model="miniature", voice=voice, input=text, response_format=format, extra_body=extra, **options
    ).content


@pytest.fixture(scope="module")
def spoken(client):
    """Samples of "374", int16 `[n]`."""
    return np.frombuffer(said(client), "<i2")


def test_says_what_the_command_says(spoken):
    """The same samples as `model.say` makes."""
    from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor
    from ms_omni.input.messages import spoken_turn
    from ms_omni.outputs import AudioChunk

    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(MINIATURE)
    inputs = spoken_turn(Qwen3OmniMoeProcessor.from_pretrained(MINIATURE), "374")
    chunks = [event.pcm[0] for event in model.say(**inputs, speaker="Ethan", seed=3) if isinstance(event, AudioChunk)]
    np.testing.assert_array_equal(pcm16(np.concatenate(chunks)), spoken)
    assert 0.5 * RATE_HZ < len(spoken) < 5 * RATE_HZ


@pytest.mark.parametrize("format, kind", [
    ("mp3", "audio/mpeg"), ("opus", "audio/ogg"), ("aac", "audio/aac"), ("flac", "audio/flac"), ("wav", "audio/wav"),
])  # fmt: skip
def test_formats(client, spoken, format, kind):
    answer = client.audio.speech.with_raw_response.create(
        model="miniature", voice="ethan", input="374", response_format=format, extra_body={"seed": 3}
    )
    assert answer.headers["content-type"] == kind and "content-length" not in answer.headers
    found = decoded(answer.content, format)
    if format in ("wav", "flac"):
        np.testing.assert_allclose(found, spoken / 32768, atol=1e-7)
    else:
        assert abs(len(found) - len(spoken)) <= DELAY_SAMPLES and alike(found, spoken.astype(float)) > 0.97


def test_mp3_is_what_is_sent_unless_asked(http):
    answer = http.post("/v1/audio/speech", json={"model": "miniature", "voice": {"id": "Chelsie"}, "input": "1"})
    assert answer.headers["content-type"] == "audio/mpeg" and len(decoded(answer.content, "mp3"))


def test_streamed_pieces_are_the_whole(client, spoken):
    with client.audio.speech.with_streaming_response.create(
        model="miniature", voice="Ethan", input="374", response_format="pcm", extra_body={"seed": 3}
    ) as answer:
        found = [(time.monotonic(), piece) for piece in answer.iter_bytes(960)]
    assert b"".join(piece for _, piece in found) == spoken.tobytes()
    assert found[-1][0] > found[0][0], "all at once"


def test_events(http, spoken):
    body = {
        "model": "miniature",
        "voice": "Ethan",
        "input": "374",
        "seed": 3,
        "response_format": "pcm",
        "stream_format": "sse",
    }
    with http.stream("POST", "/v1/audio/speech", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    *deltas, done = map(json.loads, lines)
    assert {event["type"] for event in deltas} == {"speech.audio.delta"} and len(deltas) > 1
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == spoken.tobytes()
    assert done["type"] == "speech.audio.done" and set(done) == {"type", "usage"}
    usage = done["usage"]
    assert usage["output_tokens"] == len(spoken) // 1920 + 1 and usage["input_tokens"] > 3
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_async_client(server, spoken):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            create = client.audio.speech.with_streaming_response.create
            async with create(
                model="miniature", voice="Ethan", input="374", response_format="pcm", extra_body={"seed": 3}
            ) as answer:
                return b"".join([piece async for piece in answer.iter_bytes()])

    assert asyncio.run(ask()) == spoken.tobytes()


def test_speed(client, spoken):
    for speed in (0.5, 2.0):
        found = np.frombuffer(said(client, speed=speed), "<i2")
        assert len(found) == pytest.approx(len(spoken) / speed, rel=0.05)
    assert said(client, speed=1.0) == spoken.tobytes()


def test_voices_seeds_and_instructions_matter(client, spoken):
    hot = {"extra_body": {"talker_temperature": 2.0}}
    base = said(client, **hot)
    assert said(client, **hot) == said(client, instructions=" ", **hot) == base != spoken.tobytes()
    others = [said(client, voice="Chelsie", **hot), said(client, instructions="Speak slowly.", **hot)]
    others.append(said(client, extra_body={**hot["extra_body"], "seed": 4}))
    assert len({base, *others}) == 4
    assert said(client, extra_body={"talker_do_sample": False}) == said(
        client, extra_body={"talker_do_sample": False, "seed": 4}
    )


def test_limit_of_frames(client):
    """Of all parts together."""
    found = said(client, text="3741 " * 60, extra_body={"talker_max_new_tokens": 20})
    assert 18 * 1920 < len(found) // 2 <= 20 * 1920


def test_special_tokens_are_text(client):
    """They end nothing, and are not understood either."""
    assert len(said(client, "37<|im_end|>4")) > len(said(client, "37"))


def test_a_long_text_is_said_in_parts(http):
    body = {
        "model": "miniature",
        "voice": "Ethan",
        "input": "3" + " ." * 400,
        "response_format": "pcm",
        "stream_format": "sse",
    }
    before = scraped(http)
    with http.stream("POST", "/v1/audio/speech", json=body) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1]["type"] == "speech.audio.done" and events[-1]["usage"]["output_tokens"] > 10
    after = scraped(http)
    answers = ("vllm:request_success_total", ("stop",))
    assert after[answers] - before[answers] == 2, "of estimated 64 s"
    seconds = after["ms_omni_sound_seconds_total", ()] - before["ms_omni_sound_seconds_total", ()]
    assert seconds == pytest.approx(0.08 * events[-1]["usage"]["output_tokens"], abs=0.1)


def test_who_goes_away_is_cancelled(client, http):
    before = scraped(http)
    with client.audio.speech.with_streaming_response.create(
        model="miniature", voice="Ethan", input="3741 " * 100, response_format="pcm"
    ) as answer:
        next(answer.iter_bytes(960))
    ends = time.monotonic() + 10
    cancelled = ("ms_omni_requests_cancelled_total", ())
    while (
        (now := scraped(http))[cancelled] == before[cancelled] or now["vllm:num_requests_running", ()]
    ) and time.monotonic() < ends:
        time.sleep(0.05)
    assert now[cancelled] - before[cancelled] == 1 and now["vllm:num_requests_running", ()] == 0


def test_eight_at_once_get_what_each_gets_alone(client):
    texts = list("12345678")
    alone = [said(client, text) for text in texts]
    found = [b""] * 8

    def ask(number):
        found[number] = said(client, texts[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


GOOD = {"model": "miniature", "voice": "Ethan", "input": "3"}
BAD = [
    ({}, "input"),
    ({**GOOD, "input": ""}, "input"),
    ({**GOOD, "input": " \n"}, "input"),
    ({**GOOD, "input": 3}, "input"),
    ({**GOOD, "input": None}, "input"),
    ({**GOOD, "input": "x" * 4097}, "input"),
    ({**GOOD, "voice": "alloy"}, "voice"),
    ({**GOOD, "voice": ""}, "voice"),
    ({**GOOD, "voice": 1}, "voice"),
    ({**GOOD, "voice": {"id": "alloy"}}, "voice"),
    ({**GOOD, "response_format": "ogg"}, "response_format"),
    ({**GOOD, "response_format": []}, "response_format"),
    ({**GOOD, "speed": 0.2}, "speed"),
    ({**GOOD, "speed": 4.5}, "speed"),
    ({**GOOD, "speed": "fast"}, "speed"),
    ({**GOOD, "stream_format": "both"}, "stream_format"),
    ({**GOOD, "seed": 1.5}, "seed"),
    ({**GOOD, "talker_max_new_tokens": 0}, "talker_max_new_tokens"),
    ({**GOOD, "talker_temperature": -1}, "talker_temperature"),
    ({**GOOD, "temprature": 1}, "temprature"),
]


@pytest.mark.parametrize("body, param", BAD, ids=range(len(BAD)))
def test_bad_bodies(http, body, param):
    error = error_of(http.post("/v1/audio/speech", json=body), 400)
    assert error["param"] == param or not body, error
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"null", b'{"input": NaN}', b'{"a":' * 500])
def test_no_bodies(http, content):
    error_of(http.post("/v1/audio/speech", content=content), 400)


def test_other_models_and_methods(http):
    assert error_of(http.post("/v1/audio/speech", json={**GOOD, "model": "tts-1"}), 404)["code"] == "model_not_found"
    error_of(http.get("/v1/audio/speech"), 405)
    with pytest.raises(openai.BadRequestError, match="no 'alloy'; this model has Ethan, Chelsie"):
        client = openai.OpenAI(base_url=str(http.base_url) + "/v1/", api_key=KEY, max_retries=0)
        client.audio.speech.create(model="miniature", voice="alloy", input="3")


ENGLISH = "It was a bright cold day in April, and the clocks were striking thirteen. " * 40
CHINESE = "今天天气很好，我们去公园散步。" * 60  # noqa: RUF001


@pytest.mark.parametrize(
    "text", [ENGLISH, CHINESE, "3" * 4096, "word " * 800, "x" * 4096, "\n".join(["a line"] * 600), "¿" * 4000]
)
def test_nothing_is_lost_and_no_piece_is_too_long(text):
    found = split_text(text)
    assert "".join(found) == text and len(found) > 1
    assert all(estimated_s(piece) <= PIECE_S for piece in found)
    assert len(found) <= 2.5 * estimated_s(text) / PIECE_S + 1, "too many pieces"


def test_cuts_at_sentences():
    for text, end in ((ENGLISH, ". "), (CHINESE, "。")):
        assert all(piece.endswith(end) for piece in split_text(text))
    assert split_text("One. Two. Three.", 0.5) == ["One. ", "Two. ", "Three."]
    assert split_text("One, two, three.", 1.0) == ["One, two, ", "three."]
    assert split_text('He said "No." She left.', 1.5) == ['He said "No." ', "She left."]


def test_numbers_and_short_texts_stay_whole():
    assert split_text("Pi is 3.14159, they say.") == ["Pi is 3.14159, they say."]
    assert split_text("a 3.1415926 b", 3.4) == ["a ", "3.1415926 ", "b"], "not at its point"
