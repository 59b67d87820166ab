"""`ms-omni serve`: the model behind the OpenAI API, and a page to try it; `ms-omni batch`: a file of such requests, answered without
a server; `ms-omni launch`: a command in several processes, on this machine and others.
"""

import argparse
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from . import Command
from .generate import GENERATE, SAY
from .options import (
    add_engine,
    add_limits,
    add_model,
    check_installed,
    clear_status,
    engine_settings,
    join_ranks,
    option,
    status,
)

if TYPE_CHECKING:
    from ..serve.settings import Settings

KEY_VARIABLE = "MS_OMNI_API_KEY"
PORTS = range(1, 65536)


def _add_served_model(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="name by which requests ask for the model (default: its folder's)"
    )


def add_arguments(parser: ArgumentParser) -> None:
    _add_served_model(parser)
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
        "--instance",
        metavar="NAME",
        help="what this server is called among several: ids of its spoken answers say it, so that others can be sent there",
    )
    limits = add_limits(parser)
    limits.add_argument(
        "--max-queue", type=int, default=128, metavar="N", help="answers that may wait beside them (default: 128)"
    )
    limits.add_argument(
        "--idle-timeout", type=float, default=60.0, metavar="S", help="for callers who neither send nor read (default: 60 s)"
    )
    limits.add_argument(
        "--drain-timeout", type=float, default=60.0, metavar="S", help="for answers under way when it ends (default: 60 s)"
    )
    limits.add_argument(
        "--max-sessions",
        type=int,
        default=64,
        metavar="N",
        help="realtime conversations that are open at a time (default: 64)",
    )
    limits.add_argument(
        "--session-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="for realtime conversations whose client sends nothing (default: 600 s)",
    )
    add_engine(parser)
    transcription = parser.add_argument_group("speech to text")
    transcription.add_argument(
        "--transcription-prompt",
        metavar="TEXT",
        help="what the model is asked behind a sound that is to be written down, {language} being its language if that is known "
        "(default: the checkpoint's, or that of Qwen's evaluations)",
    )
    transcription.add_argument("--translation-prompt", metavar="TEXT", help="the same for one that is to be translated")
    parser.add_argument("--log-content", action="store_true", help="log what is asked and answered (default: not)")


def run(arguments: Namespace) -> int:
    settings = settings_of(arguments)
    check_installed()
    status("starting MindSpore ...")
    is_first = join_ranks()
    from ..serve.run import follow, serve

    return serve(settings) if is_first else follow(settings)


def settings_of(arguments: Namespace) -> "Settings":
    """Checked `Settings` of a command line. Raises `OmniError` for what cannot be, before anything that takes long."""
    settings = engine_settings(arguments)
    if arguments.port not in PORTS:
        raise InputError(f"--port is {arguments.port}, expected {PORTS.start} to {PORTS.stop - 1}")
    if bool(arguments.ssl_certfile) != bool(arguments.ssl_keyfile):
        raise InputError("--ssl-certfile and --ssl-keyfile belong together; give both")
    for file in filter(None, (arguments.ssl_certfile, arguments.ssl_keyfile)):
        if not Path(file).is_file():
            raise InputError(f"there is no file {file}")
    keys = arguments.api_key or [key for key in os.environ.get(KEY_VARIABLE, "").split(",") if key.strip()]
    keys = [key.strip() for key in keys]
    if not all(key and key.isascii() and key.isprintable() for key in keys):
        raise InputError("an API key must be printable ASCII characters, and not empty")
    instance = arguments.instance
    if instance is not None and not (instance.isascii() and instance.isalnum()):
        raise InputError(f"--instance is {instance!r}, expected letters and digits")
    for name in ("transcription_prompt", "translation_prompt"):
        if (text := getattr(arguments, name)) is not None and not text.strip():
            raise InputError(f"{option(name)} is empty; leave it out, or give a text")
    return replace(
        settings,
        host=arguments.host,
        port=arguments.port,
        instance=instance,
        api_keys=tuple(keys),
        origins=tuple(origin.rstrip("/") for origin in arguments.allow_origin or ()),
        certificate=arguments.ssl_certfile,
        certificate_key=arguments.ssl_keyfile,
        access_log=True,
        log_content=arguments.log_content,
        transcription_prompt=arguments.transcription_prompt,
        translation_prompt=arguments.translation_prompt,
    )


