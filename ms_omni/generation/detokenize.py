"""Text from token ids as they come."""

MOST, CONTEXT = 64, 8
"""Ids that are decoded again with each new one, and how many of them are kept then: a text of any length takes a time per token that
does not grow, and a tokenizer that joins neighbours differently than it says them alone still sees some.
"""


class IncrementalDecoder:
    """Turns one row of ids into text piece by piece; a character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = []
        self.shown = ""
        self.held = ""  # what is held back

    def push(self, token, final=False):
        """The text that this token completes, possibly none; final: nothing follows, so nothing is held back."""
        self.ids.append(int(token))
        self.held = self.tokenizer.decode(self.ids, skip_special_tokens=True)[len(self.shown) :]
        return "" if self.held.endswith("\ufffd") and not final else self.rest()

    def rest(self):
        """The text that was held back; nothing follows."""
        piece, self.held = self.held, ""
        self.shown += piece
        if piece.endswith("\n"):  # a safe place to forget: no character spans a line's end
            self.ids, self.shown = [], ""
        elif len(self.ids) > MOST:
            self.ids = self.ids[-CONTEXT:]
            self.shown = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return piece
