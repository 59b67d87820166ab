"""What a step does, counted instead of timed: launches, reads from the device, graphs built, bytes between cards.

MindSpore has no counters for reads and graphs, so its own entry points are wrapped meanwhile; kernels are those that its profiler lists.
"""

import contextlib
import functools
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import mindspore as ms
import numpy as np
from mindspore.common import api

from ..modeling.steps import COMPILE_AFTER
from .measures import Speakers, exactly, write
from .worker import part

READS = ("asnumpy", "_item", "tolist")
"""What brings a value to the host. The others (`numpy`, `bool(x)`, ...) go through these."""
WARM_STEPS = COMPILE_AFTER + 4
COUNTED_STEPS = 8
SHORTEST, LONGEST = 6, 10  # tokens or frames of a request


class Meter:
    """Context manager; afterwards reads, graphs and compiled are counts, and spans the (start, end) of each graph's
    run in seconds since the epoch. wait: a graph's run lasts until its kernels are done, not only until it is started.
    """

    def __init__(self, wait: bool = False):
        self.wait = wait
        self.reads = self.graphs = self.compiled = 0
        self.spans: list[tuple[float, float]] = []
        self._depth = 0
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> "Meter":
        wrapped = [(ms.Tensor, name, self._count_read) for name in READS] + [
            (api._JitExecutor, "__call__", self._count_graph)
        ]
        for owner, name, count in wrapped:
            self._patches.enter_context(mock.patch.object(owner, name, count(getattr(owner, name))))
        self._known = api.ms_compile_cache
        self._phases = set(self._known)
        return self

    def __exit__(self, *_: object) -> None:
        self.compiled = len(set(self._known) - self._phases)
        self._patches.close()

    def _count_read(self, inner):
        @functools.wraps(inner)
        def read(*arguments, **options):
            self.reads += self._depth == 0  # one read may be written in terms of another
            self._depth += 1
            try:
                return inner(*arguments, **options)
            finally:
                self._depth -= 1

        return read

    def _count_graph(self, inner):
        @functools.wraps(inner)
        def call(*arguments, **options):
            started = time.time()
            result = inner(*arguments, **options)
            if self.wait:
                self._finish(result)
            self.graphs += 1
            self.spans.append((started, time.time()))
            return result

        return call

    def _finish(self, result):
        """Waits for a graph by reading its first result, which does not count."""
        while isinstance(result, (tuple, list)):
            result = result[0]
        self._depth += 1
        result.asnumpy()
        self._depth -= 1


def kernel_starts(work: Callable[[], object]) -> np.ndarray | None:
    """Runs `work()` under MindSpore's profiler; when each kernel started, float64 seconds since the epoch.

    None where the profiler writes no list of kernels that is understood here (it is one for CPU, MindSpore 2.7 to 2.10);
    `work` has run all the same.
    """
    if ms.get_context("device_target") != "CPU":
        work()
        return None
    with tempfile.TemporaryDirectory(prefix="ms_omni-profile-") as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            profiler = ms.profiler.profile(
                activities=[ms.profiler.ProfilerActivity.CPU],
                start_profile=False,
                on_trace_ready=ms.profiler.tensorboard_trace_handler(folder, analyse_flag=False),
            )
            profiler.start()
        try:
            work()
        finally:
            with contextlib.redirect_stdout(io.StringIO()):
                profiler.stop()
        files = sorted(Path(folder).glob("**/FRAMEWORK/cpu_op_execute_timestamp_*.txt"))
        # Lines `name;kind;start_ns,duration_ms,thread start_ns,...`
        lines = files[0].read_text(encoding="utf-8").splitlines() if files else []
    starts = [int(run.split(",")[0]) for line in lines for run in line.split(";")[2].split()]
    return np.sort(np.array(starts, np.float64)) / 1e9 if files else None


