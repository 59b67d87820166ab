"""What docs/ascend.md says of times before and after, computed: `python -m tests.parallel.test_before_after` prints the table."""

import re
from dataclasses import replace
from pathlib import Path

from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.config import load_named_config
from ms_omni.parallel.hardware import GRAPH, Form, load_hardware
from ms_omni.parallel.predict import predict

PAGE = Path(__file__).resolve().parents[2] / "docs/ascend.md"
FRAME_S, CONTEXT, BFLOAT16_BYTES = 0.08, 8192, 2
CALLERS = (1, 4, 16)
ARRANGEMENTS = {  # cards that hold the thinker, whether one more speaks
    "2 x 910B, in turns": (2, False),
    "1 x 910B + 1 for speech (does not fit in bfloat16)": (1, True),
    "2 x 910B + 1 for speech (cannot be run yet)": (2, True),
}
HEADS = ("", "callers", "token", "frame and sound", "first sound of the last", "real-time factor")


def slowly(launches, built_by_cann):
    """Launches, those counted four times that CANN had to build: we took 20 us for one of them, and 5 for others."""
    return launches + 3 * built_by_cann


class Before(Form):
    """MindSpore 2.7.1, dry run of the steps before this work; a chunk of a prompt as it was last, called one by one."""

    def thinker(self, layers, cards, chunk=False):
        return replace(self, rank=7).thinker_chunk(layers, cards) if chunk else super().thinker(layers, cards)

    def thinker_chunk(self, layers, cards):
        return super().thinker(layers, cards, chunk=True)


BEFORE = Before(
    "before",
    "graph",
    layer=slowly(38, 3),
    rank=slowly(9, 2),
    shared=9,
    besides=5,
    frame=slowly(2688, 471),
    choice=0,  # on the host
    penalties=0,
    chunk=39,
    chunk_besides=1,
)


def table():
    config, hardware = load_named_config("instruct"), load_hardware("910b")
    shapes = parameter_shapes(config)
    lines = [HEADS, ("---",) * len(HEADS)]
    for name, (cards, apart) in ARRANGEMENTS.items():
        for rows in CALLERS:
            item = predict(config, shapes, "ep", cards, CONTEXT, BFLOAT16_BYTES, rows=rows, speech_card=apart)
            old, new = (item.times(hardware, form, FRAME_S) for form in (BEFORE, GRAPH))
            pairs = ((getattr(old, field), getattr(new, field)) for field in ("token", "frame", "first"))
            times = (f"{1e3 * one:.1f} to {1e3 * other:.1f} ms" for one, other in pairs)
            lines.append((name, str(rows), *times, f"{old.factor:.2f} to {new.factor:.2f}"))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def test_the_page_says_what_is_computed():
    assert table() in PAGE.read_text(encoding="utf-8")


def test_what_fits_is_what_is_said():
    config = load_named_config("instruct")
    shapes, limit = parameter_shapes(config), 1e9 * load_hardware("910b").memory_gb
    for name, (cards, apart) in ARRANGEMENTS.items():
        item = predict(config, shapes, "ep", cards, CONTEXT, BFLOAT16_BYTES, rows=max(CALLERS), speech_card=apart)
        assert (item.peak <= limit) == ("does not fit" not in name)
        assert item.speaker is None or item.speaker.peak <= limit


def test_counted_launches_are_those_of_the_table():
    """Of the page's table of launches, by its names."""
    page = PAGE.read_text(encoding="utf-8")
    for name, each, whole in (
        ("thinker, a token, graph", GRAPH.layer, GRAPH.thinker(48, 1)),
        ("thinker, a token, graph, on one of several cards", GRAPH.layer + GRAPH.rank, GRAPH.thinker(48, 2)),
        ("talker, a token, graph", GRAPH.layer + GRAPH.shared, GRAPH.talker(20)),
        ("a chunk of 512 tokens of a prompt, one call after another", GRAPH.chunk, GRAPH.thinker(48, 1, chunk=True)),
    ):
        assert re.search(rf"\| {re.escape(name)} \| {each}[^|]*\| {whole:,}", page), name
    assert f"{GRAPH.frame:,}" in page and f"{GRAPH.choice + GRAPH.penalties} with penalties" in page


if __name__ == "__main__":
    print(table())
