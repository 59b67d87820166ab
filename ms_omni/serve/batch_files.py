"""The two files of a batch: requests, read line by line, and answers, of which every line is whole at any moment."""

import fcntl
import hashlib
import json
import os
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import open_regular

SYNC_S = 1.0
"""At most so much work is lost when the machine stops."""
START = b'{"id": "batch_req_'
DIGEST_BYTES = 16


class Requests:
    """A file of requests, one JSON object a line, blank lines aside. It is read twice, and never held: only 16 bytes of every name.

    Raises `InputError` for a line that is no object with a `custom_id`, and for one name on two lines.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, digests, numbers = Path(path), bytearray(), array("q")
        for number, request in self._read():
            digests += _digest(request["custom_id"])
            numbers.append(number)
        names = np.frombuffer(bytes(digests), f"S{DIGEST_BYTES}")
        order = np.argsort(names, kind="stable")
        self._names, self._lines = names[order], np.frombuffer(numbers, np.int64)[order]
        self._check_unique()
        self.done = np.zeros(len(names), bool)

    def __len__(self) -> int:
        return len(self.done)

    @property
    def left(self) -> int:
        """How many are not answered yet."""
        return int(len(self) - self.done.sum())

    def answered(self, name: str) -> bool:
        """Notes that a request has its answer. False: there is no such request."""
        place = self._place(name)
        if place is None:
            return False
        self.done[place] = True
        return True

    def unanswered(self) -> Iterator[dict[str, Any]]:
        """Requests without an answer, in their order."""
        for _, request in self._read():
            place = self._place(request["custom_id"])
            if place is None:
                raise InputError(f"{self.path} has changed while it was read; leave it alone until all is answered")
            if not self.done[place]:
                yield request

    def _place(self, name):
        digest = np.array(_digest(name), f"S{DIGEST_BYTES}")
        place = int(np.searchsorted(self._names, digest))
        return place if place < len(self._names) and self._names[place] == digest else None

    def _read(self):
        try:
            file = open_regular(self.path)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}") from None
        with file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, self._request(number, line)

    def _request(self, number, line):
        what = f"{self.path}, line {number}"
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{what}: not JSON ({error}); every line is one JSON object") from None
        name = request.get("custom_id") if isinstance(request, dict) else None
        if not isinstance(name, str) or not name:
            raise InputError(f'{what}: expected {{"custom_id": "...", "method": "POST", "url": ..., "body": {{...}}}}')
        return request

    def _check_unique(self):
        same = np.flatnonzero(self._names[1:] == self._names[:-1])
        if len(same):
            first, second = self._lines[same[0]], self._lines[same[0] + 1]
            more = f", and so on {len(same) - 1} times more" if len(same) > 1 else ""
            raise InputError(
                f"{self.path}: lines {first} and {second} have the same custom_id{more}; answers are told apart by it"
            )


class Answers:
    """A file of answers that grows by whole lines; a context manager. Those that are in it already are noted in `requests`.

    What a kill has left of a last line is cut off. overwrite: begins anew, whatever is there. Raises `InputError` for a file that
    holds something else, or that another process is writing.
    """

    def __init__(self, path: str | os.PathLike, requests: Requests, overwrite: bool = False):
        self.path = Path(path)
        if self.path.exists() and self.path.samefile(requests.path):
            raise InputError(f"{self.path} is the file of the requests; answers need one of their own")
        try:
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise InputError(f"another process is writing {self.path}; wait for it, or choose another file") from None
        self.failed = 0
        self._synced = time.monotonic()
        if overwrite:
            self._file.truncate(0)
        try:
            self._file.truncate(self._take_over(requests))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, answer: dict[str, Any]) -> None:
        """Appends a line; it is on the disk within `SYNC_S` of the next one."""
        line = json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        view = memoryview(line)
        while view:  # a full disk takes a part and then fails; what is torn is cut off the next time
            view = view[self._file.write(view) :]
        self.failed += not succeeded(answer)
        if time.monotonic() - self._synced > SYNC_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _take_over(self, requests):
        """Length of what is whole."""
        length = 0
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if not (line.startswith(START) or START.startswith(line)):
                        raise self._foreign(number)
                    break
                answer = _loaded(line)
                if not isinstance(answer, dict) or not {"custom_id", "response", "error"} <= answer.keys():
                    raise self._foreign(number)
                name = answer["custom_id"]
                if not isinstance(name, str) or not requests.answered(name):
                    raise InputError(
                        f"{self.path}, line {number}: {requests.path} has no request {name!r:.80}, so these are answers to other "
                        "requests; choose another file, or begin anew with --overwrite"
                    )
                self.failed += not succeeded(answer)
                length += len(line)
        return length

    def _foreign(self, number):
        return InputError(
            f"{self.path}, line {number}: not an answer of a batch, so it is left as it is; choose another file, or replace it "
            "with --overwrite"
        )


def succeeded(answer: dict[str, Any]) -> bool:
    """Whether a line holds what was asked for."""
    response = answer["response"]
    return answer["error"] is None and isinstance(response, dict) and response.get("status_code") == 200


def _loaded(line):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _digest(name):
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
