"""`ms-omni bench`: how fast this machine runs each part of the model, alone or beside PyTorch transformers."""

import argparse
import os
from pathlib import Path

NAME = "bench"
HELP = "Measure every part of the model, alone or turn by turn with PyTorch transformers; writes JSON, Markdown and PNG."


def add_arguments(parser):
    parser.add_argument(
        "--geometry",
        default="mini",
        metavar="NAME|DIR",
        help="mini (default; three minutes), mid (1/35 of the published size), published, another name in "
        "configs/, or a checkpoint folder; weights are made where there are none",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/benchmark"),
        metavar="DIR",
        help="folder of the results (default: build/benchmark)",
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        metavar="A,B",
        help="only these scenarios: load, image, audio, video, prefill, decode, cached, speech, code2wav, "
        "answer, steps, requests, or one size of them, such as decode/4",
    )
    parser.add_argument("--repetitions", type=positive, default=None, metavar="N", help="default: 5; 3 for mini")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default: 0)")
    parser.add_argument("--threads", type=positive, metavar="N", help="processors that each side may use (default: all)")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled graphs out")
    parser.add_argument("--reference", action="store_true", help="run PyTorch transformers in turn and print ratios")
    parser.add_argument(
        "--reference-python",
        type=Path,
        metavar="PATH",
        help="the interpreter of an environment with tests/reference/requirements.txt",
    )


def positive(text):
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def run(arguments):
    from ..bench.files import output_folder
    from ..bench.parties import check_reference
    from ..bench.scenarios import SMALL, chosen, scenarios, sizes_of
    from ..config import Qwen3OmniMoeConfig
    from ..parallel import start

    if arguments.threads is not None and arguments.threads > len(os.sched_getaffinity(0)):
        raise ValueError(f"--threads {arguments.threads}: this process may use {len(os.sched_getaffinity(0))} processors")
    mesh = start()
    if arguments.reference or arguments.reference_python:
        if mesh.size > 1:
            raise ValueError("--reference runs beside one process; leave it out under msrun")
        check_reference(arguments.reference_python)
    out = output_folder(arguments.out)
    from ..bench.run import benchmark, weights_for

    folder = weights_for(arguments, out, mesh)
    sizes = sizes_of(arguments.geometry)
    speaks = Qwen3OmniMoeConfig.from_pretrained(folder).enable_audio_output
    listed, load = chosen(scenarios(sizes, speaks), arguments.only)
    repetitions = arguments.repetitions or (3 if sizes is SMALL else 5)
    return benchmark(arguments, out, folder, sizes, listed, load, repetitions, mesh)