def text(model: Any, ids: np.ndarray) -> dict[str, float]:
    """Per text token, in the long run: see `per_step`."""
    with closing(write(model, ids, WARM_STEPS + 3 * COUNTED_STEPS)) as tokens:
        counts = per_step(tokens, "token", model.process_group and model.process_group.traffic)
        advance(
            tokens, COUNTED_STEPS
        )  # other ranks know a token one tick later than rank 0, so it must not stop before them
        return counts


def speech(model: Any, speakers: Speakers) -> dict[str, float]:
    """Per codec frame of one of the `Speakers`, in the long run: see `per_step`."""
    with closing(speakers.frames(1, WARM_STEPS + 3 * COUNTED_STEPS)) as frames:
        return per_step(frames, "frame", model.process_group and model.process_group.traffic)


def per_step(steps: Iterator[Any], what: str, traffic: Any = None) -> dict[str, float]:
    """Runs an iterator of steps until it is warm, then counts `COUNTED_STEPS` of them.

    `launches_per_*`: what the host starts, a compiled graph counting as one; `graphs_per_*`: the graphs among them;
    `kernels_per_*`: kernels that run, those inside graphs included, or absent where MindSpore's profiler does not say;
    `reads_per_*`: transfers from the device that the host waits for; `collectives_per_*` and `collective_bytes_per_*`,
    among several processes: how often they communicate and what one of them is sent. traffic: what their collectives count.
    """
    advance(steps, WARM_STEPS)
    before = traffic and traffic.copy()
    with Meter() as meter:
        advance(steps, COUNTED_STEPS)
    totals = {"reads": meter.reads, "graphs": meter.graphs}
    if traffic is not None:
        moved = traffic.since(before)
        totals |= {"collectives": moved.total_calls, "collective_bytes": moved.total_bytes}
    with Meter(wait=True) as meter:
        starts = kernel_starts(lambda: advance(steps, COUNTED_STEPS))
    if starts is not None:
        inside = sum(((starts >= begin) & (starts <= end)).sum() for begin, end in meter.spans)
        totals |= {"kernels": len(starts), "launches": len(starts) - inside + meter.graphs}
    return {f"{name}_per_{what}": total / COUNTED_STEPS for name, total in totals.items()}


def advance(steps: Iterator[Any], count: int) -> None:
    """Takes `count` steps."""
    taken = sum(1 for _ in islice(steps, count))
    assert taken == count, (taken, count)


def requests(model: Any, arrays: dict[str, np.ndarray], requests: int) -> dict[str, float]:
    """Graphs built during requests of different shapes and lengths, after a few that are like them."""
    rng = np.random.default_rng(0)
    kinds = (_spoken_request, _text_request) if model.has_talker else (_text_request,)
    warm = 2 * COMPILE_AFTER // SHORTEST  # so many that every step has been compiled
    for index in range(warm):
        kinds[index % len(kinds)](model, arrays, rng)
    with Meter() as meter:
        for index in range(requests):
            kinds[index % len(kinds)](model, arrays, rng)
    return {"requests": requests, "compiled_in_requests": meter.compiled}


def _spoken_request(model, arrays, rng):
    """A question with a picture and a sound, answered by a few tokens and frames."""
    tokens, frames = rng.integers(SHORTEST, LONGEST, 2).tolist()
    for _ in model.stream(**part(arrays, "question"), **exactly(tokens, frames)):
        pass


def _text_request(model, arrays, rng):
    """A picture and a sound of any size, a prompt of any length, and a few tokens of answer."""
    vision = model.config.thinker_config.vision_config
    grid = np.array([[1, *(vision.spatial_merge_size * rng.integers(2, 8, 2))]])
    model.thinker.get_image_features(rng.standard_normal((grid.prod(), arrays["image.pixels"].shape[1]), np.float32), grid)
    frames = int(rng.integers(30, min(arrays["audio.features"].shape[-1], 800)))
    model.thinker.get_audio_features(arrays["audio.features"][..., :frames])
    tokens = int(rng.integers(SHORTEST, LONGEST))
    for _ in write(model, arrays["ids"][:1, : int(rng.integers(8, 200))], tokens):
        pass
