"""Streamers that hear how a text comes about."""

from contextlib import contextmanager

import numpy as np

from ..errors import InputError
from ..outputs import TextDelta


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


def feed_streamer(events, prompt_ids, streamer):
    """Passes the events of a stream on; a streamer is given the prompt, then each new token `[B]`."""
    if streamer is not None:
        streamer.put(np.asarray(prompt_ids))
    for event in events:
        if streamer is not None and isinstance(event, TextDelta):
            streamer.put(event.token)
        yield event
