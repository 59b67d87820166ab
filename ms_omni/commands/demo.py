"""`ms-omni demo`: the miniature checkpoint on its sample files, in words, sound and one picture. Downloads nothing."""

import functools
import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import Command
from .options import clear_status, status

RESULT, PICTURE = "demo.json", "demo.png"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR|NAME", help="checkpoint (default: the miniature of the package)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/demo"),
        metavar="DIR",
        help="folder of the results (default: build/demo); new, empty, or of an earlier demo",
    )
    parser.add_argument("--speaker", help="voice of all answers (default: each of the checkpoint's in turn)")
    parser.add_argument("--seed", type=int, default=0, help="of the speech (default: 0)")


def run(arguments: Namespace) -> None:
    begin = time.perf_counter()
    from ..demo.samples import ask, find_miniature, find_samples, load_samples, table_head, table_row

    folder = arguments.model or find_miniature()
    samples = load_samples(find_samples(folder))
    out = own_folder(arguments.out)
    status("starting MindSpore ...")
    from ..input.processor import Qwen3OmniMoeProcessor
    from ..model import Qwen3OmniMoeForConditionalGeneration

    processor = Qwen3OmniMoeProcessor.from_pretrained(folder)
    status("loading weights ...")
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, progress=False, compile_steps=False)
    speakers = voices(model, arguments.speaker)
    clear_status()
    print(table_head())
    answers = []
    for index, sample in enumerate(samples):
        status(f"{sample.name} ...")
        answers.append(ask(model, processor, sample, speakers[index % len(speakers)], arguments.seed))
        clear_status()
        print(table_row(sample, answers[-1]), flush=True)
    write_results(out, folder, samples, answers)
    report(out, samples, answers, time.perf_counter() - begin)


def voices(model: Any, wanted: str | None) -> Sequence[str | None]:
    """Speakers that take turns. Raises `InputError` for one that the checkpoint does not have."""
    from ..generation.options import speaker_code

    if not model.has_talker:
        return [None]
    if wanted is None:
        return [name.capitalize() for name in model.config.talker_config.speaker_id]
    speaker_code(model.config.talker_config, wanted)
    return [wanted]


def own_folder(path: Path) -> Path:
    """The folder for the results, made if need be. Raises `InputError` for one that holds something else."""
    from ..files import output_folder

    if path.is_dir() and any(path.iterdir()) and not (path / RESULT).is_file():
        raise InputError(f"{path} holds files that are not of a demo; choose another folder with --out")
    return output_folder(path)


def write_results(out: Path, folder: str | Path, samples: Sequence[Any], answers: Sequence[Any]) -> None:
    """Spoken answers, the picture, and all of it as JSON; each file appears when it is complete."""
    import soundfile

    from ..demo.picture import draw
    from ..files import write_file
    from ..outputs import SPEECH_RATE_HZ

    rows = []
    for sample, answer in zip(samples, answers):
        row = {
            "name": sample.name,
            "shown": sample.shown,
            "question": sample.question,
            "expected": sample.answer,
            "answer": answer.text,
            "right": answer.text == sample.answer,
            "total_s": round(answer.total_s, 3),
        }
        if len(answer.speech):
            row |= {
                "speech": f"{sample.name}.wav",
                "speaker": answer.speaker,
                "heard": answer.transcript,
                "speech_s": round(len(answer.speech) / SPEECH_RATE_HZ, 2),
                "first_sound_s": round(answer.first_sound_s, 3),
            }
        rows.append(row)
    write_file(out / RESULT, lambda file: file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8"))
    for sample, answer in zip(samples, answers):
        if len(answer.speech):
            write = functools.partial(soundfile.write, data=answer.speech, samplerate=SPEECH_RATE_HZ, subtype="PCM_16")
            write_file(out / f"{sample.name}.wav", write)
    title = f"ms_omni: {Path(folder).resolve().name} on MindSpore"
    write_file(out / PICTURE, lambda file: draw(title, samples, answers, file))


def report(out: Path, samples: Sequence[Any], answers: Sequence[Any], seconds: float) -> None:
    """The sum of it, in a few lines."""
    right = sum(answer.text == sample.answer for sample, answer in zip(samples, answers))
    again = [f"{answer.text} as {answer.transcript}" for answer in answers if answer.transcript is not None]
    print(f"\n{right} of {len(samples)} answers as expected; {seconds:.0f} s in all")
    if again:
        print(f"its own spoken numbers, played back to it, it heard: {', '.join(again)}")
    print(f"spoken answers: {out}/*.wav; all of it in one picture: {out / PICTURE}")


DEMO = Command(
    "demo",
    "Show the miniature checkpoint of the package files of every kind; writes spoken answers and a picture.",
    add_arguments,
    run,
)
