"""Puts the figures of an evaluation into the card (examples/miniature/README.md), between its two marks.

python launch/evaluate.py --json build/evaluation.json
python -m examples.miniature.training.card build/evaluation.json
"""

import argparse
import json
from pathlib import Path

CARD = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- results: written by training/card.py -->", "<!-- end of results -->"
NAMES = {
    "digits": ("spoken strings of 1-4 digits", "95 %"),
    "shape": ("colour and shape in a picture", "97 %"),
    "two_shapes": ("two pictures in one prompt", ""),
    "direction": ("direction of a moving shape", "95 %"),
    "motion": ("all questions about a silent video", ""),
    "both_parts": ("video with sound: both parts", "90 %"),
    "motion_and_digits": ("video with sound: all questions", ""),
    "sum": ("sums of single digits, in writing", "95 %"),
    "spoken_sum": ("sums of single digits, spoken", ""),
    "repeat": ("repeats a text of its world", ""),
    "several_turns": ("last of three to six turns", ""),
    "strange_text": ("does not know: texts from outside", "80 %"),
    "strange_sound": ("does not know: other words, noise, tones", "80 %"),
    "strange_picture": ("does not know: pictures without a shape", "80 %"),
    "does_not_know_in_world": ("wrongly does not know, in its world", "at most 2 %"),
    "same_as_reference": ("same answer as transformers 5.23", "all"),
}


def table(evaluation: dict) -> str:
    """The results as Markdown."""
    results, about = evaluation["results"], evaluation["about"]
    lines = ["| | wanted | right | of | share | 95 % confidence |", "|---|---|---|---|---|---|"]
    for key, (name, wanted) in NAMES.items():
        if key in results:
            lines.append(_row(name, wanted, results[key]))
    for key in (key for key in results if key.startswith("round_trip_")):
        lines.append(_row(f"its own spoken digits, heard by itself ({key.split('_')[-1]})", "95 %", results[key]))
    spoken = [result for key, result in results.items() if key.startswith("round_trip_")]
    clips = "voices synthesised for this evaluation" if about["fresh_voices"] else "the clips in `held_out.flac`"
    notes = [f"Seed {about['seed']}; {clips}."]
    if spoken:
        stopped, count = (sum(result[part] for result in spoken) for part in ("stopped", "count"))
        longest_s = max(result["longest_tail_s"] for result in spoken)
        notes.append(
            f"{stopped} of {count} utterances ended by themselves with at most 1.5 s of silence or faint noise; the "
            f"longest had {longest_s:.2f} s."
        )
    return "\n".join(lines) + "\n\n" + " ".join(notes)


def _row(name: str, wanted: str, result: dict) -> str:
    share = result["right"] / result["count"]
    return (
        f"| {name} | {wanted} | {result['right']} | {result['count']} | {share:.1%} | "
        f"{result['low']:.1%} to {result['high']:.1%} |"
    )


def fill(text: str, evaluation: dict) -> str:
    """The card's text with these results. Raises ValueError when the marks are not there."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(evaluation)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("evaluation", type=Path, help="written by launch/evaluate.py --json")
    evaluation = json.loads(parser.parse_args().evaluation.read_text(encoding="utf-8"))
    CARD.write_text(fill(CARD.read_text(encoding="utf-8"), evaluation), encoding="utf-8")


if __name__ == "__main__":
    main()
