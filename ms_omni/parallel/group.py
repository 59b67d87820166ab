"""The ranks that hold one model together: they check that they mean the same one, and each takes its part.

Between two answers all but rank 0 wait outside of any collective, for as long as it takes: those have limits of time.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspore import nn

from .. import __version__
from ..checkpoint.open import open_checkpoint
from ..checkpoint.parameters import arrays_of
from ..checkpoint.rank_files import RankIndex, read_rank_index
from ..errors import CheckpointError, InputError, OmniError
from ..runtime import require_mindspore
from .collectives import Collectives
from .layers import split_thinker
from .mesh import Mesh, Traffic, adopt_init, start, under_msrun
from .plan import STRATEGIES, Plan, make_plan
from .vocabulary import SplitVocabulary

AUTO = "auto"
SETTINGS = ("config.json", "generation_config.json")

adopt_init()  # a script that has imported a model may call it next


def join(strategy: str | None = AUTO, **options: Any) -> "ProcessGroup | None":
    """The `ProcessGroup` of this process, or None for a process that holds its model alone.

    strategy: "ep", "zero3", None (no plan, even under msrun) or "auto": "ep" under msrun, but None for a script that has
    set MindSpore's data-parallel mode, where each process holds a model until `prepare_network` spreads it. options: of
    the strategy's plan. Raises `InputError` for a strategy where there is one process that nobody started others with.
    """
    if not is_shared(strategy):
        return None
    mesh = start()
    return None if mesh.size == 1 else ProcessGroup(mesh, "ep" if strategy in (AUTO, None) else strategy, options)


def is_shared(strategy: str | None) -> bool:
    """Whether the processes that msrun started are to hold one model together. Raises `InputError` as `join` does."""
    if strategy not in (AUTO, None, *STRATEGIES):
        raise InputError(f"parallel is {strategy!r}, expected one of {', '.join(map(repr, STRATEGIES))}, None or {AUTO!r}")
    if strategy in STRATEGIES and not under_msrun():
        raise InputError(
            f"parallel is {strategy!r}, but this process was started alone; start several with `ms-omni launch` or "
            "msrun, or leave it out"
        )
    return strategy is not None and under_msrun() and not (strategy == AUTO and _is_data_parallel())


def _is_data_parallel() -> bool:
    return require_mindspore().get_auto_parallel_context("parallel_mode") == "data_parallel"


class ProcessGroup:
    """The ranks that hold one model. mesh: who is who; comm: `Collectives` with their `traffic`; after loading, plan and slices of
    this rank; vocabulary: None where the head is whole; wakeup: how rank 0 wakes the others.
    """

    def __init__(self, mesh: Mesh, strategy: str, options: dict[str, Any]) -> None:
        self.mesh = mesh
        self.strategy = strategy
        self.options = options
        self.comm = Collectives(mesh)
        self.plan: Plan | None = None
        self.slices: dict[str, Any] = {}
        self.vocabulary: SplitVocabulary | None = None
        self.wakeup: WakeUp | None = None

    @property
    def traffic(self) -> Traffic:
        """Calls and bytes of all collectives so far."""
        return self.comm.traffic

    def check(self, folder: str | Path | None, arguments: Any, read_config: Callable[[], Any]) -> Any:
        """The configuration that `read_config()` gives, once all ranks have found the same checkpoint.

        A rank that cannot read its folder, or whose versions, arguments or files differ, is one error on every rank.
        Nothing is loaded yet. folder: None where there is none, and `read_config` says so.
        """
        try:
            config = read_config()
            assert folder is not None
            mine = {"arguments": f"{self.strategy} {self.options} {arguments}", **fingerprint(folder)}
        except OmniError as error:
            config, mine = None, {"error": f"{type(error).__name__}: {error}"}
        everyone = [json.loads(data) for data in self.comm.gather_bytes(json.dumps(mine).encode())]
        failed = [f"rank {rank}: {found['error']}" for rank, found in enumerate(everyone) if "error" in found]
        if failed:
            raise CheckpointError("the checkpoint cannot be loaded.\n" + "\n".join(failed))
        different = [
            f"{what}: " + ", ".join(f"rank {rank} has {found[what]}" for rank, found in enumerate(everyone))
            for what in mine
            if len({found[what] for found in everyone}) > 1
        ]
        if different:
            raise InputError(
                "the ranks do not mean the same model; start all of them with the same checkpoint, versions "
                "and arguments.\n" + "\n".join(different)
            )
        return config

    def make_slices(
        self, model: nn.Cell, config: Any, prefix: str, storages: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """`{full name: Slice or Run}` of this rank. Raises `InputError` for a model that so many ranks cannot hold.

        model: with no matrix stored as codes yet; storages: `{parameter: Storage}` of those that will be.
        """
        shapes = {prefix + name: tuple(value.shape) for name, value in model.parameters_and_names()}
        storages = {prefix + name: storage for name, storage in (storages or {}).items()}
        arrays = {name: arrays_of(name, shapes[name], storage) for name, storage in storages.items()}
        self.plan = make_plan(self.strategy, config, shapes, self.mesh.size, **self.options)
        self.slices = self.plan.slices(shapes, self.mesh.rank, self.mesh.size, arrays)
        for name, storage in () if self.plan.pieces else storages.items():
            try:
                arrays_of(name, shapes[name], storage, self.slices[name])
            except InputError as error:
                raise InputError(f"{name} over {self.mesh.size} ranks (plan {self.plan.name!r}): {error}") from None
        return self.slices

    def attach(self, model: nn.Cell) -> None:
        """Puts the collectives into a loaded model."""
        self.wakeup = self.wakeup or WakeUp(self.comm)
        if self.strategy == "ep":
            self.vocabulary = split_thinker(model, self.slices, self.comm)
        else:
            from .zero3 import gather_weights  # which needs this module

            gather_weights(model, self.slices, self.comm)
        for cell in (model, *model.cells()):
            if hasattr(cell, "process_group"):
                cell.process_group = self


def choose_strategy(
    folder: str | Path, strategy: str | None, options: dict[str, Any]
) -> tuple[str | None, dict[str, Any], RankIndex | None]:
    """Strategy, options and `RankIndex` for a checkpoint folder: one that is cut for ranks has chosen already.

    The index is None for a checkpoint that is whole. Raises `InputError` for a process or a wish that does not fit it.
    """
    index = read_rank_index(folder)
    if index is None:
        return strategy, options, None
    cut = f"{folder} is cut for {index.ranks} ranks with the plan {index.plan!r}"
    back = "or convert it back with ms-omni convert"
    if strategy is None or not under_msrun():
        raise InputError(f"{cut}, and this process is to hold a model of its own; start {index.ranks} with msrun, {back}")
    if strategy not in (AUTO, index.plan) or (options and options != index.options):
        wish = " ".join([repr(strategy), *(f"{name}={value!r}" for name, value in options.items())])
        raise InputError(f"{cut}, but parallel is {wish}; leave it out, {back}")
    size = start().size
    if size != index.ranks:
        raise InputError(f"{cut}, but {size} were started; start {index.ranks}, {back}")
    return index.plan, index.options, index


def fingerprint(folder: str | Path) -> dict[str, str]:
    """What must be the same on all ranks: versions, configuration, weights; short strings by what they tell."""
    settings = hashlib.blake2b(digest_size=8)
    for name in SETTINGS:
        path = Path(folder) / name
        settings.update(path.read_bytes() if path.is_file() else b"none")
    return {
        "ms_omni": __version__,
        "MindSpore": require_mindspore().__version__,
        "configuration": settings.hexdigest(),
        "weights": (read_rank_index(folder) or open_checkpoint(folder)).fingerprint(),
    }


CONNECT_S = 120.0


class WakeUp:
    """How rank 0 wakes the others. Made by all ranks at the same time; comm: their `Collectives`. What is sent through it means nothing but "wake up"."""

    def __init__(self, comm: Any) -> None:
        self._others: list[socket.socket] = []
        secret = secrets.token_hex()
        server = socket.create_server((_address(), 0)) if comm.rank == 0 else None
        message = None if server is None else json.dumps([*server.getsockname()[:2], secret]).encode()
        host, port, secret = json.loads(comm.broadcast_bytes(message))
        if server is None:
            self._rank_0 = _without_delay(socket.create_connection((host, port), CONNECT_S))
            self._rank_0.sendall(secret.encode())
            self._rank_0.settimeout(None)
            return
        with server:
            server.settimeout(CONNECT_S)
            while len(self._others) < comm.size - 1:
                self._accept(_without_delay(server.accept()[0]), secret.encode())

    def _accept(self, connection: socket.socket, secret: bytes) -> None:
        """Whoever does not know the secret is none of ours."""
        received = b""
        connection.settimeout(CONNECT_S)
        with contextlib.suppress(OSError):
            while len(received) < len(secret) and (more := connection.recv(len(secret) - len(received))):
                received += more
        if hmac.compare_digest(received, secret):
            self._others.append(connection)
        else:
            connection.close()

    def send(self) -> None:
        """Rank 0 wakes all others."""
        for connection in self._others:
            with contextlib.suppress(OSError):  # it has gone; the supervisor ends the job
                connection.sendall(b"\1")

    def wait(self) -> None:
        """Another rank waits until it is woken. Raises `InputError` when rank 0 has left."""
        with contextlib.suppress(OSError):
            if self._rank_0.recv(1):
                return
        raise InputError("rank 0 has left, so there is nothing more to do here")


def _address() -> str:
    """Of this host, as the hosts of the job see it: where it would talk to the scheduler from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
        probe.connect((os.environ.get("MS_SCHED_HOST", "127.0.0.1"), int(os.environ.get("MS_SCHED_PORT", "9"))))
        return probe.getsockname()[0]


def _without_delay(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
