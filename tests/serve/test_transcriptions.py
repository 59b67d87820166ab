"""`/v1/audio/transcriptions` and `/translations`, by the official client and by forms as others write them."""

import asyncio
import io
import json
import socket
import time

import av
import numpy as np
import openai
import pytest
import soundfile

from ms_omni.errors import CheckpointError
from ms_omni.serve.settings import TRANSCRIBE_CHINESE, Prompts, language_code
from ms_omni.serve.sound import encode

from .conftest import KEY, MINIATURE
from .test_metrics import scraped
from .test_server import error_of

SAMPLES = MINIATURE / "samples"
DIGITS = SAMPLES / "digits.wav"
PATH = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def sound():
    """Samples of "374" float32 `[n]` at 16 kHz."""
    samples, rate_hz = soundfile.read(DIGITS, dtype="float32")
    assert rate_hz == 16_000
    return samples


def heard(client, **options):
    with DIGITS.open("rb") as file:
        return client.audio.transcriptions.create(model="miniature", file=file, **options)


def test_json(client):
    found = heard(client)
    assert type(found).__name__ == "Transcription" and found.text == "374"
    usage = found.usage
    assert usage.type == "tokens" and usage.input_tokens + usage.output_tokens == usage.total_tokens
    details = usage.input_token_details
    assert details.audio_tokens > 10 and details.audio_tokens + details.text_tokens == usage.input_tokens


def test_text(client, http):
    assert heard(client, response_format="text") == "374\n"
    answer = http.post(PATH, data={"model": "miniature", "response_format": "text"}, files={"file": DIGITS.open("rb")})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_verbose_json(client, sound):
    found = heard(client, response_format="verbose_json", language="en")
    assert type(found).__name__ == "TranscriptionVerbose" and found.text == "374" and found.language == "english"
    assert found.duration == pytest.approx(len(sound) / 16_000, abs=1e-3)
    assert found.usage.type == "duration" and found.usage.seconds == np.ceil(found.duration)
    assert found.segments is None and found.words is None, "not known, so not told"
    assert heard(client, response_format="verbose_json").language == "unknown"


def test_stream(client):
    events = list(heard(client, stream=True, include=["logprobs"]))
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"} and len(deltas) > 1
    assert done.type == "transcript.text.done" and done.text == "".join(event.delta for event in deltas) == "374"
    assert done.usage.type == "tokens" and done.usage.output_tokens > 0
    assert [one.token for event in deltas for one in event.logprobs] == [one.token for one in done.logprobs]


def test_logprobs(client):
    found = heard(client, include=["logprobs"])
    assert (
        "".join(one.token for one in found.logprobs)
        == "374"
        == bytes(int(byte) for one in found.logprobs for byte in one.bytes).decode()
    )
    assert all(-1 < one.logprob <= 0 for one in found.logprobs)
    assert heard(client).logprobs is None


def test_translation(client):
    with DIGITS.open("rb") as file:
        assert client.audio.translations.create(model="miniature", file=file).text == "374"
        file.seek(0)
        found = client.audio.translations.create(model="miniature", file=file, response_format="verbose_json")
        assert (found.text, found.language) == ("374", "english") and found.duration > 1
        file.seek(0)
        assert client.audio.translations.create(model="miniature", file=file, response_format="text") == "374\n"


def test_async_client(server):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            create = client.audio.transcriptions.create
            stream = await create(model="miniature", file=DIGITS, stream=True)
            events = [event async for event in stream]
            return (await create(model="miniature", file=DIGITS)).text, events[-1].text

    assert asyncio.run(ask()) == ("374", "374")


def test_prompt_and_temperature_matter(client):
    assert heard(client, prompt="You are a helpful assistant.").text == "374"
    plain, prompted = heard(client).usage.input_tokens, heard(client, prompt="Digits: 1 2").usage.input_tokens
    assert prompted > plain
    hot = {heard(client, temperature=1.0, extra_body={"seed": seed}).text for seed in (1, 1, 2)}
    assert hot and heard(client, temperature=0).text == "374"


# -- files -----------------------------------------------------------------------------------------------------------


def in_container(samples, container, codec, rate_hz=48_000, video=False):
    """A file of any kind."""
    file = io.BytesIO()
    with av.open(file, "w", container) as output:
        picture = output.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p") if video else None
        stream = output.add_stream(codec, rate=rate_hz, layout="stereo")
        for _ in range(20 if video else 0):
            output.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        if video:
            output.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(samples[None], "flt", "mono")
        frame.sample_rate = 16_000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("name, container, codec, video", [
    ("a.webm", "webm", "libopus", False), ("a.m4a", "ipod", "aac", False), ("a.mp4", "mp4", "aac", True),
    ("a.mpga", "mp3", "libmp3lame", False), ("a.oga", "ogg", "libopus", False), ("noise.bin", "matroska", "pcm_s16le", False),
])  # fmt: skip
def test_containers(client, sound, name, container, codec, video):
    file = (name, in_container(sound, container, codec, video=video))
    assert client.audio.transcriptions.create(model="miniature", file=file).text == "374"


