"""Tokens as OpenAI writes them beside log-probabilities: their text, and the bytes that it is made of."""

from functools import cache
from typing import Any


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes of a token of a byte-level vocabulary, which need not be whole characters; those of its name, if it is a special one."""
    written = tokenizer.convert_ids_to_tokens(token)
    if written is None:  # an id that has no token
        return b""
    letters = _bytes()
    if all(letter in letters for letter in written):
        return bytes(letters[letter] for letter in written)
    return written.encode()


def told(tokenizer: Any, token: int, logprob: float) -> dict[str, Any]:
    """`{"token", "logprob", "bytes"}`."""
    data = token_bytes(tokenizer, token)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


@cache
def _bytes():
    """The byte for each letter that stands for one: printable ones for themselves, the others are counted from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + number): byte for number, byte in enumerate(others)}}
