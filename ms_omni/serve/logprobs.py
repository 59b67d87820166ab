"""Log-probabilities of tokens as OpenAI has them, with the bytes of each token."""

import re
from functools import lru_cache
from typing import Any

from ..outputs import Logprobs

NEVER = -9999.0
"""For a token that cannot come, as OpenAI has it: JSON knows no infinity."""


class TokenTexts:
    """Texts and bytes of single tokens of a byte-level tokenizer."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._added = tokenizer, set(tokenizer.get_added_vocab().values())

    def entry(self, token: int, found: Logprobs) -> dict[str, Any]:
        """Of the token that was chosen, with the likeliest beside it."""
        top = [self.one(int(id), float(value)) for id, value in zip(found.ids, found.logprobs)]
        return {**self.one(token, found.chosen), "top_logprobs": top}

    def one(self, token: int, value: float) -> dict[str, Any]:
        """Of a token alone."""
        data = self._bytes(token)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
        return {"token": text, "logprob": max(value, NEVER), "bytes": list(data)}

    def _bytes(self, token):
        text = self._tokenizer.convert_ids_to_tokens(token) or ""
        letters = byte_letters()
        if token in self._added or not all(letter in letters for letter in text):
            return text.encode()
        return bytes(letters[letter] for letter in text)


@lru_cache(maxsize=1)
def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it can be seen, else one from 256 on."""
    seen = [byte for byte in range(256) if re.match(r"[!-~\u00a1-\u00ac\u00ae-\u00ff]", chr(byte))]
    rest = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + number): byte for number, byte in enumerate(rest)}
