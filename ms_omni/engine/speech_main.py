"""The process that speaks, from its start to its end; see `speech_process.py`."""

import os
import select
import signal
import sys
import threading
import time

from .ring import Channel

TICK_S = 0.02
"""Rows that can wait are looked at again after this."""
LAST_WORD_S = 2.0


def main() -> None:
    """Descriptors of the channel and the number of the engine's process are the arguments."""
    memory, end, parent = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, see `locking.py`
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    channel = Channel.of(memory, end)
    try:
        run(channel)
    except BaseException as error:
        channel.send({"kind": "lost", "why": f"has failed ({type(error).__name__}: {error})"})
        deadline = time.monotonic() + LAST_WORD_S
        while channel.queued and not channel.gone and time.monotonic() < deadline:
            channel.pump()
            channel.wait(TICK_S)
        channel.close()
        raise
    os._exit(0)  # nothing is to be tidied up, and MindSpore takes its time


def _follow(parent):
    """Ends with the engine's process, whatever this one is doing."""
    try:
        process = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(1)
    if os.getppid() == parent:
        select.select([process], [], [])
    os._exit(1)


def run(channel: Channel) -> None:
    """Until the channel is closed."""
    settings, arrays = _first(channel)
    if settings is None:
        return
    from .speaker import Speaker  # MindSpore takes seconds to import, and the parent is watched already

    speaker = Speaker(channel, settings, arrays["ends"])
    channel.send({"kind": "ready"})
    while True:
        for header, arrays in channel.pump():
            speaker.take(header, arrays)
        if channel.gone:
            return
        if channel.queued or not speaker.tick():  # nothing more is said before all of it is on its way
            channel.wait(TICK_S if speaker.theirs else None)


def _first(channel):
    while not channel.gone:
        for message in channel.pump():
            return message
        channel.wait(None)
    return None, {}
