"""A server of ours as a child process: started, watched and ended by a program that has several."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence

import aiohttp

POLL_S, ASK_S, KEPT_LINES = 0.5, 5.0, 20
BOOTSTRAP = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL);"
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)
"""PR_SET_PDEATHSIG: whoever started it is gone, so nobody can ask it any more. Set here as forking with `preexec_fn` is not safe
in a program with threads; it holds for the thread that starts it, which must live on."""


class Child:
    """One process: `ms-omni serve`, or, with more than one card, `ms-omni launch --cards N serve`.

    options: of `ms-omni serve`, without host and port. name: for what it says, and of the spoken answers that it keeps.
    """

    def __init__(self, name: str, options: Sequence[str], host: str, cards: int = 1):
        self.name, self.host, self.port = name, host, _free_port(host)
        launch = ["launch", "--cards", str(cards)] if cards > 1 else []
        self.command = ["-m", "ms_omni", *launch, "serve", *options, "--host", host, "--port", str(self.port)]
        self.said: deque[str] = deque(maxlen=KEPT_LINES)
        self.process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def start(self, variables: Mapping[str, str]) -> None:
        """Returns when it answers questions. Raises `RuntimeError` with its last words if it ends before; variables: its environment."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", BOOTSTRAP, str(os.getpid()), *self.command),
            env=dict(variables),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.ensure_future(self._read(self.process.stderr))
        while await self.state() != "ready":
            if self.process.returncode is not None:
                await self._reading
                raise RuntimeError(f"the engine {self.how()}. It said:\n" + "\n".join(self.said))
            await asyncio.sleep(POLL_S)

    async def _read(self, stream):
        """Passes on what it says, line by line."""
        while True:
            try:
                line = (await stream.readline()).decode(errors="replace")
            except ValueError:  # longer than the reader keeps
                continue
            if not line:
                return
            self.said.append(line.rstrip())
            print(f"[{self.name}] {line}", end="", file=sys.stderr, flush=True)

    async def state(self) -> str | None:
        """What its `/health` says: "starting", "ready", "draining" or "failed"; None where it does not answer."""
        limit = aiohttp.ClientTimeout(total=ASK_S)
        try:
            async with aiohttp.ClientSession(timeout=limit) as session, session.get(self.url + "/health") as answer:
                return (await answer.json())["status"]
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, LookupError):
            return None

    async def ended(self) -> str:
        """Waits for its end, and says how it ended."""
        await self.process.wait()
        return self.how()

    def how(self) -> str:
        """How it ended."""
        code = self.process.returncode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    async def end(self, limit_s: float) -> None:
        """Lets answers under way end, `limit_s` at most."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), limit_s)
            except asyncio.TimeoutError:
                self.process.kill()
                await self.process.wait()


def _free_port(host):
    """One that is free now; if somebody else takes it before, the server says so and ends."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as bound:
        bound.bind((host, 0))
        return bound.getsockname()[1]
