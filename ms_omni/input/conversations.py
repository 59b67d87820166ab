"""Conversations of the user's in a file of JSON, checked before anything that takes long."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ms_omni.errors import InputError, MediaError
from ms_omni.files import read_text

from .load import open_source
from .messages import read_batch

SOMETHING = re.compile(r"\S")


def read_values(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, in words; the value) of each JSON value in a file: on a line each, or over several. Of a list of conversations
    each one is a value. Raises `InputError` for what is no JSON.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    decoder, line, at = json.JSONDecoder(), 1, 0
    while found := SOMETHING.search(text, at):
        begin = found.start()
        line += text.count("\n", at, begin)
        where = f"{path}, line {line}"
        try:
            value, at = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error})") from None
        line += text.count("\n", begin, at)
        if isinstance(value, list) and not any(isinstance(item, dict) and "role" in item for item in value):
            yield from ((f"{where}, item {number}", item) for number, item in enumerate(value, 1))
        else:
            yield where, value


def checked(messages: Any, where: str) -> list[dict]:
    """The messages of one conversation. Raises `InputError` that begins with `where` for what is none: no roles, no content, media that
    are named and not there (addresses are fetched later).
    """
    try:
        (read,), _ = read_batch([messages])
        for number, message in enumerate(read):
            if message.role == "user" and not any(message.texts) and not message.media:
                raise InputError(f"message {number} has no content; expected a text, or a list of texts and media")
            for item in message.media:
                for value in item.value if isinstance(item.value, list) else [item.value]:
                    if value is None or (isinstance(value, str) and not value.lower().startswith(("http://", "https://"))):
                        open_source(value, item.kind)
    except (InputError, MediaError) as error:
        raise InputError(f"{where}: {error}") from None
    return messages
