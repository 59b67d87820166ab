"""Choosing one id per row on Ascend: penalties in six kernels, the likeliest ids in one, drawing among them in seven.

Whoever wins a race in which id j arrives after `noise[j] / probs[j]`, noise exponential, is drawn with probability `probs[j]`
(Gumbel-max trick; Maddison et al. 2014, section 2, in the exponential form). Ids that may not be drawn get no score above 0.
"""

import mindspore as ms
from mindspore import mint

from . import ascend_kernels as kernels
from .drawing import CANDIDATES


def penalised(logits, planes, factors, biases):
    """With factors of 1 or more the smaller of product and quotient is the penalised one, whichever sign the logit has."""
    logits = logits.astype(ms.float32)
    factor, bias = mint.index_select(planes, 0, factors), mint.index_select(planes, 0, biases)
    return mint.minimum(mint.addcmul(bias, logits, factor), kernels.addcdiv(bias, logits, factor))


def likeliest(logits, count):
    return kernels.largest(logits) if count == 1 else kernels.topk(logits, count)


def race(values, before, inverse_temperature, excluded, room, noise):
    probs = kernels.softmax(mint.addcmul(excluded, values.astype(ms.float32), inverse_temperature))
    left = mint.addmm(room, probs, before)  # in large numbers: top_p less what likelier ids have taken
    return mint.argmax(mint.minimum(mint.div(probs, noise), left), -1, True)


def drawn(logits, before, draw):
    """One of the likeliest ids of each row, in a kernel more; draw: the other arguments of `race` -> ids int64 `[B, 1]`, the largest
    logits float32 `[B, K]`.
    """
    values, ids = kernels.topk(logits, CANDIDATES)
    values = values.astype(ms.float32)
    return mint.gather(ids, -1, race(values, before, *draw)), values
