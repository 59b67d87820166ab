"""A job of several processes ends as a whole: nobody waits for ever for a rank that died, hangs or never came.

MindSpore 2.7.1 alone notices a worker's death after 30 s and a hang never, names no rank, and blocks inside a collective
meanwhile. So `start` puts a small process beside each worker (`companion.py`) and one beside the scheduler (`hub.py`);
`roster.py` has the rules by which the job is ended. They talk over TCP on the scheduler's host, at the scheduler's port
plus 1009 or at MS_OMNI_WATCH_PORT. MS_OMNI_HANG_S: seconds without any progress that count as a hang (default 20; 0: never).
MS_OMNI_WATCH=0: no watch at all.

In the worker, marks are left by `step()` (a collective) and `beat()` (anything else); `busy()` says that work goes on.
"""

import atexit
import contextlib
import faulthandler
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

from ... import __version__
from ...errors import InputError
from .stamps import BEATS, BUSY, FAILED, LEAVING, LEFT, RANK, STEPS, Stamps

PORT_OFFSET = 1009
HANG_S = 20.0
PORTS = range(1024, 65536)
_stamps = None
_failed = False


def watch_port(scheduler_port):
    """The port of the watch for a job whose scheduler listens at `scheduler_port`. Raises `InputError`."""
    named = os.environ.get("MS_OMNI_WATCH_PORT")
    port = number("MS_OMNI_WATCH_PORT", int) if named else scheduler_port + PORT_OFFSET
    if port not in PORTS:
        port -= 2 * PORT_OFFSET
    if port not in PORTS or port == scheduler_port:
        raise InputError(
            f"MS_OMNI_WATCH_PORT is {named}, expected a port from {PORTS.start} to {PORTS.stop - 1} other than "
            f"the scheduler's, {scheduler_port}"
        )
    return port


def number(name, kind, default=None):
    """The environment variable `name` as a number that is not negative. Raises `InputError` for anything else."""
    text = os.environ.get(name)
    try:
        value = default if text in (None, "") else kind(text)
        if value is not None and value >= 0:
            return value
    except ValueError:
        pass
    raise InputError(f"the environment variable {name} is {text!r}, expected a number") from None


def start():
    """Begins to watch over this process, a worker or the scheduler of a job. Returns when all processes have come.

    Raises `InputError`, in every process alike, for a busy port, processes that do not come, and processes that differ
    in the version of MindSpore, ms_omni or Python.
    """
    global _stamps
    if os.environ.get("MS_OMNI_WATCH") == "0" or _stamps is not None:
        return
    port = number("MS_SCHED_PORT", int)
    settings = {
        "host": os.environ.get("MS_SCHED_HOST", "127.0.0.1"),
        "port": watch_port(port),
        "scheduler_port": port,
        "size": number("MS_WORKER_NUM", int),
        "timeout_s": number("MS_TOPO_TIMEOUT", float, 600.0),
        "hang_s": number("MS_OMNI_HANG_S", float, HANG_S),
        "launcher": number("MS_OMNI_LAUNCHER", int, 0),
    }
    if os.environ["MS_ROLE"] == "MS_SCHED":
        return _begin("hub", settings | {"scheduler": os.getpid()})
    _stamps = Stamps.create()
    rank = os.environ.get("MS_NODE_ID")  # RANK_ID is 0 everywhere when msrun leaves the numbering to MindSpore
    _begin(
        "companion",
        settings
        | {
            "worker": os.getpid(),
            "stamps": _stamps.descriptor,
            "facts": _facts(settings["size"]),
            "rank": int(rank) if rank else None,
        },
        _stamps.descriptor,
    )
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a standard error without a descriptor
        faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)
    atexit.register(_leave)


def _facts(size):
    import mindspore

    return {
        "MindSpore": mindspore.__version__,
        "ms_omni": __version__,
        "the number of processes": size,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "the device": mindspore.get_context("device_target"),
    }


def _begin(module, settings, *descriptors):
    """Starts a process of this package and waits for its word."""
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", f"{__name__}.{module}", json.dumps(settings)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        pass_fds=descriptors,
        env={**os.environ, "PYTHONPATH": path},
    )
    with process.stdout as out:
        word = out.readline()
    answer = json.loads(word) if word else {"error": f"the {module} process of the watch could not start"}
    if "error" in answer:
        raise InputError(f"the job cannot start: {answer['error']}")
    process.returncode = 0  # it ends after this process, so nobody waits for it


def fail():
    """This process is about to end with an error; the watch ends the others, unless they end the same way."""
    global _failed
    _failed = True


def _leave():
    _stamps[LEFT] = FAILED if _failed or getattr(sys, "last_value", None) is not None else LEAVING


def rank_is(rank):
    """Tells the watch which rank this process is, where the environment did not say."""
    if _stamps is not None:
        _stamps[RANK] = rank + 1


def step():
    """Marks one more collective; all ranks do the same ones in the same order."""
    if _stamps is not None:
        _stamps[STEPS] += 1


def beat():
    """Marks progress of any other kind."""
    if _stamps is not None:
        _stamps[BEATS] += 1


@contextlib.contextmanager
def busy():
    """Around work that must go on: a process that stops in it hangs, one that stops outside it waits for its user."""
    if _stamps is not None:
        _stamps[BUSY] += 1
    try:
        yield
    finally:
        if _stamps is not None:
            _stamps[BUSY] -= 1
