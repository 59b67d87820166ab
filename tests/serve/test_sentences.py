"""Long texts are cut where a reader would breathe, and nothing of them is lost."""

import pytest

from ms_omni.serve.speech import PIECE_S, estimated_s, split_text

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
