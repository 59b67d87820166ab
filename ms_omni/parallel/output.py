"""Rank 0's standard error: on the launcher's own, as it comes, and in a log file."""

import contextlib
import fcntl
import os
import re
import sys
import termios
import threading
from pathlib import Path

SHOWN_LINES = 12
CHATTER = re.compile(rb"\[INFO\] DISTRIBUTED\([^\n]*\n")  # MindSpore says so at its end, whatever its log level


class RankOutput:
    """`target` is the descriptor to give to the process; on a terminal it is one, so that progress can be shown."""

    def __init__(self, log):
        self.file = open(log, "wb")
        if sys.stderr.isatty():
            self.source, self.target = os.openpty()
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(sys.stderr, termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(self.target, termios.TIOCSWINSZ, size)
        else:
            self.source, self.target = os.pipe()
        self.thread = threading.Thread(target=self._copy, daemon=True)

    def begin(self):
        """Once the process has its copy of `target`."""
        os.close(self.target)
        self.thread.start()

    def end(self):
        """Waits for the last words; a process that lives on somewhere is not waited for."""
        self.thread.join(2)

    def _copy(self):
        with contextlib.suppress(OSError):  # how a terminal says that its other side is closed
            while data := os.read(self.source, 1 << 16):
                self.file.write(data)
                with contextlib.suppress(BrokenPipeError):
                    sys.stderr.buffer.write(CHATTER.sub(b"", data))
                    sys.stderr.buffer.flush()
        os.close(self.source)
        self.file.close()


def last_lines(log):
    """The last lines of a log, for the eyes of whoever looks for the reason of a failure."""
    return "\n".join(Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:])
