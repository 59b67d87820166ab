"""Host-side book-keeping for packed sequences."""

from itertools import groupby

import numpy as np
from mindspore import Tensor


def host_array(x):
    """A numpy view of an array-like; reads a MindSpore tensor back from the device once, before encoding starts."""
    return x.asnumpy() if isinstance(x, Tensor) else np.asarray(x)


def valid_tokens(ids, attention_mask):
    """Which tokens of ids `[B, T]` are no padding, bool: those that attention_mask marks with 1, all without a mask."""
    return np.ones(ids.shape, bool) if attention_mask is None else host_array(attention_mask) == 1


def segments_of(lengths):
    """Run-length form `((length, count), ...)` of consecutive segment lengths; zero lengths are left out."""
    return tuple((length, len(list(run))) for length, run in groupby(int(n) for n in lengths if n))
