"""Tools in the prompt, their calls in the answer, and prompts without tools as they were."""

import json
from pathlib import Path

import pytest

from ms_omni import parse_tool_calls
from ms_omni.errors import InputError
from ms_omni.input.tiny_processor import CHAT_TEMPLATE

MINIATURE = Path(__file__).resolve().parents[2] / "examples" / "miniature"
ASK = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Weather?"}]}
SCHEMA = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}}


def weather(city: str, days: int = 1) -> str:
    """
    The weather of a city.

    Args:
        city: Its name.
        days: How many days.
    """
    return f"{city} {days}"


def tools_of(prompt):
    inside = prompt.split("<tools>\n")[1].split("\n</tools>")[0]
    return [json.loads(line) for line in inside.splitlines()]


def test_functions_and_schemas_stand_in_the_system_turn(processor):
    prompt = processor.apply_chat_template([ASK], tools=[weather, SCHEMA], add_generation_prompt=True)
    first, second = tools_of(prompt)
    assert first["function"]["name"] == "weather" and first["function"]["parameters"]["required"] == ["city"]
    assert second == SCHEMA
    assert prompt.startswith("<|im_start|>system\n# Tools\n\nYou may call one or more functions")
    assert prompt.endswith(
        "</tool_call><|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Weather?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    prompt = processor.apply_chat_template([system, ASK], tools=[SCHEMA])
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n") and prompt.count("Be brief.") == 1


@pytest.mark.parametrize("arguments", [{"city": "K\u00f6ln"}, '{"city": "K\u00f6ln"}'])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("said", ["", "I look.", None])
def test_calls_and_answers_of_earlier_turns(processor, arguments, wrapped, said):
    call = {"name": "weather", "arguments": arguments}
    calls = [{"type": "function", "id": "1", "function": call}] * 2 if wrapped else [call] * 2
    talk = [
        ASK,
        {"role": "assistant", "content": said, "tool_calls": calls},
        {"role": "tool", "name": "weather", "content": "rain"},
        {"role": "tool", "content": [{"type": "text", "text": "sun"}]},
        {"role": "tool", "content": {"degrees": 3}},
        {"role": "function", "content": [{"hour": 1}, {"hour": 2}], "tool_calls": float("nan")},
        {"role": "user", "content": "And now?"},
    ]
    prompt = processor.apply_chat_template(talk)
    once = '<tool_call>\n{"name": "weather", "arguments": {"city": "K\u00f6ln"}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{said or ''}{chr(10) if said else ''}{once}\n{once}<|im_end|>\n" in prompt
    answers = "".join(
        f"\n<tool_response>\n{text}\n</tool_response>"
        for text in ("rain", "sun", '{"degrees": 3}', '[{"hour": 1}, {"hour": 2}]')
    )
    assert f"<|im_start|>user{answers}<|im_end|>\n<|im_start|>user\nAnd now?" in prompt
    text, parsed = parse_tool_calls(prompt.split("<|im_start|>assistant\n")[1].split("<|im_end|>")[0])
    assert text == (said or "") and parsed == [{"name": "weather", "arguments": {"city": "K\u00f6ln"}}] * 2


def test_prompts_without_tools_are_as_the_miniature_knows_them(processor):
    """It was trained on these bytes."""
    talk = [{"role": "system", "content": "A"}, ASK, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}]
    prompt = (
        "<|im_start|>system\nA<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Weather?<|im_end|>\n"
        "<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n"
    )
    for tools in (None, []):
        assert processor.apply_chat_template(talk, tools=tools, add_generation_prompt=True) == prompt
    assert json.loads((MINIATURE / "chat_template.json").read_text())["chat_template"] == CHAT_TEMPLATE


def test_tools_that_cannot_be_described(processor):
    def undocumented(x):
        return x

    for wrong in ([undocumented], ["weather"], [3]):
        with pytest.raises(InputError, match="tools|Tools"):
            processor.apply_chat_template([ASK], tools=wrong)


def test_a_template_for_tools_by_name(processor):
    templates = {"default": "plain", "tool_use": "{{ tools | length }} tools"}
    known, processor.chat_template = processor.chat_template, templates
    try:
        assert processor.apply_chat_template([ASK], tools=[SCHEMA]) == "1 tools"
        assert processor.apply_chat_template([ASK]) == "plain"
    finally:
        processor.chat_template = known


ONE = {"name": "f", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    "answer, text, calls",
    [
        ("just text", "just text", []),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [ONE]),
        ('Yes.\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\nDone.', "Yes.\n\nDone.", [ONE]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>' * 2, "", [ONE, ONE]),
        (
            '<tool_call>[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]</tool_call>',
            "",
            [ONE, {"name": "g", "arguments": {}}],
        ),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', "", [ONE]),  # the end was left out, the call is whole
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}<tool_call>{"name": "f", "arguments": {"a": 1}}', "", [ONE, ONE]),
        ('<tool_call>```json\n{"name": "f", "arguments": {"a": 1}}\n```</tool_call>', "", [ONE]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', "", [ONE]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}}</tool_call>', "", [ONE]),
        ("<tool_call>{'name': 'f', 'arguments': {'a': 1}}</tool_call>", "", [ONE]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [ONE]),
        ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', "", [ONE]),
        ('<tool_call>{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}</tool_call>', "", [ONE]),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>',
            "",
            [{"name": "f", "arguments": {"a": "x\ny"}}],
        ),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><|im_end|>', "<|im_end|>", [ONE]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [{"name": "f", "arguments": {}}]),
    ],
)
def test_calls(answer, text, calls):
    assert parse_tool_calls(answer) == (text, calls)


@pytest.mark.parametrize(
    "answer",
    [
        '<tool_call>{"name": "delete", "arguments": {"path": "/ho',  # cut off by the limit: nothing is guessed
        '<tool_call>{"name": "delete", "arguments": {"path": "/ho"}',
        '<tool_call>{"name": "delete", "arguments": {"path": "/ho</tool_call>',
        "<tool_call>hello</tool_call>",
        "<tool_call></tool_call> ",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "no json"}</tool_call>',
        "</tool_call>",
        "",
    ],
)
def test_what_is_no_call_stays_text(answer):
    assert parse_tool_calls(answer) == (answer, [])
