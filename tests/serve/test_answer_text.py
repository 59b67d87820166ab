"""What a model writes, taken apart: the same however it is cut into pieces."""

import json
import random

import pytest

from ms_omni.serve.answer_text import Calls, StopText, Thoughts

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "note": "a } \\" {"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "add", "arguments": {"of": [1, {"b": 2}]}}\n</tool_call>'


def cuts(text, seed):
    """The text in pieces of 1 to 6 characters."""
    rng, place = random.Random(seed), 0
    while place < len(text):
        size = rng.randint(1, 6)
        yield text[place : place + size]
        place += size


def called(text, seed=0, limit=None, cut=False):
    """Content and `[(name, arguments)]` of a text."""
    reader, content, calls = Calls(limit), "", []
    for got, deltas in [*map(reader.push, cuts(text, seed)), reader.rest(cut)]:
        content += got
        for delta in deltas:
            if "id" in delta:
                assert delta["index"] == len(calls) and delta["type"] == "function"
                calls.append([delta["function"]["name"], ""])
            calls[delta["index"]][1] += delta["function"]["arguments"]
    return content, [tuple(call) for call in calls]


@pytest.mark.parametrize("seed", range(8))
def test_calls_do_not_depend_on_how_the_text_is_cut(seed):
    content, calls = called(f"I look it up.\n{CALL}\n{OTHER}", seed)
    assert content == "I look it up."
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [
        ("get_weather", {"city": "Rome", "note": 'a } " {'}),
        ("add", {"of": [1, {"b": 2}]}),
    ]
    assert called(f"{CALL} and so", seed) == ("and so", [calls[0]])


@pytest.mark.parametrize("text", ["no call  ", "1 < 2 <tool", "<tool_call>nothing</tool_call>", "<tool_call>{}", " \n"])
def test_text_without_calls_is_as_it_was(text):
    assert called(text) == (text.rstrip() if text == "" else text, [])


def test_damaged_calls():
    missing = '<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>'
    assert called(missing) == ("", [("add", '{"a": 1}')])
    assert called('<tool_call>{"name": "add", "arguments": {"a": [1, 2</tool_call>') == ("", [("add", '{"a": [1, 2]}')])
    assert called("<tool_call>{'name': 'add', 'arguments': {'a': 1}}</tool_call>") == ("", [("add", '{"a": 1}')])
    assert called('<tool_call>{"function": {"name": "add", "arguments": "{}"}}</tool_call>') == ("", [("add", "{}")])


def test_a_call_that_is_cut_off():
    text = f"Well: {CALL}"
    assert called(text[:20], cut=True) == ("Well:", [])
    content, calls = called(text[:70], cut=True)
    assert content == "Well:" and calls[0][0] == "get_weather" and calls[0][1].startswith('{"city": "Rome')


def test_no_more_calls_than_wanted():
    content, calls = called(f"{CALL}\n{OTHER} and text", limit=1)
    assert content == "" and [name for name, _ in calls] == ["get_weather"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("thinking", "text", "expected"),
    [
        (False, "<think>\nTwo and\ntwo.\n</think>\n\nFour.\n", ("Two and\ntwo.", "Four.\n")),
        (True, "Two and two.\n</think>\n\nFour.", ("Two and two.", "Four.")),
        (True, "cut off </thi", ("cut off </thi", "")),
        (False, "It writes <think> here.", ("", "It writes <think> here.")),
        (False, "  <think></think>  x", ("", "x")),
        (False, " <thi", ("", " <thi")),
        (False, "", ("", "")),
    ],
)
def test_thoughts(seed, thinking, text, expected):
    reader = Thoughts(thinking)
    parts = [*map(reader.push, cuts(text, seed)), reader.rest()]
    assert tuple("".join(part[side] for part in parts) for side in (0, 1)) == expected


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two t"], "one "),
        ("aab aaab", ["aaab"], "aab "),
        ("almost sto", ["stop"], "almost sto"),
        ("all of it", [], "all of it"),
        ("stop", ["stop"], ""),
    ],
)
def test_stop_texts_are_left_out(seed, text, stops, expected):
    reader = StopText(stops)
    assert "".join([*map(reader.push, cuts(text, seed)), reader.rest()]) == expected
    assert reader.found == (expected != text)
