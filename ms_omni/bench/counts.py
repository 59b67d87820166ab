"""What a step does, counted instead of timed: launches, reads from the device, graphs built, bytes between cards."""

from contextlib import closing
from itertools import islice

import numpy as np

from ..modeling.steps import COMPILE_AFTER
from .inputs import part
from .kernels import kernel_starts
from .meter import Meter
from .speech import exactly
from .text import write

WARM_STEPS = COMPILE_AFTER + 4
COUNTED_STEPS = 8
SHORTEST, LONGEST = 6, 10  # tokens or frames of a request


def text(model, ids):
    """Per text token, in the long run: see `per_step`."""
    with closing(write(model, ids, WARM_STEPS + 3 * COUNTED_STEPS)) as tokens:
        return per_step(tokens, "token", traffic_of(model))


def speech(model, speakers):
    """Per codec frame of one of the `Speakers`, in the long run: see `per_step`."""
    with closing(speakers.frames(1, WARM_STEPS + 3 * COUNTED_STEPS)) as frames:
        return per_step(frames, "frame", traffic_of(model))


def traffic_of(model):
    """What the collectives of this process count, or None for a model in one process."""
    team = getattr(model, "team", None)
    return None if team is None else team.traffic


def per_step(steps, what, traffic=None):
    """Runs an iterator of steps until it is warm, then counts `COUNTED_STEPS` of them.

    `launches_per_*`: what the host starts, a compiled graph counting as one; `graphs_per_*`: the graphs among them;
    `kernels_per_*`: kernels that run, those inside graphs included, or absent where MindSpore's profiler does not say;
    `reads_per_*`: transfers from the device that the host waits for; `collectives_per_*` and `collective_bytes_per_*`,
    among several processes: how often they communicate and what one of them is sent.
    """
    advance(steps, WARM_STEPS)
    before = traffic and traffic.copy()
    with Meter() as meter:
        advance(steps, COUNTED_STEPS)
    found = {f"reads_per_{what}": meter.reads / COUNTED_STEPS, f"graphs_per_{what}": meter.graphs / COUNTED_STEPS}
    if traffic is not None:
        moved = traffic.since(before)
        found[f"collectives_per_{what}"] = moved.total_calls / COUNTED_STEPS
        found[f"collective_bytes_per_{what}"] = moved.total_bytes / COUNTED_STEPS
    with Meter(wait=True) as meter:
        starts = kernel_starts(lambda: advance(steps, COUNTED_STEPS))
    if starts is not None:
        inside = sum(((starts >= begin) & (starts <= end)).sum() for begin, end in meter.spans)
        found[f"kernels_per_{what}"] = len(starts) / COUNTED_STEPS
        found[f"launches_per_{what}"] = (len(starts) - inside + meter.graphs) / COUNTED_STEPS
    return found


def advance(steps, count):
    """Takes `count` steps."""
    taken = sum(1 for _ in islice(steps, count))
    assert taken == count, (taken, count)


def requests(model, arrays, requests):
    """Graphs built during requests of different shapes and lengths, after a few that are like them."""
    rng = np.random.default_rng(0)
    kinds = (spoken_request, text_request) if model.has_talker else (text_request,)
    warm = 2 * COMPILE_AFTER // SHORTEST  # so many that every step has been compiled
    for index in range(warm):
        kinds[index % len(kinds)](model, arrays, rng)
    with Meter() as meter:
        for index in range(requests):
            kinds[index % len(kinds)](model, arrays, rng)
    return {"requests": requests, "compiled_in_requests": meter.compiled}


def spoken_request(model, arrays, rng):
    """A question with a picture and a sound, answered by a few tokens and frames."""
    tokens, frames = rng.integers(SHORTEST, LONGEST, 2).tolist()
    for _ in model.stream(**part(arrays, "question"), **exactly(tokens, frames)):
        pass


def text_request(model, arrays, rng):
    """A picture and a sound of any size, a prompt of any length, and a few tokens of answer."""
    vision = model.config.thinker_config.vision_config
    grid = np.array([[1, *(vision.spatial_merge_size * rng.integers(2, 8, 2))]])
    model.thinker.get_image_features(rng.standard_normal((grid.prod(), arrays["image.pixels"].shape[1]), np.float32), grid)
    frames = int(rng.integers(30, min(arrays["audio.features"].shape[-1], 800)))
    model.thinker.get_audio_features(arrays["audio.features"][..., :frames])
    tokens = int(rng.integers(SHORTEST, LONGEST))
    for _ in write(model, arrays["ids"][:1, : int(rng.integers(8, 200))], tokens):
        pass
