"""Drawing one of the likeliest ids per row, on Ascend: temperature, top k and top p of each row, in nine kernels.

Whoever wins a race in which id j arrives after `noise[j] / probs[j]`, noise exponential, is drawn with probability `probs[j]`
(Gumbel-max trick; Maddison et al. 2014, section 2, in the exponential form). Ids that may not be drawn get no score above 0.
"""

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

from . import ascend_kernels as kernels

CANDIDATES = 64
"""Of the likeliest ids that one is drawn from; top_k may be as large."""
SCALE = np.float32(1e20)
"""Of the room below top_p: with it any room is larger than any score, so that the smaller one is the score or below 0."""
LEAST_NOISE = np.float32(1e-12)


class Draw(NamedTuple):
    """How rows draw; arrays float32. inverse_temperature `[B, 1]`; excluded `[B, K]`: 0, or -inf from a row's top_k on; room
    `[B, K]`: `SCALE * top_p`; noise `[B, K]`: exponential.
    """

    inverse_temperature: Tensor
    excluded: Tensor
    room: Tensor
    noise: Tensor


def draw_inputs(kinds, noise):
    """The four arrays of `Draw` for kinds `[(temperature, top_k, top_p), ...]`, a row each; None draws the likeliest id. noise float32
    `[B, K]`, exponential. top_k 0 stands for all candidates.
    """
    rows = [(1.0, 1, 1.0) if kind is None else kind for kind in kinds]
    temperatures, counts, shares = (np.array(column) for column in zip(*rows))
    counts = np.where(counts == 0, CANDIDATES, counts)
    excluded = np.where(np.arange(CANDIDATES) < counts[:, None], np.float32(0), np.float32(-np.inf))
    room = np.repeat((SCALE * shares.astype(np.float32))[:, None], CANDIDATES, 1)
    return (1 / temperatures[:, None]).astype(np.float32), excluded, room, np.maximum(noise, LEAST_NOISE)


def before():
    """What sums up, for each candidate, the probabilities of those before it: float32 `[K, K]`, times `-SCALE`."""
    return Tensor(np.triu(np.full((CANDIDATES, CANDIDATES), -SCALE, np.float32), 1))


def race(logits, draw, tri):
    """logits `[B, V]`, draw: a `Draw`, tri: what `before` made -> ids int64 `[B, 1]`, the largest logits float32 `[B, K]`."""
    inverse_temperature, excluded, room, noise = draw
    largest, ids = kernels.topk(logits, CANDIDATES)
    largest = largest.astype(ms.float32)
    probs = kernels.softmax(mint.addcmul(excluded, largest, inverse_temperature))
    left = mint.addmm(room, probs, tri)  # SCALE * (top_p - what likelier ids have taken)
    winner = mint.argmax(mint.minimum(mint.div(probs, noise), left), -1, True)
    return mint.gather(ids, -1, winner), largest
