"""`ms-omni serve`: the model behind the OpenAI API, and a page to try it."""

import os
from pathlib import Path

from ..errors import InputError
from .messages import join_others, status

NAME = "serve"
HELP = "Answer over HTTP as OpenAI's API does: chat with sound, speech, transcriptions, realtime conversations, and a page."
KEY_VARIABLE = "MS_OMNI_API_KEY"
PORTS = range(1, 65536)


def add_arguments(parser):
    parser.add_argument(
        "--model", required=True, metavar="DIR|NAME", help="checkpoint folder, or the name of a model on a hub"
    )
    listening = parser.add_argument_group("listening")
    listening.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    listening.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    listening.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help=f"a key that callers must send; may be repeated (default: those in {KEY_VARIABLE}, separated by commas)",
    )
    listening.add_argument(
        "--allow-origin", action="append", metavar="URL", help="a page elsewhere that browsers may let ask; may be repeated"
    )
    listening.add_argument("--ssl-certfile", metavar="PEM", help="certificate for https")
    listening.add_argument("--ssl-keyfile", metavar="PEM", help="its private key")
    listening.add_argument(
        "--served-model-name", metavar="NAME", help="name by which callers ask for the model (default: its folder's)"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-rows", type=int, default=16, metavar="N", help="answers at work at a time (default: 16)")
    limits.add_argument(
        "--max-queue", type=int, default=128, metavar="N", help="answers that may wait beside them (default: 128)"
    )
    limits.add_argument("--max-model-len", type=int, metavar="N", help="tokens of a prompt and its answer together")
    limits.add_argument(
        "--cache-tokens",
        type=int,
        metavar="N",
        help="tokens of all answers that the caches hold (default: what memory allows)",
    )
    limits.add_argument("--max-body-mb", type=int, default=256, metavar="N", help="size of one request (default: 256 MiB)")
    limits.add_argument("--request-timeout", type=float, default=600.0, metavar="S", help="for one answer (default: 600 s)")
    limits.add_argument(
        "--idle-timeout", type=float, default=60.0, metavar="S", help="for callers who neither send nor read (default: 60 s)"
    )
    limits.add_argument(
        "--drain-timeout", type=float, default=60.0, metavar="S", help="for answers under way when it ends (default: 60 s)"
    )
    limits.add_argument("--media-threads", type=int, default=4, metavar="N", help="threads that decode media (default: 4)")
    limits.add_argument(
        "--allow-media-host",
        action="append",
        metavar="HOST",
        help="fetch media from this host alone, wherever it is; may be repeated (default: from all public addresses)",
    )
    work = parser.add_argument_group("computing")
    work.add_argument("--dtype", default="auto", help="dtype to compute in (default: auto)")
    work.add_argument("--no-compile", action="store_true", help="never compile the steps of generation into graphs")
    work.add_argument(
        "--parallel", default="auto", choices=("auto", "ep", "zero3"), help="how several processes share the model"
    )
    work.add_argument("--text-only", action="store_true", help="load neither talker nor vocoder")
    work.add_argument("--speech", choices=("process",), help="speak in a process of its own")
    work.add_argument("--speech-device", type=int, metavar="N", help="the card of that process")
    parser.add_argument("--log-content", action="store_true", help="log what is asked and answered (default: not)")


def run(arguments):
    settings = settings_of(arguments)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"the server needs {error.name}; install it with: pip install 'ms-omni[serve]'") from None
    status("starting MindSpore ...")
    leads = join_others()
    from ..serve.run import follow, serve

    return serve(settings) if leads else follow(settings)


def settings_of(arguments):
    """Checked `Settings` of a command line. Raises `OmniError` for what cannot be, before anything that takes long."""
    from ..config import Qwen3OmniMoeConfig
    from ..serve.settings import MIB, Settings

    config = Qwen3OmniMoeConfig.from_pretrained(arguments.model)
    if arguments.port not in PORTS:
        raise InputError(f"--port is {arguments.port}, expected {PORTS.start} to {PORTS.stop - 1}")
    least = {"max_rows": 1, "max_queue": 0, "max_model_len": 1, "cache_tokens": 1, "max_body_mb": 1, "media_threads": 1}
    least |= {"request_timeout": 0.001, "idle_timeout": 0.001, "drain_timeout": 0}
    for name, minimum in least.items():
        value = getattr(arguments, name)
        if value is not None and not minimum <= value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} is {value}, expected {minimum} or more")
    if bool(arguments.ssl_certfile) != bool(arguments.ssl_keyfile):
        raise InputError("--ssl-certfile and --ssl-keyfile belong together; give both")
    for file in filter(None, (arguments.ssl_certfile, arguments.ssl_keyfile)):
        if not Path(file).is_file():
            raise InputError(f"there is no file {file}")
    if arguments.text_only and arguments.speech:
        raise InputError("--text-only loads no talker, so --speech has nothing to do; leave one of them out")
    if arguments.speech_device is not None and arguments.speech is None:
        raise InputError("--speech-device is the card of --speech process; add that")
    if arguments.speech and config.talker_config is None:
        raise InputError(f"{arguments.model} has no talker, so it cannot speak: leave --speech out")
    keys = arguments.api_key or [key for key in os.environ.get(KEY_VARIABLE, "").split(",") if key]
    if not all(key.strip() and key.isascii() and key.isprintable() for key in keys):
        raise InputError("an API key must be printable ASCII characters, and not empty")
    return Settings(
        model=arguments.model,
        name=arguments.served_model_name or _name_of(arguments.model),
        host=arguments.host,
        port=arguments.port,
        api_keys=tuple(keys),
        origins=tuple(origin.rstrip("/") for origin in arguments.allow_origin or ()),
        max_rows=arguments.max_rows,
        max_queue=arguments.max_queue,
        max_model_len=arguments.max_model_len,
        cache_tokens=arguments.cache_tokens,
        max_body_bytes=arguments.max_body_mb * MIB,
        media_threads=arguments.media_threads,
        request_s=arguments.request_timeout,
        silence_s=arguments.idle_timeout,
        drain_s=arguments.drain_timeout,
        media_hosts=tuple(arguments.allow_media_host) if arguments.allow_media_host else "public",
        dtype=arguments.dtype,
        compile_steps=not arguments.no_compile,
        parallel=arguments.parallel,
        speech=arguments.speech,
        speech_device=arguments.speech_device,
        text_only=arguments.text_only,
        certificate=arguments.ssl_certfile,
        certificate_key=arguments.ssl_keyfile,
        log_content=arguments.log_content,
    )


def _name_of(model):
    """A folder's name, or that of a model on a hub as it is."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model
