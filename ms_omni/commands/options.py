"""Options that several commands share, the settings that they make, and the status line on the terminal."""

import os
import sys
from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..load_arguments import check_quantize

if TYPE_CHECKING:
    from ..serve.settings import Settings

Parser = ArgumentParser | _ArgumentGroup
STORAGE = ("quantize", "quantize_group", "quantize_embeddings")
LEAST = {"max_rows": 1, "max_queue": 0, "max_model_len": 1, "cache_tokens": 1, "max_body_mb": 1, "media_threads": 1}
LEAST |= {"request_timeout": 0.001, "idle_timeout": 0.001, "drain_timeout": 0, "max_sessions": 0, "session_timeout": 0.001}
SAME_NAME = ("max_rows", "max_queue", "max_model_len", "cache_tokens", "media_threads", "max_sessions")
FIELDS = {name: name for name in SAME_NAME} | {
    "request_timeout": "request_s",
    "idle_timeout": "silence_s",
    "drain_timeout": "drain_s",
    "session_timeout": "session_idle_s",
}
"""Arguments that are fields of `Settings` as they are."""


def option(name: str) -> str:
    """An argument as it is typed."""
    return f"--{name.replace('_', '-')}"


def add_model(parser: Parser, required: bool = True, more: str = "") -> None:
    parser.add_argument(
        "--model",
        required=required,
        metavar="DIR|NAME",
        help=f"checkpoint folder, or the name of a model on a hub{more}",
    )


def add_loading(parser: Parser) -> None:
    """How the model is loaded: dtype, storage of its weights, graphs, and how several processes share it."""
    parser.add_argument("--dtype", default="auto", help="dtype to compute in (default: auto)")
    parser.add_argument(
        "--quantize", choices=("int8", "int4"), help="round most matrices while they are read (docs/quantisation.md)"
    )
    parser.add_argument(
        "--quantize-group",
        type=int,
        metavar="N",
        help="inputs that share a scale, 128, 64 or 32 (only with --quantize int4)",
    )
    parser.add_argument(
        "--quantize-embeddings", action="store_true", help="the table of tokens too, in 8 bits (only with --quantize)"
    )
    parser.add_argument("--no-compile", action="store_true", help="never compile the steps of generation into graphs")
    parser.add_argument(
        "--parallel",
        default="auto",
        choices=("auto", "ep", "zero3"),
        help="how the processes of `ms-omni launch` or msrun share the model (default: ep)",
    )


def storage_options(arguments: Namespace) -> dict[str, Any]:
    """The arguments of `from_pretrained` for the storage of weights, checked. Raises `InputError`."""
    chosen = {name: getattr(arguments, name) for name in STORAGE}
    check_quantize(*chosen.values())
    return chosen


def loading_options(arguments: Namespace) -> dict[str, Any]:
    """The arguments of `from_pretrained` that `add_loading` gives, checked. Raises `InputError`."""
    return {
        "dtype": arguments.dtype,
        **storage_options(arguments),
        "compile_steps": not arguments.no_compile,
        "parallel": arguments.parallel,
    }


def add_limits(parser: ArgumentParser) -> _ArgumentGroup:
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-rows", type=int, default=16, metavar="N", help="answers at work at a time (default: 16)")
    limits.add_argument("--max-model-len", type=int, metavar="N", help="tokens of a prompt and its answer together")
    limits.add_argument(
        "--cache-tokens",
        type=int,
        metavar="N",
        help="tokens of all answers that the caches hold (default: what memory allows)",
    )
    limits.add_argument("--max-body-mb", type=int, default=256, metavar="N", help="size of one request (default: 256 MiB)")
    limits.add_argument("--request-timeout", type=float, default=600.0, metavar="S", help="for one answer (default: 600 s)")
    limits.add_argument("--media-threads", type=int, default=4, metavar="N", help="threads that decode media (default: 4)")
    limits.add_argument(
        "--allow-media-host",
        action="append",
        metavar="HOST",
        help="fetch media from this host alone, wherever it is; may be repeated (default: from all public addresses)",
    )
    return limits


def add_engine(parser: ArgumentParser) -> None:
    """How the engine of a server computes."""
    group = parser.add_argument_group("computing")
    add_loading(group)
    group.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "int8"),
        default="auto",
        help="int8 (CPU): store keys and values as whole numbers of 8 bits, with a scale per token and head (default: auto, as computed)",
    )
    group.add_argument("--text-only", action="store_true", help="load neither talker nor vocoder")
    group.add_argument("--speech", choices=("process",), help="speak in a process of its own")
    group.add_argument("--speech-device", type=int, metavar="N", help="the card of that process")


def check_installed() -> None:
    """Raises `InputError` where a package of the server's is missing."""
    try:
        import httpx  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"the server needs {error.name}; install it with: pip install 'ms-omni[serve]'") from None


def engine_settings(arguments: Namespace) -> "Settings":
    """Checked `Settings` of a command line. Raises `OmniError` for what cannot be, before anything that takes long."""
    from ..config import Qwen3OmniMoeConfig
    from ..serve.settings import MIB, Settings

    config, given = Qwen3OmniMoeConfig.from_pretrained(arguments.model), vars(arguments)
    for name, minimum in LEAST.items():
        value = given.get(name)
        if value is not None and not minimum <= value < float("inf"):
            raise InputError(f"{option(name)} is {value}, expected {minimum} or more")
    if arguments.text_only and arguments.speech:
        raise InputError("--text-only loads no talker, so --speech has nothing to do; leave one of them out")
    if arguments.speech_device is not None and arguments.speech is None:
        raise InputError("--speech-device is the card of --speech process; add that")
    if arguments.speech and config.talker_config is None:
        raise InputError(f"{arguments.model} has no talker, so it cannot speak: leave --speech out")
    limits = {field: given[name] for name, field in FIELDS.items() if name in given}
    if hosts := given.get("allow_media_host"):
        limits["media_hosts"] = tuple(hosts)
    if "max_body_mb" in given:
        limits["max_body_bytes"] = given["max_body_mb"] * MIB
    return Settings(
        model=arguments.model,
        name=given.get("served_model_name") or _name_of(arguments.model),
        **loading_options(arguments),
        kv_cache_dtype=arguments.kv_cache_dtype,
        speech=arguments.speech,
        speech_device=arguments.speech_device,
        text_only=arguments.text_only,
        **limits,
    )


def _name_of(model: str) -> str:
    """A folder's name, or that of a model on a hub as it is."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def refuse_given(arguments: Namespace, names: Iterable[str], reason: str) -> None:
    """Raises `InputError` for the first of these arguments that was given, and so is neither None, False nor "auto"."""
    for name in names:
        if getattr(arguments, name) not in (None, False, "auto"):
            raise InputError(f"{option(name)} {reason}")


def join_ranks() -> bool:
    """Under msrun: waits for the other processes. Returns whether this one prints; rank 0 does, the others are quiet."""
    from ..parallel import start

    mesh = start()
    if not mesh.speaks:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return mesh.speaks


def status(text: str) -> None:
    """A line on a terminal's standard error about what takes long just now; silent elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def clear_status() -> None:
    """Removes the line of `status`."""
    status("")
