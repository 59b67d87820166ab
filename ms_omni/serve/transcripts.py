"""What was said aloud, for later turns that name it by its id: text alone, for an hour, and only for who knows the id."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from .errors import ApiError

KEPT_S = 3600
MOST, MOST_BYTES = 10_000, 64 << 20


class Transcripts:
    """instance: of several servers, the one that keeps them. most, most_bytes: kept at a time; the oldest give way. clock: seconds
    since 1970.
    """

    def __init__(
        self,
        instance: str | None = None,
        most: int = MOST,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.time,
    ):
        self.instance, self.most, self.most_bytes, self._clock = instance, most, most_bytes, clock
        self._kept: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._bytes = 0

    def new_id(self) -> str:
        """An id that nobody can guess, and that says where it is known."""
        return "_".join(filter(None, ("audio", self.instance, secrets.token_hex(16))))

    def keep(self, id: str, text: str) -> int:
        """Remembers what was said; returns until when, as OpenAI's `expires_at`."""
        now = self._clock()
        self._kept[id] = now + KEPT_S, text
        self._bytes += len(text.encode())
        while self._kept and (len(self._kept) > self.most or self._bytes > self.most_bytes or self._first() <= now):
            _, (_, gone) = self._kept.popitem(last=False)
            self._bytes -= len(gone.encode())
        return int(now + KEPT_S)

    def text(self, id: str, param: str) -> str:
        """What was said. Raises `ApiError` 400 for an id that is not, or no longer, known; param: where it stands in the body."""
        expires, text = self._kept.get(id, (0.0, ""))
        if expires <= self._clock():
            raise ApiError(
                400,
                f"{param}: no spoken answer {id!r:.80} is known here, or it has expired (they are kept for an hour); send its "
                "transcript as the content of the message",
                param,
                "invalid_audio_id",
            )
        return text

    def _first(self):
        return next(iter(self._kept.values()))[0]
