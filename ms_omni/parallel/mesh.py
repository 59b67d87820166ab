"""Start-up of one process among several: `msrun` sets the environment, `start` joins the others."""

import functools
import os
import sys
import warnings
from dataclasses import dataclass

from ..errors import InputError
from ..modeling import interruption
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


def adopt_init():
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
    def init(backend_name=None):
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
        interruption.restore()  # MindSpore has put its own there

    init.is_adopted = True
    for module in list(sys.modules.values()):  # a script may have imported it by name before it imports ms_omni
        if getattr(module, "__dict__", {}).get("init") is joins:
            module.init = init


def world_group():
    """MindSpore's name of the group of all ranks; only after `start`."""
    from mindspore.communication import GlobalComm

    return GlobalComm.WORLD_COMM_GROUP