def add_batch_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "requests",
        metavar="IN.jsonl",
        type=Path,
        help='lines of {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}',
    )
    parser.add_argument(
        "answers",
        metavar="OUT.jsonl",
        type=Path,
        help='lines of {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}, as they are ready',
    )
    _add_served_model(parser)
    parser.add_argument("--overwrite", action="store_true", help="start over, whatever is in OUT.jsonl")
    add_limits(parser)
    add_engine(parser)


def run_batch(arguments: Namespace) -> int:
    settings = engine_settings(arguments)
    check_installed()
    from ..serve.batch import Answers, Requests, batch

    status("reading requests ...")
    requests = Requests(arguments.requests)
    status("starting MindSpore ...")
    if not join_ranks():
        from ..serve.run import follow

        return follow(settings)
    with Answers(arguments.answers, requests, arguments.overwrite) as answers:
        try:
            return batch(settings, requests, answers, lambda text: status(f"{text} ..."))
        finally:
            clear_status()


def add_launch_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--cards", type=int, required=True, metavar="N", help="processes on this machine, one per card")
    parser.add_argument("--nodes", type=int, default=1, metavar="M", help="number of machines, N cards each (default: 1)")
    parser.add_argument("--node-rank", type=int, default=0, metavar="R", help="which machine this is, from 0 (default: 0)")
    parser.add_argument("--master-addr", default="127.0.0.1", metavar="A", help="address of machine 0")
    parser.add_argument(
        "--master-port",
        type=int,
        metavar="P",
        help="free port of machine 0 (default: one is chosen); port P + 1009 is used as well",
    )
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="folder for the logs (default: a temporary one)")
    parser.add_argument(
        "command_line",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="SCRIPT.py or a command of ms-omni, with its own arguments",
    )


def run_launch(arguments: Namespace) -> int:
    from ..parallel import launch

    command = python_command(arguments.command_line)
    return launch.run(
        launch.Job(
            command,
            arguments.cards,
            arguments.nodes,
            arguments.node_rank,
            arguments.master_addr,
            arguments.master_port,
            arguments.log_dir,
        )
    )


def python_command(words: Sequence[str]) -> tuple[str, ...]:
    """The arguments of `python` to run a script or a command of ms-omni. Raises `InputError` for neither."""
    known = [command.name for command in (GENERATE, SAY, SERVE, BATCH)]
    words = words[1:] if words[:1] == ["--"] else words
    if words and words[0] in known:
        return ("-m", "ms_omni.cli", *words)
    if words and words[0].endswith(".py"):
        if not Path(words[0]).is_file():
            raise InputError(f"there is no script {words[0]}")
        return tuple(words)
    raise InputError(
        f"ms-omni launch got {' '.join(words) or 'nothing'!r} to run, expected SCRIPT.py, {', '.join(known[:-1])} or {known[-1]}"
    )


SERVE = Command(
    "serve",
    "Answer over HTTP as OpenAI's API does: chat with sound, speech, transcriptions, realtime conversations, and a page.",
    add_arguments,
    run,
)
BATCH = Command(
    "batch",
    "Answer a file of requests, each a line as OpenAI's batches have them. Run again after an interruption, it goes on where it was. "
    "Exit code 0: all succeeded, 1: some lines of the answers hold an error.",
    add_batch_arguments,
    run_batch,
)
LAUNCH = Command(
    "launch",
    "Run a script, or `generate`, `say`, `serve` or `batch`, in one process per card, on one machine or several.",
    add_launch_arguments,
    run_launch,
)
