"""How many kernels a step launches, by the form that it runs in. The host starts them one after another, so their number bounds
the time of a step, whatever the card can do and however many rows the step is for.

Counted at the published sizes by MindSpore's own kernel selection for Ascend, in dry run (`tests/ascend_dryrun`); views and
reshapes are no launches, and none is of a kind that CANN has to build. For other sizes they grow with the layers, of the code
predictor also with the codes.
"""

from dataclasses import dataclass

FRAME = (5, 15)  # layers of the published code predictor, codes that it writes


@dataclass(frozen=True)
class Form:
    """How the steps of decoding run. kernels: how they are started, a key of the hardware's `launch_us`; layer: launches of a layer
    of the thinker on one card; rank: more of each on one of several cards, without the collectives; shared: more of each layer
    with a shared expert, as in the talker; besides: of a step beside its layers; frame: codes 1 .. 15 of a frame, sampled; choice:
    of a token for each row, sampled, and penalties: more where it has some; chunk, chunk_besides: as layer and besides, of a chunk of a
    prompt, whose kernels are called one by one.
    """

    name: str
    kernels: str
    layer: int
    rank: int = 3
    shared: int = 6
    besides: int = 2
    frame: int = 1189
    choice: int = 8
    penalties: int = 6
    chunk: int = 23
    chunk_besides: int = 2

    def thinker(self, layers: int, cards: int, chunk: bool = False) -> int:
        """Of one step, without the choice of a token."""
        more = self.rank if cards > 1 else 0
        return self._step(layers, more, chunk)

    def talker(self, layers: int, chunk: bool = False) -> int:
        """Of one step of the talker, without the choice of code 0 and the codes that follow it."""
        return self._step(layers, self.shared, chunk)

    def _step(self, layers, more, chunk):
        each, besides = (self.chunk, self.chunk_besides) if chunk else (self.layer, self.besides)
        return (each + more) * layers + besides

    def codes(self, layers: int, codes: int) -> int:
        """Of the codes that follow a code 0."""
        return round(self.frame * layers * codes / (FRAME[0] * FRAME[1]))


GRAPH = Form("graph", "graph", layer=22)
"""As it is: all kernels are CANN's."""
BOOSTED = Form("boosted graph", "graph", layer=20)
"""With `MS_OMNI_BOOST=1`: with kernels that come with MindSpore (infer_boost), whose attention nobody has seen run."""
FORMS = (GRAPH, BOOSTED)
GATHERED_LAYER = 42
"""Of a layer whose weights are gathered when they are used (ZeRO-3), whose cells run one by one; without the gathers."""
VOCODER = 701
"""Of a piece of sound of one row, one by one; on MindSpore 2.7.1 29 fewer."""
