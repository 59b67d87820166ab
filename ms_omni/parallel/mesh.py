"""Start-up of one process among several: `msrun` sets the environment, `start` joins the others."""

import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..errors import InputError
from ..locking import restore_interrupts
from ..runtime import card, require_mindspore
from . import hccl, watch

BACKENDS = {"CPU": "mccl", "Ascend": "hccl"}
CPU_WAIT_S = 600
"""How long a rank waits in a collective on CPU. MindSpore's 30 s are less than a slow disk or a user's pause takes; a
worker that is gone is noticed by msrun and by the scheduler, which keeps its own limit."""


@dataclass(frozen=True)
class Mesh:
    """rank of this process in `[0, size)`; backend: "hccl" (Ascend), "mccl" (CPU), or None for a process of its own."""

    rank: int
    size: int
    backend: str | None = None

    @property
    def speaks(self) -> bool:
        """Whether this process prints and writes results: rank 0 does."""
        return self.rank == 0


def under_msrun() -> bool:
    """Whether msrun started this process, as a worker or as the scheduler."""
    return "MS_ROLE" in os.environ  # the scheduler runs the same command and must join as well


def start() -> Mesh:
    """Joins the processes that msrun started; outside msrun there is one process and no communication.

    Safe to call more than once. Raises `InputError` for a device that MindSpore cannot communicate on, and for a job that
    cannot start (see `watch`).
    """
    if not under_msrun():
        return Mesh(0, 1)
    ms = require_mindspore()
    from mindspore.communication import GlobalComm, get_group_size, get_rank, management

    device = ms.get_context("device_target")
    if device not in BACKENDS:
        raise InputError(f"msrun on device {device!r}: expected one of {', '.join(BACKENDS)}")
    adopt_init()
    if not GlobalComm.INITED:
        management.init(BACKENDS[device])
    watch.start()  # for a script that had joined before it imported ms_omni
    watch.rank_is(get_rank())
    return Mesh(get_rank(), get_group_size(), BACKENDS[device])


def adopt_init() -> None:
    """From here on MindSpore's own `init` joins as `start` does, whoever calls it: a script, or `mint.distributed`.

    That is, the job is watched, HCCL is set up (`hccl.py`), a rank waits as long as it must, and "hccl", the only backend that `mint.distributed`
    knows, becomes on CPU what CPU has, with a warning. Outside msrun nothing is changed.
    """
    if not under_msrun():
        return
    ms = require_mindspore()
    from mindspore.communication import management

    joins = management.init
    if getattr(joins, "is_adopted", False):
        return

    @functools.wraps(joins)
    def init(backend_name: str | None = None) -> None:
        device = ms.get_context("device_target")
        watch.start()
        if device == "CPU":
            if os.environ["MS_ROLE"] == "MS_WORKER":
                os.environ.setdefault("MS_NODE_TIMEOUT", str(CPU_WAIT_S))
            if backend_name == BACKENDS["Ascend"]:
                warnings.warn(f"CPU has no {backend_name!r}; the processes talk through {BACKENDS[device]!r}", stacklevel=2)
                backend_name = BACKENDS[device]
        hccl.apply(card()[0])
        joins(backend_name)
        restore_interrupts()  # MindSpore has put its own there

    vars(init)["is_adopted"] = True
    for module in list(sys.modules.values()):  # a script may have imported it by name before it imports ms_omni
        if getattr(module, "__dict__", {}).get("init") is joins:
            vars(module)["init"] = init


def world_group() -> str:
    """MindSpore's name of the group of all ranks; only after `start`."""
    from mindspore.communication import GlobalComm

    return GlobalComm.WORLD_COMM_GROUP


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: Any = None,
    world_size: int = -1,
    rank: int = -1,
    store: Any = None,
    pg_options: Any = None,
    device_id: int | None = None,
) -> None:
    """Joins the processes that msrun started, as `start` does; the signature of `mindspore.mint.distributed`.

    The backend is the device's own, so that a script for Ascend runs on CPU too; another name gives a warning. msrun
    decides on the rest.
    """
    mesh = start()
    if backend not in (None, mesh.backend) and mesh.backend is not None:
        warnings.warn(
            f"the backend {backend!r} is not this device's; the processes talk through {mesh.backend!r}", stacklevel=2
        )
    given = {
        "init_method": (init_method, None),
        "timeout": (timeout, None),
        "world_size": (world_size, -1),
        "rank": (rank, -1),
        "store": (store, None),
        "pg_options": (pg_options, None),
        "device_id": (device_id, None),
    }
    ignored = [name for name, (value, default) in given.items() if value != default]
    if ignored:
        warnings.warn(f"init_process_group leaves {', '.join(ignored)} to msrun", stacklevel=2)


KINDS = ("all_reduce", "all_gather", "broadcast")


@dataclass
class Traffic:
    """Calls and bytes by kind of collective. The bytes of a call are those of its result on one rank."""

    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    nbytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, kind: str, nbytes: int, calls: int = 1) -> None:
        """Counts `calls` collectives that move `nbytes` in all, before they begin: the watch tells from it who waits."""
        watch.step()
        self.calls[kind] += calls
        self.nbytes[kind] += nbytes

    def copy(self) -> "Traffic":
        """The counts of this moment."""
        return Traffic(dict(self.calls), dict(self.nbytes))

    def since(self, before: "Traffic") -> "Traffic":
        """What was counted after the copy `before` was taken."""
        return Traffic(
            {kind: self.calls[kind] - before.calls[kind] for kind in KINDS},
            {kind: self.nbytes[kind] - before.nbytes[kind] for kind in KINDS},
        )

    @property
    def total_bytes(self) -> int:
        return sum(self.nbytes.values())

    @property
    def total_calls(self) -> int:
        return sum(self.calls.values())


class Interrupts:
    """SIGINT, held back while collectives may be under way. pending: whether one came meanwhile.

    So is SIGTERM: once a graph has been compiled, MindSpore's own handler of SIGINT may be in force, now and then, and all that
    it does is to send SIGTERM (see `locking.py`). Who means it sends SIGKILL afterwards, as the watch does.
    """

    def __init__(self) -> None:
        self.pending = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside this context an interruption is noted and nothing else."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        if None in before.values() or before[signal.SIGINT] == self._note:  # not from Python, or held already
            yield
            return
        for number in before:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():  # SIGINT last: its handler may raise
                signal.signal(number, handler)

    def act(self) -> NoReturn:
        """Raises what was held back."""
        self.pending = False
        raise KeyboardInterrupt

    def _note(self, *_: Any) -> None:
        self.pending = True
