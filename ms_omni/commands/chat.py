"""`ms-omni chat`: a conversation in the terminal, with images, audio, videos and speech."""

import asyncio
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..api_client import ServerError
from ..errors import InputError, OmniError
from . import Command
from .chat_session import MEDIA, Played, Session, Written, free_name, player
from .options import (
    STORAGE,
    add_engine,
    add_model,
    check_installed,
    clear_status,
    engine_settings,
    join_ranks,
    refuse_given,
    status,
)
from .speech_output import SpeechOutput

KEY_VARIABLE = "OPENAI_API_KEY"
ROWS = 1
OF_A_LOADED_MODEL = ("max_model_len", "no_compile", "text_only", "speech", "speech_device", *STORAGE, "dtype", "parallel")
PROMPT, MORE = "> ", "... "
LONG = '"""'
HISTORY_LINES = 1000
DIM, PLAIN = "\033[2m", "\033[0m"
COMMANDS = """\
/image F, /audio F, /video F   show a file or an address with the next question
/speak on|off|FILE.wav         hear answers by a player of this machine, or write each to a file (.wav .flac .mp3 .ogg .opus)
/voice [NAME]                  which voices there are; take one
/system [TEXT|off]             the system message
/set [NAME VALUE|off]          sampling and the like, as in /set temperature 0.7
/retry                         ask the last question again
/clear                         forget what was said
/save FILE, /load FILE         write the conversation as JSON; go on with one
/help, /quit
A line that ends in \\ goes on in the next one, and so does what begins with \"\"\" until \"\"\" ends a line.
ctrl-C stops an answer; what was said of it stays. ctrl-C or ctrl-D at an empty line leaves."""


def add_arguments(parser: ArgumentParser) -> None:
    add_model(parser, required=False, more="; with --url its name there")
    parser.add_argument("--url", metavar="URL", help="talk to a server instead, such as http://127.0.0.1:8000")
    parser.add_argument("--api-key", metavar="KEY", help=f"the server's key (default: {KEY_VARIABLE})")
    parser.add_argument("--system", metavar="S", help="system message")
    parser.add_argument("--max-model-len", type=int, metavar="N", help="tokens of a conversation at most")
    add_engine(parser)


def run(arguments: Namespace) -> int:
    check_installed()
    if arguments.url is None:
        return _run_here(arguments)
    refuse_given(arguments, OF_A_LOADED_MODEL, "is about a model that is loaded here; leave it out with --url")
    from ..api_client import api_base, api_client, first_model

    base = api_base(arguments.url)

    async def connect(stack: AsyncExitStack) -> tuple[Any, str, str]:
        client = await stack.enter_async_context(api_client(arguments.api_key or os.environ.get(KEY_VARIABLE)))
        return client, base, arguments.model or await first_model(client, base)

    return _talk(connect, arguments.system)


def _run_here(arguments: Namespace) -> int:
    if arguments.model is None:
        raise InputError("--model DIR says what to talk with, or --url URL which server")
    if arguments.api_key is not None:
        raise InputError("--api-key is for --url")
    settings = replace(engine_settings(arguments), max_rows=ROWS)  # on all ranks alike
    status("starting MindSpore ...")
    if not join_ranks():
        from ..serve.run import follow

        return follow(settings)
    from ..serve.batch import interruptions
    from ..serve.run import BASE_URL, local_server

    async def connect(stack: AsyncExitStack) -> tuple[Any, str, str]:
        with interruptions():  # a model that is being loaded cannot be stopped
            _, client = await stack.enter_async_context(local_server(settings, lambda text: status(f"{text} ...")))
        return client, f"{BASE_URL}/v1", settings.name

    return _talk(connect, arguments.system)


def _talk(connect: Callable[[AsyncExitStack], Awaitable[tuple[Any, str, str]]], system: str | None) -> int:
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


