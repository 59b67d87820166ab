"""Collecting intermediate results of one forward pass without leaving anything on the model."""


class Watch:
    """What is kept of one call of a decoder; `observer` and `router_logits` go into the call.

    hidden_states: True, or the indices to keep (0: the input, i: layer i's output, before deepstack features are
    added); the others become None. router_logits becomes a list of one `[B * S, E]` per sparse layer.

    Nothing is hooked to the cells: MindSpore compiles every graph of the process anew whenever a hook comes or goes.
    """

    def __init__(self, decoder, hidden_states=False, router_logits=False):
        self.layers = len(decoder.layers)
        self.wanted = range(self.layers + 1) if hidden_states is True else hidden_states or ()
        self.hidden_states = [None] * (self.layers + 1)
        self.router_logits = [] if router_logits else None
        self.observer = self._see_hidden if self.wanted else None

    def _see_hidden(self, index, x):
        if index in self.wanted:
            self.hidden_states[index] = x

    def finished(self, last):
        """The collected states; the last is the decoder's result after its final norm, as in transformers."""
        if not self.wanted:
            return None
        return (*self.hidden_states[:-1], last if self.layers in self.wanted else None)
