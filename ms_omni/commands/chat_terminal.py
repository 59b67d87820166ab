"""The terminal's side of a conversation: what is typed, and what is done with it."""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx

from ..api_client import ServerError
from ..errors import InputError, OmniError
from .chat_session import MEDIA, Session
from .chat_speech import Played, Written, free_name, player
from .speech_output import SpeechOutput

PROMPT, MORE = "> ", "... "
LONG = '"""'
KEPT_LINES = 1000
DIM, PLAIN = "\033[2m", "\033[0m"
HELP = """\
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
        """Until it is left. Returns an exit code: 1 if something failed where nobody looked on."""
        if self.interactive:
            self.tell("/help says what can be done here")
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
                self.tell(f"error: {error or type(error).__name__}")
        return int(self.failed and not self.interactive)

    def tell(self, text: str) -> None:
        """A line that is no answer."""
        print(text, file=sys.stderr, flush=True)

    # -- what is typed -----------------------------------------------------------------------------------------------

    def _read(self):
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

    def _line(self, prompt):
        if self.interactive:
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def _long(self, text):
        lines = [text]
        while not lines[-1].rstrip().endswith(LONG):
            lines.append(self._line(MORE))
        lines[-1] = lines[-1].rstrip().removesuffix(LONG)
        return "\n".join(lines).strip("\n")

    # -- commands ----------------------------------------------------------------------------------------------------

    def _command(self, name, rest):
        """Does it. Returns whether it was the last one."""
        session = self.session
        if name in ("quit", "exit"):
            return True
        if name == "help":
            self.tell(HELP)
        elif name in MEDIA:
            session.show(name, _needed(name, rest, "a file or an address"))
            self.tell(f"{name} goes with the next question")
        elif name == "clear":
            session.clear()
        elif name == "retry":
            session.again()
            self._answer()
        elif name == "save":
            session.save(_needed(name, rest, "a file"))
        elif name == "load":
            session.load(_needed(name, rest, "a file"))
            self.tell(f"{len(session.messages)} messages")
        elif name == "system":
            session.system = session.system if not rest else None if rest == "off" else rest
            self.tell(session.system or "there is no system message")
        elif name == "set":
            self._set(rest)
        elif name == "voice":
            self._voice(rest)
        elif name == "speak":
            self._speak(rest or "on")
        else:
            raise InputError(f"there is no /{name}; /help names all commands")
        return False

    def _set(self, rest):
        name, _, value = rest.partition(" ")
        if name:
            self.session.set(name, _needed(f"set {name}", value.strip(), "a value, or 'off'"))
        else:
            settings = (f"{name} {value}" for name, value in self.session.settings.items())
            self.tell("\n".join(settings) or "nothing is set: the server's own settings hold")

    def _voice(self, name):
        known = self._known_voices()
        if name:
            fitting = [voice for voice in known or (name,) if voice.lower() == name.lower()]
            if not fitting:
                raise InputError(f"there is no voice {name!r}; there are {', '.join(known)}")
            self.session.voice = fitting[0]
        others = f" ({', '.join(known)})" if known else ""
        self.tell(f"{self.session.voice}{others}")

    def _known_voices(self):
        """Names; none of a server that does not tell. Raises `InputError` where there are none."""
        known = self._wait(self._voices())
        if known == []:
            raise InputError("this model does not speak")
        return known or []

    async def _voices(self):
        response = await self.session.client.get(f"{self.session.base}/audio/voices")
        with suppress(ValueError, KeyError, TypeError):
            if response.status_code == 200:
                return [str(name) for name in response.json()["voices"]]
        return None

    def _speak(self, how):
        if how == "off":
            self.session.speaks = False
            return
        self._known_voices()
        if how == "on":
            self.tell(f"answers are played by {player()}")
            self.target = None
        else:
            target = Path(how).expanduser()
            SpeechOutput(target)  # raises for what cannot be written
            self.target = target
        self.session.speaks = True

    # -- answers -----------------------------------------------------------------------------------------------------

    def _answer(self):
        try:
            self._wait(self._hear())
        finally:
            self._end_thought()
            print(flush=True)

    async def _hear(self):
        async with AsyncExitStack() as stack:
            self.sound = self._ignored
            if self.session.speaks:
                output = Played(player()) if self.target is None else Written(free_name(self.target), self.tell)
                self.sound = (await stack.enter_async_context(output)).write
            await self.session.answer(self)

    def _ignored(self, pcm):
        """Sound that was not asked for."""

    def thought(self, text: str) -> None:
        """What the model thinks before it answers; not part of the answer."""
        if not self._thinks and self.interactive:
            print(DIM, end="", file=sys.stderr)
        self._thinks = True
        print(text, end="", file=sys.stderr, flush=True)

    def _end_thought(self):
        if self._thinks:
            print(PLAIN if self.interactive else "", file=sys.stderr, flush=True)
        self._thinks = False

    def text(self, text: str) -> None:
        """A piece of the answer."""
        self._end_thought()
        print(text, end="", flush=True)

    def _wait(self, work) -> Any:
        """What it returns. ctrl-C stops it; where nobody types, it ends the command."""
        task = self.loop.create_task(work)
        self.loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            return self.loop.run_until_complete(task)
        except asyncio.CancelledError:
            if not self.interactive:
                raise KeyboardInterrupt from None
        finally:
            self.loop.remove_signal_handler(signal.SIGINT)


def _words(text):
    """Name and rest of a command."""
    name, _, rest = text[1:].partition(" ")
    return name, rest.strip()


def _needed(name, rest, what):
    if not rest:
        raise InputError(f"/{name} needs {what}")
    return rest


def _history() -> Any:
    """Python's readline, with what was typed earlier, and kept for later; None where there is none."""
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
    readline.set_history_length(KEPT_LINES)

    def keep():
        with suppress(OSError):
            readline.write_history_file(path)

    atexit.register(keep)
    return readline
