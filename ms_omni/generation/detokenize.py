"""Text from token ids as they come."""


class IncrementalDecoder:
    """Turns one row of ids into text piece by piece; a character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = []
        self.shown = ""

    def push(self, token, final=False):
        """The text that this token completes, possibly none; final: nothing follows, so nothing is held back."""
        self.ids.append(int(token))
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if text.endswith("\ufffd") and not final:
            return ""
        piece, self.shown = text[len(self.shown) :], text
        if text.endswith("\n"):  # a safe place to forget: no character spans a line's end
            self.ids, self.shown = [], ""
        return piece
