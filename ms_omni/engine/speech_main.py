"""The process that speaks, from its start to its end; see `speech_process.py`."""

import os
import select
import signal
import sys
import threading
import time

from .ring import Channel

TICK_S = 0.02
"""Between ticks in which nothing is due."""
LAST_MESSAGE_S = 2.0


def main() -> None:
    """Descriptors of the channel and the number of the engine's process are the arguments."""
    memory, end, parent = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, see `locking.py`
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    channel = Channel.of(memory, end)
    try:
        run(channel)
    except BaseException as error:
        channel.send({"kind": "lost", "why": f"has failed ({type(error).__name__}: {error})"})
        deadline = time.monotonic() + LAST_MESSAGE_S
        while channel.queued and not channel.closed and time.monotonic() < deadline:
            channel.pump()
            channel.wait(TICK_S)
        channel.close()
        raise
    os._exit(0)  # without MindSpore's clean-up, which takes long


def _exit_with_parent(parent):
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
    from .speech_worker import SpeechWorker  # MindSpore takes seconds to import, and the parent is watched already

    worker = SpeechWorker(channel, settings, arrays["tts_embeds"])
    channel.send({"kind": "ready"})
    while True:
        for header, arrays in channel.pump():
            worker.handle(header, arrays)
        if channel.closed:
            return
        if channel.queued or not worker.tick():  # what is queued is sent before more is made
            channel.wait(TICK_S if worker.remote_ids else None)


def _first(channel):
    while not channel.closed:
        for message in channel.pump():
            return message
        channel.wait(None)
    return None, {}
