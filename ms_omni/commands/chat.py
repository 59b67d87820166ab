"""`ms-omni chat`: a conversation in the terminal, with pictures, sounds, videos and speech."""

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import replace

from ..errors import InputError
from .engine_options import add_computing, check_installed, engine_settings
from .messages import clear_status, join_others, status
from .storage_options import STORAGE

NAME = "chat"
HELP = (
    "Talk with the model in the terminal; /help there says what can be shown, spoken and set. Questions may come by a pipe."
)
KEY_VARIABLE = "OPENAI_API_KEY"
ROWS = 1


def add_arguments(parser):
    parser.add_argument(
        "--model", metavar="DIR|NAME", help="checkpoint folder, or the name of a model on a hub; with --url its name there"
    )
    parser.add_argument("--url", metavar="URL", help="talk to a server instead, such as http://127.0.0.1:8000")
    parser.add_argument("--api-key", metavar="KEY", help=f"the server's key (default: {KEY_VARIABLE})")
    parser.add_argument("--system", metavar="S", help="system message")
    parser.add_argument("--max-model-len", type=int, metavar="N", help="tokens of a conversation at most")
    add_computing(parser)


def run(arguments):
    check_installed()
    if arguments.url is None:
        return _here(arguments)
    for name in ("max_model_len", "no_compile", "text_only", "speech", "speech_device", *STORAGE):
        if getattr(arguments, name) not in (None, False):
            raise InputError(f"--{name.replace('_', '-')} is about a model that is loaded here; leave it out with --url")
    for name in ("dtype", "parallel"):
        if getattr(arguments, name) != "auto":
            raise InputError(f"--{name} is about a model that is loaded here; leave it out with --url")
    from ..api_client import api_base, api_client, first_model

    base = api_base(arguments.url)

    async def connect(stack):
        client = await stack.enter_async_context(api_client(arguments.api_key or os.environ.get(KEY_VARIABLE)))
        return client, base, arguments.model or await first_model(client, base)

    return _talk(connect, arguments.system)


def _here(arguments):
    if arguments.model is None:
        raise InputError("--model DIR says what to talk with, or --url URL which server")
    if arguments.api_key is not None:
        raise InputError("--api-key is for --url")
    settings = replace(engine_settings(arguments), max_rows=ROWS)  # on all ranks alike
    status("starting MindSpore ...")
    if not join_others():
        from ..serve.run import follow

        return follow(settings)
    from ..serve.batch import interruptions
    from ..serve.inside import BASE_URL, running

    async def connect(stack):
        with interruptions():  # a model that is being loaded cannot be stopped
            _, client = await stack.enter_async_context(running(settings, lambda text: status(f"{text} ...")))
        return client, f"{BASE_URL}/v1", settings.name

    return _talk(connect, arguments.system)


def _talk(connect, system):
    from .chat_session import Session
    from .chat_terminal import Terminal

    loop, stack = asyncio.new_event_loop(), AsyncExitStack()
    asyncio.set_event_loop(loop)
    try:
        client, base, model = loop.run_until_complete(connect(stack))
        clear_status()
        return Terminal(Session(client, base, model, system), loop).run()
    finally:
        clear_status()
        loop.run_until_complete(stack.aclose())
        asyncio.set_event_loop(None)
        loop.close()
