"""Whole text results, and streamers that hear how they come about."""

from contextlib import contextmanager

import numpy as np

from ..errors import InputError
from ..outputs import TextDelta, ThinkerStep
from .text import TextGeneration


def generate_text(thinker, request, streamer=None):
    """Prompt and new ids int64 `[B, T + new]`, or a `GenerateOutput` around them; request: see `request.py`."""
    thinker.accord.begin(request.inputs, request.text, request.options.described())
    steps = TextGeneration(thinker, request.inputs, request.text, options=request.options)
    tokens = [step.token for step in feed_streamer(thinker.accord.turns(steps), steps.prompt_ids, streamer)]
    return steps.result(np.stack(tokens, axis=1))


@contextmanager
def ended_streamer(kwargs):
    """Takes the streamer out of the arguments of `generate`. Whatever happens in the block, it is ended.

    A streamer has `put(ids)` and `end()`, as transformers' `TextStreamer` and `TextIteratorStreamer`. Raises `InputError` for
    what has not.
    """
    given = [kwargs.pop(name, None) for name in ("streamer", "thinker_streamer")]
    streamer = next((streamer for streamer in given if streamer is not None), None)
    if streamer is None:
        yield None
        return
    if not (callable(getattr(streamer, "put", None)) and callable(getattr(streamer, "end", None))):
        raise InputError(f"streamer is {streamer!r}, expected an object with put(ids) and end(), such as a TextStreamer")
    try:
        yield streamer
    finally:
        streamer.end()


def feed_streamer(steps, prompt_ids, streamer):
    """Passes steps (or events) on; a streamer is given the prompt, then each new token `[B]`."""
    if streamer is not None:
        streamer.put(np.asarray(prompt_ids))
    for step in steps:
        if streamer is not None and isinstance(step, (ThinkerStep, TextDelta)):
            streamer.put(step.token)
        yield step
