"""Tools, formats and thoughts of chat completions. The miniature knows none, but a grammar makes it write what is wanted."""

import json

import openai
import pytest

from .test_chat import AUDIO, NAME, NUMBER, SHAPE, ask, content, samples_of

pytest.importorskip("llguidance")

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Of a city.", "parameters": CITY}},
    {"type": "function", "function": {"name": "stop_it"}},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
SHAPES = {
    "type": "object",
    "properties": {"shape": {"enum": ["circle", "square", "star", "triangle"]}},
    "required": ["shape"],
    "additionalProperties": False,
}


def test_a_named_function_is_called_and_its_answer_read(client):
    choice = ask(client, NUMBER, tools=TOOLS, tool_choice=NAMED, parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    turns = [*NUMBER, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert ask(client, turns, tools=TOOLS).usage.prompt_tokens > ask(client, NUMBER, tools=TOOLS).usage.prompt_tokens + 20


def test_streamed_calls_are_those_of_the_whole_answer(client):
    options = {"tools": TOOLS, "tool_choice": "required", "seed": 1, "temperature": 1.0, "parallel_tool_calls": False}
    whole = ask(client, SHAPE, **options).choices[0].message.tool_calls[0].function
    name, arguments, pieces = "", "", 0
    for chunk in ask(client, SHAPE, **options, stream=True):
        delta = chunk.choices[0].delta
        assert not delta.content
        for call in delta.tool_calls or ():
            assert call.index == 0 and (call.id is None) == (call.type is None) == (pieces > 0)
            name, arguments, pieces = name + (call.function.name or ""), arguments + call.function.arguments, pieces + 1
        end = chunk.choices[0].finish_reason
    assert (name, arguments, end) == (whole.name, whole.arguments, "tool_calls")
    assert pieces > 3 or name == "stop_it"


def test_the_clients_own_stream_helper_reads_it(client):
    with client.chat.completions.stream(
        model=NAME, messages=SHAPE, tools=TOOLS, tool_choice=NAMED, parallel_tool_calls=False
    ) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")


def test_calls_are_not_said_aloud(client):
    options = {"tools": TOOLS, "tool_choice": NAMED, "parallel_tool_calls": False, "seed": 0, **AUDIO}
    message = ask(client, NUMBER, **options).choices[0].message
    assert message.tool_calls and message.audio is None and message.content is None
    data, transcript = samples_of(ask(client, NUMBER, **options, stream=True))
    assert data == b"" and transcript == ""


def test_tools_may_be_offered_without_being_used(client):
    for choice in ("auto", "none", {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}):
        answer = ask(client, SHAPE, tools=TOOLS, tool_choice=choice)
        assert answer.choices[0].message.tool_calls is None and answer.choices[0].finish_reason == "stop"
    with_tools = ask(client, SHAPE, tools=TOOLS).usage.prompt_tokens
    assert with_tools > ask(client, SHAPE, tools=TOOLS, tool_choice="none").usage.prompt_tokens


def test_answers_follow_a_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SHAPES, "strict": True}}
    found = json.loads(content(client, SHAPE, response_format=form))
    assert list(found) == ["shape"] and found["shape"] in SHAPES["properties"]["shape"]["enum"]
    streamed = "".join(
        chunk.choices[0].delta.content or "" for chunk in ask(client, SHAPE, response_format=form, stream=True)
    )
    assert json.loads(streamed) == found


def test_any_object(client):
    choice = ask(client, SHAPE, response_format={"type": "json_object"}, max_tokens=60).choices[0]
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_a_schema_that_is_none_is_refused(client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="nonsense") as refused:
        ask(client, SHAPE, response_format=form)
    assert refused.value.param == "response_format.json_schema.schema"


def test_a_thinking_template(client):
    """The miniature's template knows enable_thinking, and no other variable."""
    options = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    more = ask(client, SHAPE, **options).usage.prompt_tokens - ask(client, SHAPE).usage.prompt_tokens
    assert more > 0
    assert (
        ask(client, SHAPE, extra_body={"enable_thinking": False}).usage.prompt_tokens
        == ask(client, SHAPE, **options).usage.prompt_tokens
    )
    assert (
        ask(client, SHAPE, reasoning_effort="none").usage.prompt_tokens == ask(client, SHAPE, **options).usage.prompt_tokens
    )
    for name in ("policy", "messages", "tokenize", "no_such_thing"):
        with pytest.raises(openai.BadRequestError, match=name):
            ask(client, SHAPE, extra_body={"chat_template_kwargs": {name: True}})


def test_logprobs(client):
    choice = ask(client, NUMBER, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content == "374"
    for token in tokens:
        assert token.logprob == token.top_logprobs[0].logprob <= 0 and len(token.top_logprobs) == 3
        assert bytes(token.bytes).decode() == token.token
    chunks = ask(client, NUMBER, logprobs=True, top_logprobs=3, stream=True)
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert streamed == tokens
