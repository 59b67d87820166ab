"""`ms-omni bench`: how fast this machine runs each part of the model, alone or beside PyTorch transformers."""

import argparse
import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import Command
from .options import option, refuse_given

KEY_VARIABLE = "OPENAI_API_KEY"
SERVED = {"rows": (1, 2, 4, 8, 16), "callers": 16, "rate": None, "spoken": 0.5, "speech": None, "kv_cache_dtype": "auto"}
"""Defaults of `bench serve`."""
REMOTE = ("api_key", "model", "at_once", "tokens", "voice", "extra_body")
"""Options for a server behind --url only."""
AT_ONCE = (1, 2, 4, 8, 16)
HERE = (
    *("geometry", "only", "threads", "no_compile", "quantize", "group", "reference", "reference_python"),
    *("beside", "rows", "speech", "kv_cache_dtype"),
)
"""Options for a model that is loaded here."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=["serve"],
        help="serve: many callers on one engine, with times to first token and first sound, under-runs and rates; without it every "
        "part of the model by itself",
    )
    parser.add_argument(
        "--geometry",
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
        help="only these scenarios: load, memory, image, audio, video, prefill, decode, cached, speech, code2wav, "
        "answer, steps, requests (of serve: decode, writing, speech, speaking, code2wav, burst, again, serve), or one size of them, "
        "such as decode/4",
    )
    parser.add_argument("--repetitions", type=positive, default=None, metavar="N", help="default: 5; 3 for mini")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default: 0)")
    parser.add_argument("--threads", type=positive, metavar="N", help="processors that each side may use (default: all)")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled graphs out")
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="quantise the weights of this model while they load, not those of the other side; a folder that is quantised needs nothing",
    )
    parser.add_argument("--group", type=int, choices=(128, 64, 32), help="inputs that share a scale (int4)")
    parser.add_argument("--reference", action="store_true", help="run PyTorch transformers in turn and print ratios")
    parser.add_argument(
        "--reference-python",
        type=Path,
        metavar="PATH",
        help="the interpreter of an environment with tests/reference/requirements.txt",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="DIR",
        help="a checkout of another version of this project: run it in turn, print ratios",
    )
    parser.add_argument("--rows", type=numbers, metavar="N,N", help="serve: rows of the engines (default: 1,2,4,8,16)")
    parser.add_argument("--callers", type=positive, metavar="N", help="serve: how many (default: 16)")
    parser.add_argument(
        "--rate", type=above_zero, metavar="R", help="serve: calls per second of a Poisson process (default: all at once)"
    )
    parser.add_argument("--speech", choices=["process"], help="serve: process: speech in a process of its own")
    parser.add_argument(
        "--kv-cache-dtype", choices=["auto", "int8"], help="serve: of keys and values, on the engines that the callers meet"
    )
    parser.add_argument("--spoken", type=share, metavar="S", help="serve: share of answers that are spoken (default: 0.5)")
    remote = parser.add_argument_group("serve: a server that speaks OpenAI's API, instead of an engine")
    remote.add_argument("--url", metavar="URL", help="where it is, such as http://127.0.0.1:8000")
    remote.add_argument("--api-key", metavar="KEY", help=f"its key (default: {KEY_VARIABLE})")
    remote.add_argument("--model", metavar="NAME", help="the model to ask for (default: the first that it names)")
    remote.add_argument(
        "--at-once",
        type=numbers,
        metavar="N,N",
        help="callers at a time, each followed by the next (default: 1,2,4,8,16, without --rate)",
    )
    remote.add_argument(
        "--tokens", type=positive, metavar="N", help="longest answers (default: 16 to 48 tokens, by the seed)"
    )
    remote.add_argument("--voice", metavar="NAME", help="of answers in speech (default: Ethan)")
    remote.add_argument(
        "--extra-body", type=fields, metavar="JSON", help='further fields of all requests, such as {"ignore_eos": true}'
    )


def numbers(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas."""
    return [positive(part) for part in text.split(",")]


def fields(text: str) -> dict[str, Any]:
    """An object in JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not an object in JSON")
    return value


def above_zero(text: str) -> float:
    """A number above 0."""
    return _number(text, lambda value: 0 < value < float("inf"), "a number above 0")


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _number(text: str, fits: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def run(arguments: Namespace) -> int:
    if arguments.url is not None:
        return run_remote(arguments)
    refuse_given(arguments, REMOTE, "is for 'ms-omni bench serve --url URL'")
    arguments.geometry = "mini" if arguments.geometry is None else arguments.geometry
    from ..bench.session import benchmark, check_other, check_reference
    from ..files import output_folder
    from ..parallel import start

    if arguments.threads is not None and arguments.threads > len(os.sched_getaffinity(0)):
        raise ValueError(f"--threads {arguments.threads}: this process may use {len(os.sched_getaffinity(0))} processors")
    given = [name for name in SERVED if getattr(arguments, name) is not None]
    if given and not arguments.what:
        raise ValueError(f"{option(given[0])} is for 'ms-omni bench serve'")
    for name in SERVED.keys() - given:
        setattr(arguments, name, SERVED[name])
    if arguments.group and arguments.quantize != "int4":
        raise InputError("--group is for --quantize int4")
    mesh = start()
    if mesh.size > 1 and (arguments.what or arguments.beside):
        raise ValueError("serve and --beside measure one process; leave them out under msrun")
    if arguments.beside:
        if arguments.reference or arguments.reference_python:
            raise ValueError("--beside and --reference are two benchmarks; run one after the other")
        arguments.beside = check_other(arguments.beside)
    if arguments.reference or arguments.reference_python:
        if mesh.size > 1:
            raise ValueError("--reference runs beside one process; leave it out under msrun")
        check_reference(arguments.reference_python)
    return benchmark(arguments, output_folder(arguments.out), mesh)


def run_remote(arguments: Namespace) -> int:
    """Measures a server: needs no model here, and no MindSpore."""
    from ..api_client import api_base
    from ..bench.remote import Settings, benchmark
    from ..files import output_folder

    if not arguments.what:
        raise InputError("--url is for 'ms-omni bench serve'")
    refuse_given(arguments, HERE, "is about a model that is loaded here; leave it out with --url")
    if arguments.rate is not None and arguments.at_once:
        raise InputError("--rate says when callers call, whoever waits, and --at-once that they wait; leave one of them out")
    api_base(arguments.url)
    count = arguments.callers or SERVED["callers"]
    settings = Settings(
        url=arguments.url,
        api_key=arguments.api_key or os.environ.get(KEY_VARIABLE),
        model=arguments.model,
        voice=arguments.voice or Settings.voice,
        count=count,
        rate=arguments.rate,
        at_once=arguments.at_once or [number for number in AT_ONCE if number <= count],
        spoken=SERVED["spoken"] if arguments.spoken is None else arguments.spoken,
        tokens=arguments.tokens,
        seed=arguments.seed,
        repetitions=arguments.repetitions or 1,
        extra=arguments.extra_body or {},
    )
    return benchmark(settings, output_folder(arguments.out))


BENCH = Command(
    "bench",
    "Measure every part of the model, alone or turn by turn with PyTorch transformers; writes JSON, Markdown and PNG.",
    add_arguments,
    run,
)
