"""Where a conversation goes when there are several engines."""

import json

import pytest

from ms_omni.serve.affinity import ANY_ENGINE, affinity_of, ranked

NAMES = [f"engine{number}" for number in range(8)]
SYSTEM, FIRST = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 3?"}
ANSWER, SECOND = {"role": "assistant", "content": "5"}, {"role": "user", "content": "And 4 + 5?"}


def place(*messages, **options):
    return affinity_of(json.dumps({"model": "miniature", "messages": messages, **options}).encode())


def test_all_turns_of_a_conversation_have_one_place():
    first = place(SYSTEM, FIRST)
    assert first.key and first.instance is None
    assert place(SYSTEM, FIRST, ANSWER, SECOND, temperature=0.5, stream=True) == first
    assert len({place(*messages) for messages in ([FIRST], [SECOND], [SYSTEM, FIRST], [SYSTEM])} | {first}) == 4
    assert place(FIRST, tools=[{"type": "function", "function": {"name": "add"}}]) != place(FIRST)
    assert place(FIRST, user="Ann") != place(FIRST, user="Bob")


def test_a_name_for_the_conversation_is_believed():
    assert place(FIRST, prompt_cache_key="a") == place(SECOND, prompt_cache_key="a", user="Ann")
    assert place(FIRST, prompt_cache_key="a") != place(FIRST, prompt_cache_key="b")


def test_a_spoken_answer_leads_to_its_engine():
    spoken = [{"role": "assistant", "audio": {"id": f"audio_{name}_{7:032x}"}} for name in ("one", "two")]
    assert place(FIRST, spoken[0], SECOND).instance == "one"
    assert place(FIRST, spoken[0], SECOND, spoken[1], SECOND).instance == "two"
    for id in (f"audio_{7:032x}", "audio__", "one", None, 3, ["audio_one_00"]):
        assert place(FIRST, {"role": "assistant", "audio": {"id": id}}, SECOND).instance is None


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"{}", b'{"messages": 3}', b'{"messages": null}', b"\xff" * 9, b"[" * 10**6]
)
def test_what_is_not_understood_goes_anywhere(body):
    assert affinity_of(body) == ANY_ENGINE


def test_messages_that_are_none_are_left_to_the_engine():
    assert affinity_of(b'{"messages": ["a", 3, null, {"role": ["user"]}]}').key


def test_engines_that_come_and_go_move_only_their_own():
    keys = [str(number) for number in range(400)]
    first = {key: ranked(key, NAMES)[0] for key in keys}
    assert min(list(first.values()).count(name) for name in NAMES) > 25
    left = {key: ranked(key, NAMES[1:])[0] for key in keys}
    assert all(left[key] == first[key] for key in keys if first[key] != NAMES[0])
    assert {left[key] for key in keys if first[key] == NAMES[0]} == set(NAMES[1:])
