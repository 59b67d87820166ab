"""Transcripts of spoken answers."""

import pytest

from ms_omni.serve.completion import TRANSCRIPT_S, Transcripts
from ms_omni.serve.protocol import ApiError


def test_it_is_forgotten_in_time():
    now = [1000.0]
    kept = Transcripts(clock=lambda: now[0])
    first, second = kept.new_id(), kept.new_id()
    assert first != second and len(first) >= 32
    assert kept.store(first, "three") == 1000 + TRANSCRIPT_S
    now[0] += TRANSCRIPT_S - 1
    kept.store(second, "four")
    assert kept.text(first, "x") == "three"
    now[0] += 2
    with pytest.raises(ApiError, match="expired"):
        kept.text(first, "messages[0].audio.id")
    assert kept.text(second, "x") == "four"


def test_the_oldest_give_way():
    kept = Transcripts(limit=3, max_bytes=10)
    for id in "abcd":
        kept.store(id, id)
    assert kept.text("b", "x") == "b"
    kept.store("e", "0123456789")
    assert kept.text("e", "x") == "0123456789"
    for id in "abcd":
        with pytest.raises(ApiError):
            kept.text(id, "x")
