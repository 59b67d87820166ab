"""`ms-omni plan` in words: for how many callers what holds, in turns and apart, and what fits."""

import pytest

from ms_omni.cli import main
from ms_omni.commands.plan import NOT_BUILT
from ms_omni.parallel.hardware import TO_MEASURE


def lines(capsys, *options):
    assert main(["plan", "--config", "instruct", *options]) == 0
    return capsys.readouterr().out.splitlines()


def section(found, title):
    """The lines below a title, split into words, up to the next title."""
    (start,) = [index for index, line in enumerate(found) if line.startswith(title)]
    below = []
    for line in found[start + 1 :]:
        if not line.startswith("  "):
            break
        below.append(line.split())
    return below


def test_a_step_for_one_four_and_sixteen_callers(capsys):
    found = lines(capsys, "--cards", "2")
    for title, launches, holds in (
        ("a token of text", "1,308", ["launches", "bandwidth", "bandwidth"]),
        ("a frame of speech (80 ms)", "1,767", ["launches"] * 3),
    ):
        graph = [words for words in section(found, title) if words[0] == "graph"]
        assert [words[1] for words in graph] == ["1", "4", "16"] and [words[-2] for words in graph] == holds
        assert {words[4] for words in graph} == {launches}
    assert [words[0] for words in section(found, "speech in turns with text")][1:] == ["graph"] * 3 + ["boosted"] * 3
    assert NOT_BUILT not in "\n".join(found) and all(any(command in line for line in found) for command, _ in TO_MEASURE)


@pytest.mark.parametrize("cards, verdict", [("1", "does not fit 64 GB"), ("2", "fits 64 GB")])
def test_speech_on_a_card_of_its_own(cards, verdict, capsys):
    found = lines(capsys, "--cards", cards, "--speech-card", "--rows", "1")
    peaks = [line for line in found if line.endswith(" 64 GB")]
    assert len(peaks) == 2 and verdict in peaks[0] and " fits" in peaks[1]
    assert section(found, "speech on a card of its own, beside text")
    assert (NOT_BUILT in "\n".join(found)) == (cards == "2")  # an engine whose thinker is shared speaks in turns
