"""Text from token ids as they come."""


class IncrementalDecoder:
    """Turns one row of ids into text piece by piece; a character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = []
        self.shown = ""

    def push(self, token):
        """The text that this token completes, possibly none."""
        self.ids.append(int(token))
        return self._advance(final=False)

    def flush(self):
        """What was held back."""
        return self._advance(final=True)

    def _advance(self, final):
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if not final and text.endswith("\ufffd"):
            return ""
        piece, self.shown = text[len(self.shown) :], text
        if text.endswith("\n") and not final:  # a safe place to forget: no character spans a line's end
            self.ids, self.shown = [], ""
        return piece