@pytest.mark.parametrize("format", ["wav", "mp3", "flac", "opus", "aac"])
def test_what_the_server_speaks(client, sound, format):
    assert client.audio.transcriptions.create(model="miniature", file=("x", encode(sound, format, 16_000))).text == "374"


def test_a_large_file(client, sound):
    """Beyond what is kept in memory."""
    silence = np.random.default_rng(0).normal(0, 1e-4, 16_000 * 2).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, np.stack([np.concatenate([sound, silence])] * 8, axis=1), 16_000, format="WAV", subtype="FLOAT")
    assert file.tell() > 1 << 20
    assert client.audio.transcriptions.create(model="miniature", file=("large.wav", file.getvalue())).text == "374"


@pytest.mark.parametrize("name, content, said", [
    ("a.wav", b"", "empty"),
    ("a.wav", b"RIFF", "a.wav"),
    ("a.mp3", b"this is no sound" * 100, "a.mp3"),
    ("a.png", (SAMPLES / "star.png").read_bytes() if (SAMPLES / "star.png").exists() else b"\x89PNG\r\n\x1a\n" * 9, "sound"),
    ("../../etc/passwd", b"root" * 99, "sound"),
    ("a.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "sound"),
    ("a.txt", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "sound"),
])  # fmt: skip
def test_files_that_are_no_sounds(http, name, content, said):
    error = error_of(http.post(PATH, data={"model": "miniature"}, files={"file": (name, content)}), 400)
    assert error["param"] == "file" and said in error["message"] and "root:" not in error["message"]


def test_half_a_file(http, sound):
    whole = encode(sound, "flac", 16_000)
    for size in (50, len(whole) // 2):
        response = http.post(PATH, data={"model": "miniature"}, files={"file": ("half.flac", whole[:size])})
        assert error_of(response, 400)["param"] == "file"


def test_too_short(http):
    silence = encode(np.zeros(100, np.float32), "wav", 16_000)
    assert (
        "100 samples"
        in error_of(http.post(PATH, data={"model": "miniature"}, files={"file": ("a", silence)}), 400)["message"]
    )


# -- forms -----------------------------------------------------------------------------------------------------------

BAD = [
    ({"model": None}, "model", 400),
    ({"model": "whisper-1"}, "model", 404),
    ({"response_format": "srt"}, "response_format", 400),
    ({"response_format": "vtt"}, "response_format", 400),
    ({"response_format": "diarized_json"}, "response_format", 400),
    ({"response_format": "xml"}, "response_format", 400),
    ({"response_format": ["json", "json"]}, "response_format", 400),
    ({"temperature": "hot"}, "temperature", 400),
    ({"temperature": "1.5"}, "temperature", 400),
    ({"temperature": "nan"}, "temperature", 400),
    ({"stream": "perhaps"}, "stream", 400),
    ({"stream": "true", "response_format": "verbose_json"}, "response_format", 400),
    ({"include[]": "logprobs", "response_format": "text"}, "include", 400),
    ({"include[]": "everything"}, "include", 400),
    ({"timestamp_granularities[]": ["word", "segment"], "response_format": "verbose_json"}, "timestamp_granularities", 400),
    ({"timestamp_granularities[]": "letter"}, "timestamp_granularities", 400),
    ({"chunking_strategy": "auto"}, "chunking_strategy", 400),
    ({"language": "xx"}, "language", 400),
    ({"language": ""}, "language", 400),
    ({"languages[]": "en"}, "languages[]", 400),
    ({"seed": "x"}, "seed", 400),
    ({"max_tokens": "7"}, "max_tokens", 400),
    ({"prompt": "<|audio_pad|>"}, None, 400),
]


@pytest.mark.parametrize("fields, param, status", BAD, ids=range(len(BAD)))
def test_bad_forms(http, fields, param, status):
    data = {key: value for key, value in {"model": "miniature", **fields}.items() if value is not None}
    error = error_of(http.post(PATH, data=data, files={"file": ("a.wav", DIGITS.read_bytes())}), status)
    assert param is None or error["param"].startswith(param), error


def test_translations_have_fewer_fields(http):
    for fields in ({"stream": "true"}, {"language": "en"}, {"response_format": "srt"}):
        data, files = {"model": "miniature", **fields}, {"file": ("a.wav", DIGITS.read_bytes())}
        error_of(http.post("/v1/audio/translations", data=data, files=files), 400)


def test_odd_forms(http):
    """As curl writes them, and as it does not."""
    wav = DIGITS.read_bytes()
    head, end = "multipart/form-data; boundary=XX", b"\r\n--XX--\r\n"
    model = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nminiature\r\n'
    file = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="NAME"\r\n\r\n' + wav

    def named(name):
        return file.replace(b"NAME", name)

    def ask(content, kind=head):
        return http.post(PATH, content=content, headers={"Content-Type": kind})

    assert ask(named(b"\xe9\x94\x99.wav") + b"\r\n" + model + end[2:]).json()["text"] == "374"
    quoted = named(b'a\\"b.wav').replace(b"filename=", b"Filename=").replace(b"Content-Disposition", b"content-disposition")
    assert ask(model + quoted + end, 'multipart/form-data; boundary="XX"').json()["text"] == "374"
    bare = model + b'--XX\r\nContent-Disposition: form-data; name="file"\r\n\r\nno filename' + end
    assert error_of(ask(bare), 400)["param"] == "file"
    assert error_of(ask(model + end[2:]), 400)["param"] == "file"
    two = model + named(b"a") + b"\r\n" + named(b"b") + end
    cut = (model + named(b"a.wav"))[:-100]
    many = model + b'--XX\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n' * 100 + named(b"a") + end
    large = (
        model
        + b'--XX\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
        + b"x" * 100_000
        + b"\r\n"
        + named(b"a")
        + end
    )
    nameless = model + b"--XX\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + named(b"a") + end
    headers = b"--XX\r\n" + b"X-Header: 1\r\n" * 1000 + b"\r\nx\r\n" + model + named(b"a") + end
    long_header = b"--XX\r\nX: " + b"x" * 100_000 + b"\r\n\r\nx\r\n" + model + named(b"a") + end
    for content in (
        two,
        cut,
        many,
        large,
        nameless,
        headers,
        long_header,
        b"",
        b"--XX--\r\n",
        b"\xff" * 1000,
        b"--XX\r\n" * 1000,
    ):
        error_of(ask(content), 400)
    for kind in ("multipart/form-data", "application/json", "application/x-www-form-urlencoded", "text/plain", ""):
        error_of(ask(model + named(b"a") + end, kind), 400)
    error_of(http.post(PATH), 400)


def test_too_large(http):
    big = io.BytesIO(b"\0" * (129 << 20))
    error = error_of(http.post(PATH, data={"model": "miniature"}, files={"file": ("big.wav", big)}), 413)
    assert error["code"] == "request_too_large" and error["param"] == "file"


# -- wordings --------------------------------------------------------------------------------------------------------


def test_prompts(tmp_path):
    plain = Prompts.load(tmp_path)
    assert plain.transcribe() == "Transcribe the audio into text."
    assert plain.transcribe("en") == "Transcribe the English audio into text."
    assert plain.transcribe("zh") == TRANSCRIBE_CHINESE
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"transcription_prompt": "Write {language} down.", "eos_token_id": 1}))
    assert (
        Prompts.load(tmp_path).transcribe("zh") == "Write Chinese down."
        and Prompts.load(tmp_path).transcribe() == "Write down."
    )
    assert Prompts.load(tmp_path, "Listen.", "In English!") == Prompts("Listen.", "In English!")
    for text in ("[]", "{", '{"translation_prompt": 3}', '{"transcription_prompt": " "}'):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            Prompts.load(tmp_path)


def test_languages():
    assert [language_code(text) for text in ("en", "EN", "en-US", "zh_Hans", "german", "yue")] == [
        "en",
        "en",
        "en",
        "zh",
        "de",
        "yue",
    ]
    assert language_code("klingon") is language_code("") is None


def test_who_goes_away_is_cancelled(server, http):
    """As soon as he has sent all, before there is anything to send him."""
    boundary = "XX"
    body = b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nminiature\r\n--XX\r\nContent-Disposition: form-data; name="stream"'
    body += (
        b'\r\n\r\ntrue\r\n--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + DIGITS.read_bytes()
        + b"\r\n--XX--\r\n"
    )
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
    ends = time.monotonic() + 10
    while (now := scraped(http))["vllm:num_requests_running", ()] and time.monotonic() < ends:
        time.sleep(0.05)
    assert now["vllm:num_requests_running", ()] == now["vllm:num_requests_waiting", ()] == 0
    time.sleep(0.2)
    assert "Traceback" not in server.said() and f"POST {PATH} 499" in server.said()
