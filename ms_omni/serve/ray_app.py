"""Several engines behind one address, by Ray Serve: `serve run ms_omni.serve.ray_app:app model=DIR replicas=4 cards=2`.

    caller --- Ray's proxy --- Gateway --- http --- Engine 1: ms-omni serve        one process, one card
                                  |
                                  +------- http --- Engine 2: ms-omni launch ...   one process per card

An engine is an actor that starts our server as a child process, watches it and ends it: a crash takes nobody else with it. The
gateway asks Ray for the engine that has the conversation in its cache and holds it for as long as the answer takes, which is how
Ray knows the load; bytes go straight to the engine's server, so back pressure reaches callers and servers.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import aiohttp
import ray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from ray.serve.schema import LoggingConfig

from ..errors import InputError
from .affinity import Affinity, ranked
from .protocol import busy, within
from .relay import Relay
from .settings import MIB

POLL_S, PROBE_S, LOG_LINES = 0.5, 5.0, 20
BOOTSTRAP = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL);"
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)
"""PR_SET_PDEATHSIG: a child ends with the process that started it. Set here as forking with `preexec_fn` is not safe in a program
with threads; it holds for the thread that starts it, which must live on."""
ENGINE, KEY_VARIABLE = "Engine", "MS_OMNI_API_KEY"
HEALTH_S, HEALTH_LIMIT_S = 2.0, 10.0
HOLD_S = 300.0
"""An engine is held for so long at a time, and again for what takes longer, so that a gateway that dies releases it."""
WAIT_S = 30.0
"""For an engine, where all are full or being replaced."""
QUIET = LoggingConfig(enable_access_log=False)
"""Engines have an access log of their own."""
DRAIN_S, END_S = 60.0, 45.0
"""For answers under way when an engine is to end, and for its end behind them."""
RESERVED = ("--model", "--host", "--port", "--max-rows", "--max-queue", "--max-body-mb", "--instance", "--drain-timeout")
TLS = ("--ssl-certfile", "--ssl-keyfile")


class Child:
    """One process: `ms-omni serve`, or, with more than one card, `ms-omni launch --cards N serve`.

    options: of `ms-omni serve`, without host and port. name: in its log, and in the ids of its spoken answers.
    """

    def __init__(self, name: str, options: Sequence[str], host: str, cards: int = 1):
        self.name, self.host, self.port = name, host, _free_port(host)
        launch = ["launch", "--cards", str(cards)] if cards > 1 else []
        self.command = ["-m", "ms_omni", *launch, "serve", *options, "--host", host, "--port", str(self.port)]
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def start(self, variables: Mapping[str, str]) -> None:
        """Returns when it is ready. Raises `RuntimeError` with its last lines if it ends before; variables: its environment."""
        self.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", BOOTSTRAP, str(os.getpid()), *self.command),
            env=dict(variables),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = reading = asyncio.ensure_future(self._read(process.stderr))
        while await self.state() != "ready":
            if process.returncode is not None:
                await reading
                raise RuntimeError(f"the engine {self.how()}. It said:\n" + "\n".join(self.log))
            await asyncio.sleep(POLL_S)

    async def _read(self, stream):
        """Passes on what it prints, line by line."""
        while True:
            try:
                line = (await stream.readline()).decode(errors="replace")
            except ValueError:  # longer than the reader's buffer
                continue
            if not line:
                return
            self.log.append(line.rstrip())
            print(f"[{self.name}] {line}", end="", file=sys.stderr, flush=True)

    async def state(self) -> str | None:
        """What its `/health` says: "starting", "ready", "draining" or "failed"; None where it does not answer."""
        limit = aiohttp.ClientTimeout(total=PROBE_S)
        try:
            async with aiohttp.ClientSession(timeout=limit) as session, session.get(self.url + "/health") as answer:
                return (await answer.json())["status"]
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, LookupError):
            return None

    async def ended(self) -> str:
        """Waits for its end; returns how it ended."""
        if self.process is not None:
            await self.process.wait()
        return self.how()

    def how(self) -> str:
        """How it ended."""
        code = self.process.returncode if self.process is not None else None
        if code is None:
            return "has not ended"
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
    """One that is free now; if another process takes it meanwhile, the server reports it and ends."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as bound:
        bound.bind((host, 0))
        return bound.getsockname()[1]


