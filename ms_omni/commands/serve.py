"""`ms-omni serve`: the model behind the OpenAI API, and a page to try it."""

import os
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from .engine_options import add_computing, add_limits, add_model, check_installed, engine_settings
from .messages import join_others, status

NAME = "serve"
HELP = "Answer over HTTP as OpenAI's API does: chat with sound, speech, transcriptions, realtime conversations, and a page."
KEY_VARIABLE = "MS_OMNI_API_KEY"
PORTS = range(1, 65536)


def add_arguments(parser):
    add_model(parser)
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
    add_computing(parser)
    hearing = parser.add_argument_group("speech to text")
    hearing.add_argument(
        "--transcription-prompt",
        metavar="TEXT",
        help="what the model is asked behind a sound that is to be written down, {language} being its language if that is known "
        "(default: the checkpoint's, or that of Qwen's evaluations)",
    )
    hearing.add_argument("--translation-prompt", metavar="TEXT", help="the same for one that is to be translated")
    parser.add_argument("--log-content", action="store_true", help="log what is asked and answered (default: not)")


def run(arguments):
    settings = settings_of(arguments)
    check_installed()
    status("starting MindSpore ...")
    leads = join_others()
    from ..serve.run import follow, serve

    return serve(settings) if leads else follow(settings)


def settings_of(arguments):
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
            raise InputError(f"--{name.replace('_', '-')} is empty; leave it out, or give a text")
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
