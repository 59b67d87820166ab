"""Chat completions: several choices, several callers, callers that leave, and time that runs out."""

import asyncio
import base64
import json
import re
import time

import httpx
import openai
import pytest

from .conftest import KEY
from .test_chat import AUDIO, DIGITS, NAME, NUMBER, SHAPE, STAR, ask, content, samples_of

LONG = [{"role": "user", "content": "Say a blue star and 17."}]
WARM = {"temperature": 2.0, "max_tokens": 12, "extra_body": {"top_k": 0}}
ENDLESS = {"min_tokens": 3000, "max_tokens": 3000}


def running(server):
    """Answers at work and waiting."""
    text = httpx.get(f"{server.url}/metrics", headers=server.headers, trust_env=False).text
    return sum(float(count) for count in re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.M))


def wait_until_idle(server, limit_s=20):
    ends = time.monotonic() + limit_s
    while running(server) and time.monotonic() < ends:
        time.sleep(0.05)
    assert running(server) == 0


def test_choices_differ_and_can_be_had_again(client):
    first = [choice.message.content for choice in ask(client, LONG, n=4, seed=5, **WARM).choices]
    again = ask(client, LONG, n=4, seed=5, **WARM)
    assert [choice.message.content for choice in again.choices] == first and len(set(first)) > 1
    assert [choice.index for choice in again.choices] == [0, 1, 2, 3]
    assert content(client, LONG, seed=5, **WARM) == first[0] != content(client, LONG, seed=6, **WARM)
    texts = ["", "", "", ""]
    chunks = list(ask(client, LONG, n=4, seed=5, stream=True, stream_options={"include_usage": True}, **WARM))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == first and chunks[-1].usage == again.usage
    assert sum(bool(choice.finish_reason) for chunk in chunks for choice in chunk.choices) == 4


def test_sampling(client):
    greedy = content(client, LONG)
    assert content(client, LONG, temperature=0, seed=1) == greedy == content(client, LONG, extra_body={"top_k": 1})
    assert content(client, LONG, temperature=1.5, seed=1, extra_body={"min_p": 1.0}) == greedy
    assert content(client, LONG, seed=-(2**63)) == greedy
    token = next(iter(ask(client, NUMBER, logprobs=True, top_logprobs=2).choices[0].logprobs.content))
    assert token.token == "3"
    other = content(client, NUMBER, logit_bias={"18": -100}, presence_penalty=1.0)
    assert isinstance(other, str)


def test_limits_of_length(client):
    choice = ask(client, LONG, max_completion_tokens=2).choices[0]
    assert choice.finish_reason == "length"
    chunks = list(ask(client, LONG, max_completion_tokens=2, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"
    answer = ask(client, LONG, extra_body={"min_tokens": 30}, max_tokens=40)
    assert answer.usage.completion_tokens >= 30


@pytest.mark.parametrize("stop", ["7", ["x", "7"], "74", "37"])
def test_stop_texts_are_not_in_the_answer(client, stop):
    expected = "374".partition(stop if isinstance(stop, str) else stop[-1])[0]
    choice = ask(client, NUMBER, stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == (expected, "stop")
    chunks = list(ask(client, NUMBER, stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_text_that_only_begins_like_a_stop_is_whole(client):
    assert content(client, NUMBER, stop=["4x", "5"]) == "374"
    assert ask(client, NUMBER, extra_body={"stop_token_ids": [22]}).choices[0].message.content is not None


def test_eight_at_once_get_what_each_gets_alone(server):
    """Text and samples, streamed and whole, bit for bit."""
    asked = [
        (messages, {**AUDIO, "seed": seed, "stream": stream} if speaks else {"seed": seed, "stream": stream, **WARM})
        for seed, (messages, speaks, stream) in enumerate(
            [
                (NUMBER, True, True),
                (SHAPE, True, False),
                (LONG, True, True),
                ([{"role": "user", "content": [DIGITS, STAR]}], False, True),
                (LONG, False, False),
                (NUMBER, True, False),
                (SHAPE, False, True),
                (SHAPE, True, True),
            ]
        )
    ]

    async def answer(client, messages, options):
        answer = await client.chat.completions.create(model=NAME, messages=messages, **options)
        if options["stream"]:
            chunks = [chunk async for chunk in answer]
            return samples_of(chunks), "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        message = answer.choices[0].message
        sound = (base64.b64decode(message.audio.data), message.audio.transcript) if message.audio else (b"", "")
        return sound, message.content or ""

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            alone = [await answer(client, *one) for one in asked]
            return alone, await asyncio.gather(*(answer(client, *one) for one in asked))

    alone, together = asyncio.run(all_of_them())
    assert together == alone
    assert all(sound[0] or text for sound, text in alone)


@pytest.mark.parametrize("n", [1, 3])
def test_who_leaves_frees_his_rows(server, n):
    body = {"messages": LONG, "n": n, **ENDLESS}
    with httpx.Client(base_url=server.url, headers=server.headers, timeout=1.0, trust_env=False) as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=body)
        wait_until_idle(server)
        stream = {"json": {**body, "stream": True}, "timeout": 60}
        with http.stream("POST", "/v1/chat/completions", **stream) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ") and running(server) == n
    wait_until_idle(server)


def test_time_that_runs_out_is_said(make_server):
    server = make_server("--request-timeout", "3", key=None)
    server.wait()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        answer = ask(client, LONG, extra_body=ENDLESS)
        assert answer.choices[0].finish_reason == "length" and answer.choices[0].message.content
        *_, last = ask(client, LONG, extra_body=ENDLESS, stream=True)
        assert last.choices[0].finish_reason == "length"
    wait_until_idle(server)


def test_the_events_of_a_stream(server):
    body = {"messages": LONG, "stream": True, "max_tokens": 3}
    with httpx.Client(base_url=server.url, headers=server.headers, timeout=30, trust_env=False) as http:
        lines = [line for line in http.post("/v1/chat/completions", json=body).text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    assert all(json.loads(line[6:])["object"] == "chat.completion.chunk" for line in lines[:-1])
