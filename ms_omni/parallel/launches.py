"""How many kernels a step launches, by the form that it runs in. The host starts them one after another, so their number bounds
the time of a step, whatever the card can do.

Counted at the published sizes by MindSpore's own kernel selection for Ascend, in dry run (`tests/ascend_dryrun`), where nothing
else is said; views and reshapes are no launches. For other sizes they grow with the layers, of the code predictor also with the
codes.
"""

from dataclasses import dataclass

FRAME = (5, 15)  # layers of the published code predictor, codes that it writes


@dataclass(frozen=True)
class Launches:
    """Kernels of a step, aclop ones (which the host starts more slowly) apart from all others."""

    plain: int = 0
    aclop: int = 0

    def __add__(self, other):
        return Launches(self.plain + other.plain, self.aclop + other.aclop)

    def __mul__(self, times):
        return Launches(round(self.plain * times), round(self.aclop * times))

    @property
    def total(self):
        return self.plain + self.aclop


@dataclass(frozen=True)
class Form:
    """How the steps of decoding run. kernels: how they are started, a key of the hardware's `launch_us`; layer: of the thinker on
    one card; rank: more of each layer on one of several cards; shared: more of each layer with a shared expert, as in the talker;
    besides: of a step beside its layers; frame: codes 1 .. 15 of a frame.
    """

    name: str
    kernels: str
    layer: Launches
    rank: Launches
    shared: Launches
    besides: Launches
    frame: Launches

    def thinker(self, layers: int, cards: int) -> Launches:
        """Of one token."""
        return (self.layer + (self.rank if cards > 1 else Launches())) * layers + self.besides

    def talker(self, layers: int) -> Launches:
        """Of one token of the talker, without the codes that follow it."""
        return (self.layer + self.shared) * layers + self.besides

    def codes(self, layers: int, codes: int) -> Launches:
        """Of the codes that follow a token of the talker."""
        return self.frame * (layers * codes / (FRAME[0] * FRAME[1]))


COUNTED = dict(layer=Launches(29), rank=Launches(7), shared=Launches(9), besides=Launches(5), frame=Launches(2000, 185))
# Of these only layer and frame are counted; a rank and a shared expert are taken to add what they add above.
FUSED = dict(rank=Launches(7), shared=Launches(9), besides=Launches(5), frame=Launches(1184))
FORMS = (
    Form("one by one", "eager", **COUNTED),
    Form("graph", "graph", **COUNTED),
    Form("fused graph", "graph", layer=Launches(22), **FUSED),
    Form("boosted graph", "graph", layer=Launches(20), **FUSED),
)
"""As it is now, called one by one and compiled; then as decoding can be written with kernels that all exist in CANN, and with
those that come with MindSpore (infer_boost), whose attention nobody has seen run."""
CHUNK = Form("prompt", "eager", Launches(39), rank=Launches(7), shared=Launches(9), besides=Launches(1), frame=Launches())
"""A chunk of a prompt, one by one."""
VOCODER = Launches(701)
"""Of a piece of sound, one by one; on MindSpore 2.7.1 29 fewer."""
