"""How rank 0 wakes the others, which wait outside of any collective for as long as it takes: those have limits of time."""

import contextlib
import hmac
import json
import os
import secrets
import socket
from typing import Any

from ..errors import InputError

CONNECT_S = 120.0


class Bell:
    """Made by all ranks at the same time; comm: their `Collectives`. What is sent through it means nothing but "wake up"."""

    def __init__(self, comm: Any) -> None:
        self._ears: list[socket.socket] = []
        secret = secrets.token_hex()
        server = socket.create_server((_address(), 0)) if comm.rank == 0 else None
        place = None if server is None else json.dumps([*server.getsockname()[:2], secret]).encode()
        host, port, secret = json.loads(comm.broadcast_bytes(place))
        if server is None:
            self._line = _quick(socket.create_connection((host, port), CONNECT_S))
            self._line.sendall(secret.encode())
            self._line.settimeout(None)
            return
        with server:
            server.settimeout(CONNECT_S)
            while len(self._ears) < comm.size - 1:
                self._admit(_quick(server.accept()[0]), secret.encode())

    def _admit(self, line: socket.socket, secret: bytes) -> None:
        """Whoever does not know the secret is none of ours."""
        said = b""
        line.settimeout(CONNECT_S)
        with contextlib.suppress(OSError):
            while len(said) < len(secret) and (more := line.recv(len(secret) - len(said))):
                said += more
        if hmac.compare_digest(said, secret):
            self._ears.append(line)
        else:
            line.close()

    def ring(self) -> None:
        """Rank 0 wakes all others."""
        for line in self._ears:
            with contextlib.suppress(OSError):  # it has gone; the watch ends the job
                line.sendall(b"\1")

    def wait(self) -> None:
        """Another rank waits until it is woken. Raises `InputError` when rank 0 has left."""
        with contextlib.suppress(OSError):
            if self._line.recv(1):
                return
        raise InputError("rank 0 has left, so there is nothing more to do here")


def _address() -> str:
    """Of this host, as the hosts of the job see it: where it would talk to the scheduler from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
        probe.connect((os.environ.get("MS_SCHED_HOST", "127.0.0.1"), int(os.environ.get("MS_SCHED_PORT", "9"))))
        return probe.getsockname()[0]


def _quick(line: socket.socket) -> socket.socket:
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line
