"""What several processes that generate together must agree on. `Alone` is the accord of a single process.

A plan over several processes puts another one in its place (`ms_omni.parallel`): there all choices are rank 0's.
"""

from .sampling import Sampler


class Alone:
    """One process agrees with itself."""

    def begin(self, *request):
        """Called with what a request consists of before any work; raises `InputError` where processes differ in it."""

    def params(self, params):
        """Sampling parameters that draw the same everywhere."""
        return params

    def sampler(self, params, batch_size, vocab_size, prompt=None, valid=None):
        """The `Sampler` of one autoregressive loop."""
        return Sampler(params, batch_size, vocab_size, prompt, valid)

    def choose(self, sampler, logits, split=False):
        """The tokens int64 `[B]` that follow; split: logits are those of this process's part of the vocabulary."""
        return sampler(logits)

    def whole(self, logits):
        """Logits `[B, V]` of the whole vocabulary from those of the part that this process holds."""
        return logits

    def agree(self, array):
        """The same array everywhere."""
        return array

    def share(self, tensor):
        """The same device tensor everywhere."""
        return tensor

    def turns(self, source):
        """What `source` (a generator) yields; between two items everyone learns whether it goes on."""
        return source