class Terminal:
    """session: see there; loop: of its client. Without a terminal every line is a question, and only answers go to standard output."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop):
        self.session, self.loop = session, loop
        self.interactive = sys.stdin.isatty()
        self.target: Path | None = None  # of speech; None: a player
        self.failed = False
        self._thinks = False
        self._readline = _history() if self.interactive else None

    def run(self) -> int:
        """Until the user leaves. Returns an exit code: 1 if something failed where no terminal shows it."""
        import httpx

        if self.interactive:
            self.notify("/help says what can be done here")
        while (text := self._read()) is not None:
            try:
                if text.startswith("/"):
                    if self._command(*_words(text)):
                        break
                elif text.strip():
                    self.session.ask(text)
                    self._answer()
            except (OmniError, ServerError, httpx.HTTPError) as error:
                self.failed = True
                self.notify(f"error: {error or type(error).__name__}")
        return int(self.failed and not self.interactive)

    def notify(self, text: str) -> None:
        """A line that is no answer."""
        print(text, file=sys.stderr, flush=True)

    # -- what is typed -----------------------------------------------------------------------------------------------

    def _read(self) -> str | None:
        """A question or command; None at the end."""
        try:
            text = self._line(PROMPT)
            if text.lstrip().startswith(LONG):
                return self._long(text.lstrip().removeprefix(LONG))
            while text.endswith("\\"):
                text = text[:-1] + "\n" + self._line(MORE)
            return text
        except EOFError:
            if self.interactive:
                print()
            return None
        except KeyboardInterrupt:
            typed = self._readline.get_line_buffer() if self._readline else ""
            print()
            return "" if typed else None

    def _line(self, prompt: str) -> str:
        if self.interactive:
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def _long(self, text: str) -> str:
        lines = [text]
        while not lines[-1].rstrip().endswith(LONG):
            lines.append(self._line(MORE))
        lines[-1] = lines[-1].rstrip().removesuffix(LONG)
        return "\n".join(lines).strip("\n")

    # -- commands ----------------------------------------------------------------------------------------------------

    def _command(self, name: str, rest: str) -> bool:
        """Does it. Returns whether it was the last one."""
        session = self.session
        if name in ("quit", "exit"):
            return True
        if name == "help":
            self.notify(COMMANDS)
        elif name in MEDIA:
            session.show(name, _needed(name, rest, "a file or an address"))
            self.notify(f"{name} goes with the next question")
        elif name == "clear":
            session.clear()
        elif name == "retry":
            session.again()
            self._answer()
        elif name == "save":
            session.save(_needed(name, rest, "a file"))
        elif name == "load":
            session.load(_needed(name, rest, "a file"))
            self.notify(f"{len(session.messages)} messages")
        elif name == "system":
            session.system = session.system if not rest else None if rest == "off" else rest
            self.notify(session.system or "there is no system message")
        elif name == "set":
            self._set(rest)
        elif name == "voice":
            self._voice(rest)
        elif name == "speak":
            self._speak(rest or "on")
        else:
            raise InputError(f"there is no /{name}; /help names all commands")
        return False

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name:
            self.session.set(name, _needed(f"set {name}", value.strip(), "a value, or 'off'"))
        else:
            settings = (f"{name} {value}" for name, value in self.session.settings.items())
            self.notify("\n".join(settings) or "nothing is set: the server's own settings hold")

    def _voice(self, name: str) -> None:
        known = self._known_voices()
        if name:
            fitting = [voice for voice in known or (name,) if voice.lower() == name.lower()]
            if not fitting:
                raise InputError(f"there is no voice {name!r}; there are {', '.join(known)}")
            self.session.voice = fitting[0]
        others = f" ({', '.join(known)})" if known else ""
        self.notify(f"{self.session.voice}{others}")

    def _known_voices(self) -> list[str]:
        """Names; none of a server that does not tell. Raises `InputError` where there are none."""
        known = self._wait(self._voices())
        if known == []:
            raise InputError("this model does not speak")
        return known or []

    async def _voices(self) -> list[str] | None:
        response = await self.session.client.get(f"{self.session.base}/audio/voices")
        with suppress(ValueError, KeyError, TypeError):
            if response.status_code == 200:
                return [str(name) for name in response.json()["voices"]]
        return None

    def _speak(self, how: str) -> None:
        if how == "off":
            self.session.speaks = False
            return
        self._known_voices()
        if how == "on":
            self.notify(f"answers are played by {player()}")
            self.target = None
        else:
            target = Path(how).expanduser()
            SpeechOutput(target)  # raises for what cannot be written
            self.target = target
        self.session.speaks = True

    # -- answers -----------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        try:
            self._wait(self._receive())
        finally:
            self._end_thought()
            print(flush=True)

    async def _receive(self) -> None:
        async with AsyncExitStack() as stack:
            self.sound = self._ignored
            if self.session.speaks:
                output = Played(player()) if self.target is None else Written(free_name(self.target), self.notify)
                self.sound = (await stack.enter_async_context(output)).write
            await self.session.answer(self)

    def _ignored(self, pcm: bytes) -> None:
        """Sound that was not asked for."""

    def thought(self, text: str) -> None:
        """What the model thinks before it answers; not part of the answer."""
        if not self._thinks and self.interactive:
            print(DIM, end="", file=sys.stderr)
        self._thinks = True
        print(text, end="", file=sys.stderr, flush=True)

    def _end_thought(self) -> None:
        if self._thinks:
            print(PLAIN if self.interactive else "", file=sys.stderr, flush=True)
        self._thinks = False

    def text(self, text: str) -> None:
        """A piece of the answer."""
        self._end_thought()
        print(text, end="", flush=True)

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work`. ctrl-C stops it and, without a terminal, the command."""
        task = self.loop.create_task(work)
        self.loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            return self.loop.run_until_complete(task)
        except asyncio.CancelledError:
            if not self.interactive:
                raise KeyboardInterrupt from None
        finally:
            self.loop.remove_signal_handler(signal.SIGINT)


def _words(text: str) -> tuple[str, str]:
    """Name and rest of a command."""
    name, _, rest = text[1:].partition(" ")
    return name, rest.strip()


def _needed(name: str, rest: str, what: str) -> str:
    if not rest:
        raise InputError(f"/{name} needs {what}")
    return rest


def _history() -> Any:
    """Python's readline, with the lines of earlier conversations, and saving those of this one; None where there is none."""
    import atexit

    try:
        import readline
    except ImportError:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "ms_omni" / "chat_history"
    with suppress(OSError):
        path.parent.mkdir(0o700, parents=True, exist_ok=True)  # compiled kernels lie in it, and must be the user's alone
        path.touch(0o600)
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)

    def save() -> None:
        with suppress(OSError):
            readline.write_history_file(path)

    atexit.register(save)
    return readline


CHAT = Command(
    "chat",
    "Talk with the model in the terminal; /help there says what can be shown, spoken and set. Questions may come by a pipe.",
    add_arguments,
    run,
)
