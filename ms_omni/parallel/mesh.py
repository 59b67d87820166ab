"""Start-up of one process among several: `msrun` sets the environment, `start` joins the others."""

import os
from dataclasses import dataclass

from ..errors import InputError
from ..modeling import interruption
from ..runtime import require_mindspore
from . import watch

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
    def speaks(self):
        """Whether this process prints and writes results: rank 0 does."""
        return self.rank == 0


def under_msrun():
    """Whether msrun started this process, as a worker or as the scheduler."""
    return "MS_ROLE" in os.environ  # the scheduler runs the same command and must join as well


def start():
    """Joins the processes that msrun started; outside msrun there is one process and no communication.

    Safe to call more than once. Raises `InputError` for a device that MindSpore cannot communicate on, and for a job that
    cannot start (see `watch`).
    """
    if not under_msrun():
        return Mesh(0, 1)
    ms = require_mindspore()
    from mindspore.communication import GlobalComm, get_group_size, get_rank, init

    device = ms.get_context("device_target")
    if device not in BACKENDS:
        raise InputError(f"msrun on device {device!r}: expected one of {', '.join(BACKENDS)}")
    if not GlobalComm.INITED:
        watch.start()
        if device == "CPU" and os.environ["MS_ROLE"] == "MS_WORKER":
            os.environ.setdefault("MS_NODE_TIMEOUT", str(CPU_WAIT_S))
        init(BACKENDS[device])
        interruption.restore()  # MindSpore has put its own there
        watch.rank_is(get_rank())
    return Mesh(get_rank(), get_group_size(), BACKENDS[device])


def world_group():
    """MindSpore's name of the group of all ranks; only after `start`."""
    from mindspore.communication import GlobalComm

    return GlobalComm.WORLD_COMM_GROUP