class Arguments(BaseModel):
    """What `serve run` takes as `name=value`.

    model: a folder or a model's name; replicas: engines; cards: NPUs of each (0: it computes on the processor); gateways: processes
    that pass requests on; host: "127.0.0.1" where all engines are on the machine of the gateways, "node" where each listens at the
    address of its node; max_rows, max_queue, max_body_mb: of each engine; options: others of `ms-omni serve`, as on its command line.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    replicas: int = Field(1, ge=1)
    cards: int = Field(1, ge=0)
    gateways: int = Field(1, ge=1)
    host: Literal["127.0.0.1", "node"] = "127.0.0.1"
    max_rows: int = Field(16, ge=1)
    max_queue: int = Field(128, ge=0)
    max_body_mb: int = Field(256, ge=1)
    options: str = ""

    @field_validator("options")
    @classmethod
    def _check_options(cls, value: str) -> str:
        for word in shlex.split(value):
            name = word.partition("=")[0]
            if name in TLS:
                raise ValueError(f"{name} is for what callers connect to, which is Ray's proxy; end TLS before it")
            if name == "--api-key":
                raise ValueError(f"a key on a command line can be read by everybody here; set {KEY_VARIABLE} instead")
            if name in RESERVED:
                raise ValueError(f"{name} is set by this application; see its arguments")
        return value


def app(arguments: Arguments) -> Application:
    """The application. Raises `InputError` for more cards than the cluster has."""
    wanted, known = arguments.replicas * arguments.cards, _npus()
    if known is not None and wanted > known:
        raise InputError(
            f"{arguments.replicas} replicas of {arguments.cards} cards need {wanted} NPUs, and the cluster has {known:g}; give fewer "
            "replicas or cards, or cards=0 to compute on the processor"
        )
    if Path(arguments.model).expanduser().is_dir():
        arguments = arguments.model_copy(update={"model": str(Path(arguments.model).expanduser().resolve())})
    keys = os.environ.get(KEY_VARIABLE, "")
    engine = Engine.options(  # pyright: ignore
        num_replicas=arguments.replicas,
        max_ongoing_requests=arguments.max_rows + arguments.max_queue,
        max_queued_requests=arguments.replicas * arguments.max_queue or 1,
        ray_actor_options={"num_cpus": 0, "resources": {"NPU": arguments.cards}} if arguments.cards else {"num_cpus": 1},
        request_router_config=RequestRouterConfig(
            request_router_class=ConversationRouter, request_router_kwargs={"rows": arguments.max_rows}
        ),
    ).bind(arguments.model_dump(exclude={"replicas", "gateways"}), keys)  # a change of those ends no engine
    return Gateway.options(num_replicas=arguments.gateways).bind(engine, arguments.max_body_mb)  # pyright: ignore


def _npus():
    """NPUs of the cluster, or None where it is not known yet."""
    return ray.cluster_resources().get("NPU", 0) if ray.is_initialized() else None


class ConversationRouter(RequestRouter):
    """Sends a conversation where its cache is, unless that engine has no row free and another one has; others to the least loaded."""

    def initialize_state(self, rows: int) -> None:
        """rows: answers that one engine computes at a time."""
        self.rows = rows

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of engines, the preferred ones first; Ray takes the least loaded of a group that is not full."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        key, instance = pending_request.args[:2] if pending_request is not None and pending_request.args else (None, None)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        if instance in by_name:
            return [[by_name[instance]]]
        if key is None:
            return [candidate_replicas]
        first, *others = [by_name[name] for name in ranked(key, list(by_name))]
        free = [replica for replica in others if self._load(replica) < self.rows]
        if free and self._load(first) >= self.rows:
            return [free, [first, *others]]
        return [[first], others] if others else [[first]]

    def _load(self, replica):
        """As far as it is known."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


