"""Memory and processors that this process may use."""

import os
import resource
from pathlib import Path

import psutil

GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
GROUP_USES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def free_memory_gb() -> tuple[float, str]:
    """(GB that this process may still take, what says so)."""
    found = [(available_gb(), "of the machine")]
    for limit, use in zip(GROUP_LIMITS, GROUP_USES):
        allowed, used = _number(limit), _number(use)
        if allowed is not None and used is not None and allowed < 1 << 60:
            found.append(((allowed - used) / 1e9, "limit of the container"))
    for kind, why in ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            found.append((limit / 1e9, why))
    return min(found)


def available_gb() -> float:
    """Of the machine, without swapping."""
    return psutil.virtual_memory().available / 1e9


def processors() -> int:
    """Those that this process may use; macOS says no more than how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(path):
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None
