"""JSON objects, one per line, over a TCP connection: how the processes that watch a job talk to each other."""

import json

LONGEST_BYTES = 1 << 20  # a line beyond this is no message of ours


class Lines:
    """A connected socket that sends and receives JSON objects and never blocks."""

    def __init__(self, connection):
        connection.setblocking(False)
        self.connection = connection
        self._incoming = self._outgoing = b""

    def fileno(self):
        """The descriptor to wait on."""
        return self.connection.fileno()

    def send(self, **message):
        """Sends one object; what the peer does not take now goes out with the next call. A lost peer is no error here."""
        self._outgoing += json.dumps(message).encode() + b"\n"
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[self.connection.send(self._outgoing) :]
        except OSError:  # full or gone: `receive` notices the latter
            return

    def receive(self):
        """The objects that have come in. Raises `ConnectionError` when the peer has gone or is none of ours."""
        try:
            data = self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ConnectionError(str(error)) from None
        if not data:
            raise ConnectionError("closed")
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        if len(self._incoming) > LONGEST_BYTES:
            raise ConnectionError("no message of ours")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            raise ConnectionError("no message of ours") from None
        if not all(isinstance(message, dict) for message in messages):
            raise ConnectionError("no message of ours")
        return messages

    def close(self):
        """Closes the connection."""
        self.connection.close()
