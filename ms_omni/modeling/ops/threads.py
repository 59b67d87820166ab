"""How many threads a kernel of this folder's uses."""

import ctypes
import os

_libraries: list[ctypes.CDLL] = []
_limit: int | None = None


def available() -> int:
    """As many as `OMP_NUM_THREADS` says, else one per processor that this process may use, of which ranks of a job get equal parts.

    Python's own copy of the variable is asked: MindSpore sets it as it is imported, to half of the processors and 8 at most.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wanted.isdigit() and int(wanted):
        return min(int(wanted), processors)
    ranks = os.environ.get("MS_WORKER_NUM", "")
    return max(processors // int(ranks) if ranks.isdigit() and int(ranks) else processors, 1)


def limit(count: int | None) -> None:
    """From now on kernels use so many, or again all that are available."""
    global _limit
    _limit = count
    for library in _libraries:
        _tell(library)


def register(library: ctypes.CDLL) -> None:
    """Tells a library of kernels, now and whenever it changes."""
    _libraries.append(library)
    _tell(library)


def _tell(library):
    library.ms_omni_use_threads(_limit or available())
