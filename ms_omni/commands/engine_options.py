"""Arguments of the commands that answer with an engine, as a server or by themselves: limits, and how it computes."""

from pathlib import Path

from ..errors import InputError
from .storage_options import add_storage, storage_arguments

LEAST = {"max_rows": 1, "max_queue": 0, "max_model_len": 1, "cache_tokens": 1, "max_body_mb": 1, "media_threads": 1}
LEAST |= {"request_timeout": 0.001, "idle_timeout": 0.001, "drain_timeout": 0, "max_sessions": 0, "session_timeout": 0.001}
FIELDS = {
    "request_timeout": "request_s",
    "idle_timeout": "silence_s",
    "drain_timeout": "drain_s",
    "session_timeout": "session_idle_s",
}
FIELDS |= {
    name: name for name in ("max_rows", "max_queue", "max_model_len", "cache_tokens", "media_threads", "max_sessions")
}
"""Arguments that are fields of the settings as they are."""


def add_model(parser):
    parser.add_argument(
        "--model", required=True, metavar="DIR|NAME", help="checkpoint folder, or the name of a model on a hub"
    )
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="name by which requests ask for the model (default: its folder's)"
    )


def add_limits(parser):
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


def add_computing(parser):
    work = parser.add_argument_group("computing")
    work.add_argument("--dtype", default="auto", help="dtype to compute in (default: auto)")
    add_storage(work)
    work.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "int8"),
        default="auto",
        help="int8 (CPU): keep keys and values as whole numbers of 8 bits, with a scale per token and head (default: auto, as computed)",
    )
    work.add_argument("--no-compile", action="store_true", help="never compile the steps of generation into graphs")
    work.add_argument(
        "--parallel", default="auto", choices=("auto", "ep", "zero3"), help="how several processes share the model"
    )
    work.add_argument("--text-only", action="store_true", help="load neither talker nor vocoder")
    work.add_argument("--speech", choices=("process",), help="speak in a process of its own")
    work.add_argument("--speech-device", type=int, metavar="N", help="the card of that process")


def check_installed():
    """Raises `InputError` where a package of the server's is missing."""
    try:
        import httpx  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"the server needs {error.name}; install it with: pip install 'ms-omni[serve]'") from None


def engine_settings(arguments):
    """Checked `Settings` of a command line. Raises `OmniError` for what cannot be, before anything that takes long."""
    from ..config import Qwen3OmniMoeConfig
    from ..serve.settings import MIB, Settings

    config, given = Qwen3OmniMoeConfig.from_pretrained(arguments.model), vars(arguments)
    for name, minimum in LEAST.items():
        value = given.get(name)
        if value is not None and not minimum <= value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} is {value}, expected {minimum} or more")
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
        dtype=arguments.dtype,
        **storage_arguments(arguments),
        kv_cache_dtype=arguments.kv_cache_dtype,
        compile_steps=not arguments.no_compile,
        parallel=arguments.parallel,
        speech=arguments.speech,
        speech_device=arguments.speech_device,
        text_only=arguments.text_only,
        **limits,
    )


def _name_of(model):
    """A folder's name, or that of a model on a hub as it is."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model
