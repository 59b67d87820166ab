"""Collecting intermediate results of one forward pass without leaving anything on the model."""

from .moe import SparseMoeBlock


class Watch:
    """Context manager around a decoder call; `observer` goes into the call.

    hidden_states: True, or the indices to keep (0: the input, i: layer i's output, before deepstack features are
    added); the others become None. router_logits becomes one `[B * S, E]` per sparse layer.
    """

    def __init__(self, decoder, hidden_states=False, router_logits=False):
        self.gates = [layer.mlp.gate for layer in decoder.layers if isinstance(layer.mlp, SparseMoeBlock)]
        self.layers = len(decoder.layers)
        self.wanted = range(self.layers + 1) if hidden_states is True else hidden_states or ()
        self.hidden_states = [None] * (self.layers + 1)
        self.router_logits = () if router_logits else None
        self.observer = self._see_hidden if self.wanted else None

    def __enter__(self):
        gates = self.gates if self.router_logits is not None else ()
        self.hooks = [gate.register_forward_hook(self._see_logits) for gate in gates]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def _see_hidden(self, index, x):
        if index in self.wanted:
            self.hidden_states[index] = x

    def finished(self, last):
        """The collected states; the last is the decoder's result after its final norm, as in transformers."""
        if not self.wanted:
            return None
        return (*self.hidden_states[:-1], last if self.layers in self.wanted else None)

    def _see_logits(self, cell, inputs, output):
        self.router_logits += (output,)
