"""Host-side book-keeping for packed sequences."""

from itertools import groupby

import numpy as np
from mindspore import Tensor


def host_array(x):
    """A numpy view of an array-like; reads a MindSpore tensor back from the device once, before encoding starts."""
    return x.asnumpy() if isinstance(x, Tensor) else np.asarray(x)


def segments_of(lengths):
    """Run-length form `((length, count), ...)` of consecutive segment lengths; zero lengths are left out."""
    return tuple((length, len(list(run))) for length, run in groupby(int(n) for n in lengths if n))
