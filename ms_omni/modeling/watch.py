"""Collecting intermediate results of one forward pass without leaving anything on the model."""

from .moe import SparseMoeBlock


class Watch:
    """Context manager around a decoder call; `observer` goes into the call.

    hidden_states becomes the input and every layer's output `[B, S, D]`; router_logits one `[B * S, E]` per sparse
    layer. Both stay None when they are not asked for.
    """

    def __init__(self, decoder, hidden_states=False, router_logits=False):
        self.gates = [layer.mlp.gate for layer in decoder.layers if isinstance(layer.mlp, SparseMoeBlock)]
        self.hidden_states = () if hidden_states else None
        self.router_logits = () if router_logits else None
        self.observer = self._see_hidden if hidden_states else None

    def __enter__(self):
        gates = self.gates if self.router_logits is not None else ()
        self.hooks = [gate.register_forward_hook(self._see_logits) for gate in gates]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def _see_hidden(self, index, x):
        self.hidden_states += (x,)

    def _see_logits(self, cell, inputs, output):
        self.router_logits += (output,)
