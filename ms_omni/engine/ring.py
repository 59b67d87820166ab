"""Messages between two processes: the bytes go through memory that both share, the counts of them through a socket.

    one side   --- bytes --->  [ ring of one direction ]  --- bytes --->   the other
               <-- bytes ----  [ ring of the other     ]  <-- bytes ----
               <- how many were written and read so far, 16 bytes ->

A ring is read only up to the count that came by the socket, so no processor can see the one before the other. Sending never waits: what does
not fit stays with its sender until there is some. A message may be larger than the ring. Only the standard library and numpy here.
"""

import contextlib
import json
import mmap
import os
import select
import socket
import struct
from collections import deque
from typing import Any

import numpy as np

COUNTS = struct.Struct("<QQ")  # bytes that this side has written and read, since the beginning
HEAD = struct.Struct("<I")  # bytes of a message's header
MIB = 2**20


class Ring:
    """One direction, seen from one side; the other one's count came by the socket."""

    def __init__(self, memory: memoryview) -> None:
        self.memory, self.size = memory, len(memory)
        self.written = self.read = 0

    def put(self, data: memoryview) -> int:
        """Writes as much as there is room for; returns how much."""
        count = min(len(data), self.size - (self.written - self.read))
        start = self.written % self.size
        first = min(count, self.size - start)
        self.memory[start : start + first] = data[:first]
        self.memory[: count - first] = data[first:count]
        self.written += count
        return count

    def take(self) -> bytes:
        """All that was written."""
        count, start = self.written - self.read, self.read % self.size
        first = min(count, self.size - start)
        self.read += count
        return bytes(self.memory[start : start + first]) + bytes(self.memory[: count - first])


class Channel:
    """One end, for one thread at a time; `wait` may stand beside it. closed: the other side is not there any more."""

    def __init__(self, memory: mmap.mmap, end: socket.socket, first: bool) -> None:
        end.setblocking(False)
        self.memory, self.socket, self.closed = memory, end, False
        half = len(memory) // 2
        halves = memoryview(memory)[:half], memoryview(memory)[half : 2 * half]
        self.out, self.into = map(Ring, halves if first else halves[::-1])
        self._queue: deque[memoryview] = deque()
        self._buffer = bytearray()
        self._received, self._outgoing, self._last_sent = b"", b"", COUNTS.pack(0, 0)

    @classmethod
    def pair(cls, size: int) -> tuple["Channel", tuple[int, int]]:
        """One end with rings of `size` bytes, and the descriptors (memory, socket) of the other, for `of` in another process.

        The memory has no name, so it cannot be left behind, and a container's limit for /dev/shm does not matter.
        """
        memory = os.memfd_create("ms_omni-channel")
        os.ftruncate(memory, 2 * size)
        ours, theirs = socket.socketpair()
        return cls(mmap.mmap(memory, 2 * size), ours, True), (memory, theirs.detach())

    @classmethod
    def of(cls, memory: int, end: int) -> "Channel":
        """The other end."""
        size = os.fstat(memory).st_size
        channel = cls(mmap.mmap(memory, size), socket.socket(fileno=end), False)
        os.close(memory)
        return channel

    @property
    def queued(self) -> bool:
        """Whether there is something that did not fit."""
        return bool(self._queue)

    def send(self, header: dict[str, Any], **arrays: np.ndarray | None) -> None:
        """Sends a message: what JSON can say, and arrays. Never waits."""
        found = {name: np.asarray(array, order="C") for name, array in arrays.items() if array is not None}
        shapes = [(name, array.dtype.str, array.shape) for name, array in found.items()]
        text = json.dumps([header, shapes]).encode()
        self._queue.append(memoryview(HEAD.pack(len(text)) + text))
        self._queue += (array.reshape(-1).view(np.uint8).data for array in found.values() if array.size)

    def pump(self) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        """Moves what can be moved; returns the messages `(header, arrays)` that have arrived as a whole."""
        self._receive_counts()
        self._buffer += self.into.take()
        while self._queue and (count := self.out.put(self._queue[0])):
            rest = self._queue.popleft()[count:]
            if len(rest):
                self._queue.appendleft(rest)
        self._send_counts()
        found = []
        while (message := self._message()) is not None:
            found.append(message)
        return found

    def wait(self, seconds: float | None) -> None:
        """Until there may be something to move, or so many seconds."""
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            select.select([self.socket], [self.socket] if self._outgoing else [], [], seconds)

    def close(self) -> None:
        """Shuts the socket down, which the other side notices even if a copy of it is open; the memory goes with the last of the two."""
        self.closed = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _receive_counts(self):
        """Takes the last note; notes are totals, so one that is left out does not matter."""
        try:
            while not self.closed:
                data = self.socket.recv(COUNTS.size * 256)
                self.closed = not data
                self._received += data
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        whole = len(self._received) // COUNTS.size * COUNTS.size
        if whole:
            self.into.written, self.out.read = COUNTS.unpack_from(self._received, whole - COUNTS.size)
            self._received = self._received[whole:]

    def _send_counts(self):
        while not self.closed:
            if not self._outgoing:
                counts = COUNTS.pack(self.out.written, self.into.read)
                if counts == self._last_sent:
                    return
                self._outgoing = self._last_sent = counts
            try:
                self._outgoing = self._outgoing[self.socket.send(self._outgoing) :]
            except OSError:  # it is full, or the other side has ended, which `_receive_counts` finds
                return

    def _message(self):
        if len(self._buffer) < HEAD.size:
            return None
        (size,) = HEAD.unpack_from(self._buffer)
        if len(self._buffer) < HEAD.size + size:
            return None
        header, shapes = json.loads(self._buffer[HEAD.size : HEAD.size + size])
        sizes = [int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize for _, kind, shape in shapes]
        start = HEAD.size + size
        if len(self._buffer) < start + sum(sizes):
            return None
        arrays = {}
        for (name, kind, shape), count in zip(shapes, sizes):
            arrays[name] = np.frombuffer(self._buffer[start : start + count], kind).reshape(
                shape
            )  # a copy that can be written to
            start += count
        del self._buffer[:start]
        return header, arrays