@serve.deployment(
    name=ENGINE,
    health_check_period_s=HEALTH_S,
    health_check_timeout_s=HEALTH_LIMIT_S,
    graceful_shutdown_timeout_s=DRAIN_S + END_S,
    logging_config=QUIET,
)
class Engine:
    """One engine: a child process with a server of ours."""

    async def __init__(self, arguments: dict, keys: str):
        name = serve.get_replica_context().replica_id.unique_id
        host = arguments["host"] if arguments["host"] != "node" else ray.util.get_node_ip_address()
        if arguments["host"] != "node" and sum(node["Alive"] for node in ray.nodes()) > 1:
            raise InputError(
                "the cluster has several machines, so engines must listen where gateways reach them: add host=node"
            )
        options = [
            f"--{name.replace('_', '-')}={arguments[name]}" for name in ("model", "max_rows", "max_queue", "max_body_mb")
        ]
        options += [f"--instance={name}", f"--drain-timeout={DRAIN_S:g}", *shlex.split(arguments["options"])]
        variables = {**os.environ, KEY_VARIABLE: keys}
        if arguments["cards"]:  # Ray sets it to the number of its own CPUs, of which an engine on NPUs asks for none
            variables.pop("OMP_NUM_THREADS", None)
        self._child, self._ending = Child(name, options, host, arguments["cards"]), False
        await self._child.start(variables)
        self._watching = asyncio.ensure_future(self._watch())

    async def hold(self, key: str | None, instance: str | None) -> AsyncIterator[tuple[str, str]]:
        """Its name and address; busy until the caller lets go. The arguments are for the router."""
        yield await self.where()
        await asyncio.sleep(HOLD_S)

    async def where(self) -> tuple[str, str]:
        """Its name and address."""
        return self._child.name, self._child.url

    async def _watch(self):
        """Ends the actor of a server that has ended, so that Ray sees it at once."""
        how = await self._child.ended()
        if not self._ending:
            print(f"[{self._child.name}] the engine {how}; another one takes over", file=sys.stderr, flush=True)
            os._exit(1)

    async def check_health(self) -> None:
        """Called by Ray. Raises where only a new engine helps."""
        state = await self._child.state()
        if state in (None, "failed"):
            raise RuntimeError(f"engine {self._child.name} {'does not answer' if state is None else 'has failed'}")

    async def __del__(self):
        self._ending = True
        if hasattr(self, "_child"):
            await self._child.end(END_S)


class Engines:
    """The engines as the gateway sees them."""

    def __init__(self, handle: DeploymentHandle):
        self._all, self._handle = handle, handle.options(method_name="hold", stream=True)

    async def addresses(self) -> dict[str, str]:
        """Addresses of all that answer, by their names. Raises `ApiError` 503 where there is none."""
        answers = await self._all.broadcast("where").results_async(timeout_s=WAIT_S, return_exceptions=True)
        engines = dict(sorted(answer for answer in answers if not isinstance(answer, BaseException)))
        if not engines:
            raise busy("no engine is ready; try again later", 503, "unavailable")
        return engines

    @asynccontextmanager
    async def lease(self, affinity: Affinity, wait_s: float = WAIT_S) -> AsyncIterator[str]:
        """The address of the engine for a request. Raises `ApiError` 503 where there is none, and 429 where all are full."""
        holding = self._handle.remote(affinity.key, affinity.instance)
        try:
            name, url = await within(wait_s, holding.__anext__())
        except asyncio.TimeoutError:
            holding.cancel()
            raise busy(f"no engine was free for {wait_s:g} s; try again later", 503, "unavailable") from None
        except BackPressureError:
            raise busy("all engines are full; try again later") from None
        renewing = asyncio.ensure_future(self._renew(holding, name))
        try:
            yield url
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, holding, name):
        """Holds an engine again and again, as long as it lives."""
        try:
            while True:
                async for _ in holding:
                    pass
                holding = self._handle.remote(None, name)
        finally:
            holding.cancel()


@serve.deployment(
    name="Gateway",
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=10_000,
    graceful_shutdown_timeout_s=DRAIN_S,
    logging_config=QUIET,
)
@serve.ingress()
class Gateway:
    """Passes requests on to engines."""

    def __init__(self, engine: DeploymentHandle, max_body_mb: int):
        engines = Engines(engine)
        self._relay = Relay(engines.lease, engines.addresses, max_body_mb * MIB)

    def __serve_build_asgi_app__(self):
        return self._relay
