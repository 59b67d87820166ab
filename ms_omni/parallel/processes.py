"""Looking at other processes from outside, and ending them."""

import contextlib
import itertools
import os
import select
from pathlib import Path

import psutil

GRACE_S = 2.0


class Process(psutil.Process):
    """`ended` is true from the moment at which it ends, whoever collects it and whatever becomes of its number."""

    def __init__(self, pid: int):
        self.descriptor = os.pidfd_open(pid)
        super().__init__(pid)

    def ended(self, seconds: float = 0) -> bool:
        """Whether it has ended, waiting up to `seconds` for it."""
        return bool(select.select([self.descriptor], [], [], seconds)[0])

    def end(self) -> None:
        """SIGTERM, and SIGKILL when it is still there after `GRACE_S`."""
        with contextlib.suppress(psutil.Error):
            self.terminate()
            if not self.ended(GRACE_S):
                self.kill()


def find(pid: int) -> Process | None:
    """The process with a number, or None for one that has gone."""
    with contextlib.suppress(OSError, psutil.Error):
        return Process(pid)
    return None


def msrun_of(process: Process) -> Process | None:
    """The msrun that has started a process and stays with it (--join=True)."""
    with contextlib.suppress(psutil.Error):
        words = psutil.Process(process.ppid()).cmdline()
        if any(Path(word).name == "msrun" or "mindspore.parallel.cluster" in word for word in words[:4]):
            said = {*words, *map("=".join, itertools.pairwise(words))}
            stays = "--join=True" in said and "--local_worker_num=0" not in said
            return find(process.ppid()) if stays else None
    return None


def job_here(host: str, port: int, role: str | None = None) -> list[psutil.Process]:
    """Processes on this host, newest first, that were started for the job whose scheduler is at (host, port); told by their
    environment, so whoever has started them. Supervisors are not among them.
    """
    network, found = os.stat("/proc/self/ns/net").st_ino, []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.uids().real != os.getuid() or os.stat(f"/proc/{process.pid}/ns/net").st_ino != network:
                continue
            told = process.environ()
            ours = told.get("MS_SCHED_PORT") == str(port) and told.get("MS_SCHED_HOST", "127.0.0.1") == host
            ours = ours and told.get("MS_ROLE") in ([role] if role else ["MS_SCHED", "MS_WORKER"])
            if ours and not any("ms_omni.parallel.supervisor" in word for word in process.cmdline()[:3]):
                found.append(process)
    return sorted(found, key=psutil.Process.create_time, reverse=True)
