"""How many kernels run, from MindSpore's own profiler."""

import contextlib
import io
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np


def kernel_starts(work):
    """Runs `work()` under MindSpore's profiler; when each kernel started, float64 seconds since the epoch.

    None where the profiler writes no list of kernels that is understood here (it is one for CPU, MindSpore 2.7 to 2.10);
    `work` has run all the same.
    """
    with tempfile.TemporaryDirectory(prefix="ms_omni-profile-") as folder:
        profiler = _start(folder)
        try:
            work()
        finally:
            if profiler is not None:
                with _quiet():
                    profiler.stop()
        files = sorted(Path(folder).glob("**/FRAMEWORK/cpu_op_execute_timestamp_*.txt"))
        return _read(files[0]) if profiler is not None and files else None


def _start(folder):
    if ms.get_context("device_target") != "CPU":
        return None
    with _quiet():
        settings = {"activities": [ms.profiler.ProfilerActivity.CPU], "start_profile": False}
        profiler = ms.profiler.profile(
            **settings, on_trace_ready=ms.profiler.tensorboard_trace_handler(folder, analyse_flag=False)
        )
        profiler.start()
    return profiler


def _quiet():
    return contextlib.redirect_stdout(io.StringIO())


def _read(path):
    """Lines `name;kind;start_ns,duration_ms,thread start_ns,...` as MindSpore's CPU profiler writes them."""
    starts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        runs = line.split(";")[2].split()
        starts += [int(run.split(",")[0]) for run in runs]
    return np.sort(np.array(starts, np.float64)) / 1e9
