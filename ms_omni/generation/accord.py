"""What several processes that generate together must agree on. `Alone` is the accord of a single process.

A plan over several processes puts another one in its place (`ms_omni.parallel`): there all choices are rank 0's.
"""

from ..locking import exclusive
from .sampling import Sampler


class Alone:
    """One process agrees with itself."""

    def begin(self, *request):
        """Called with what a request consists of before any work; raises `InputError` where processes differ in it."""

    def params(self, params):
        """Sampling parameters that draw the same everywhere."""
        return params

    def sampler(self, params, batch_size, vocab_size, prompt=None, valid=None, part="thinker"):
        """The `Sampler` of one autoregressive loop of this part of the model."""
        return Sampler(params, batch_size, vocab_size, prompt, valid, part)

    def choose(self, sampler, logits, process=None, split=False):
        """The tokens int64 `[B]` that follow, and the scores `[B, V]` that they were chosen from.

        process: the caller's own function of adjusted scores `[B, V]`; split: logits are those of this process's part of the
        vocabulary.
        """
        scores = self.adjusted(sampler, logits, split)
        scores = sampler.filter(scores if process is None else process(scores))
        tokens = self.agree(sampler.choose(scores))
        sampler.note(tokens)
        return tokens, scores

    def adjusted(self, sampler, logits, split):
        """Adjusted scores `[B, V]` of the whole vocabulary."""
        return sampler.adjust(logits)

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
        """What `source` (a generator) yields; between two items other threads may enter MindSpore (see `locking.py`), and
        everyone learns whether it goes on.
        """
        try:
            while True:
                with exclusive:
                    item = next(source, self)
                if item is self:
                    return
                yield item
        finally:
            with exclusive:
                source.close()
