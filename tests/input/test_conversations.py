"""Files of the user's own conversations: every spelling of one is read, and what is none is said before anything is loaded."""

import json

import pytest

from ms_omni.calibration import questions
from ms_omni.errors import InputError
from ms_omni.input.load import checked
from ms_omni.input.messages import kind_of_file, read_values

ONE, OTHER = ([{"role": "user", "content": text}] for text in ("Hello!", "And\u2028then?"))


def dumped(*values, indent=None):
    return "\n".join(json.dumps(value, indent=indent, ensure_ascii=False) for value in values)


@pytest.mark.parametrize(
    "text",
    [
        dumped({"messages": ONE}, {"custom_id": "2", "body": {"messages": OTHER}}) + "\n\n",
        dumped(ONE, OTHER),
        dumped([ONE, OTHER]),
        dumped([{"messages": ONE}, {"messages": OTHER}], indent=1),
        dumped({"messages": ONE}, {"messages": OTHER}, indent=1),
    ],
    ids=["lines", "lists", "a list of lists", "a list over lines", "objects over lines"],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_conversations_in_every_spelling(text, suffix, tmp_path):
    (tmp_path / f"x{suffix}").write_text(text, encoding="utf-8")
    assert questions([tmp_path / f"x{suffix}"]) == [ONE, OTHER]


def test_where_a_value_stands(tmp_path):
    (tmp_path / "x.json").write_text('\n{"a":\n 1}\n\n["b",\n"c"] 5')
    assert [(where.partition(", ")[2], value) for where, value in read_values(tmp_path / "x.json")] == [
        ("line 2", {"a": 1}),
        ("line 5, item 1", "b"),
        ("line 5, item 2", "c"),
        ("line 6", 5),
    ]


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2: not JSON"),
        ('{"messages": []}', 'line 2: expected {"messages"'),
        ('{"prompt": "Hello!"}', 'line 2: expected {"messages"'),
        ('{"messages": [{"content": "Hello!"}]}', "line 2: message 0 must be a dict with a role"),
        ('{"messages": [{"role": "user"}]}', "line 2: message 0 has no content"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "smell"}]}]}',
            "line 2: message 0, item 0 has the type 'smell'",
        ),
        ('{"messages": [{"role": "user", "content": [{"type": "image", "image": "no.jpg"}]}]}', "no.jpg does not exist"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "line 2: "),
        ('[[{"role": "user", "content": "Hello!"}], []]', "line 2, item 2: expected"),
    ],
)
def test_what_is_no_conversation(line, words, tmp_path):
    (tmp_path / "x.jsonl").write_text(f"{json.dumps({'messages': ONE})}\n{line}\n")
    with pytest.raises(InputError) as caught:
        questions([tmp_path / "x.jsonl"])
    assert str(caught.value).startswith(f"{tmp_path}/x.jsonl, line 2") and words in str(caught.value)


def test_addresses_are_fetched_later_and_samples_are_samples():
    parts = [{"type": "image", "image": "https://nowhere.invalid/x.jpg"}, {"type": "audio", "audio": [0.5, 0.25]}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "tool_calls": []}]
    assert checked(messages, "here") is messages


@pytest.mark.parametrize("name", ["a.flac", "a.webp", "a.caf", "a.w64", "a.qoi", "a.mkv"])
def test_files_are_known_by_endings_that_no_system_need_know(name, tmp_path, monkeypatch):
    monkeypatch.setattr("mimetypes.guess_type", lambda name: (None, None))
    (tmp_path / name).write_bytes(b"x")
    path = str(tmp_path / name)
    kind = kind_of_file({"path": path})
    assert kind is not None and questions([path])[0][0]["content"][0][kind] == path
