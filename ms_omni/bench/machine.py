"""What the machine is, for the head of a report."""

import os
import platform
from pathlib import Path


def describe_machine():
    """{what: words} of processor, number of cores this process may use, memory and system."""
    return {
        "processor": processor_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{total_memory_gb():.0f} GB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


def processor_name():
    """As the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def total_memory_gb():
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def other_load():
    """A line of warning when other programs want the processors too, else None: timings then say little."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load < max(cores / 2, 1):
        return None
    return f"The machine was busy when this began (load {load:.1f} on {cores} cores): times are longer and scatter."
