"""Host-side book-keeping for packed sequences."""

from itertools import groupby

import numpy as np
from mindspore import Tensor

from ..arrays import host_array as host_array
from ..errors import InputError


def as_tensor(x):
    """x itself where it is a tensor, which may carry a gradient, else its numbers as one."""
    return x if isinstance(x, Tensor) else Tensor(np.asarray(x, np.float32))


def check_ids(ids, vocabulary):
    """Raises `InputError` for ids that are no integers `[B, T]` of this vocabulary."""
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise InputError(
            f"input_ids must be integers of shape [batch, tokens], not empty; got {ids.dtype} {list(ids.shape)}"
        )
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise InputError(f"input_ids must lie in [0, {vocabulary}); got {ids.min()} to {ids.max()}")


def whole_numbers(x, name):
    """x as int64: the numbers of a grid or a length, which may come as floats. Raises `InputError` for others."""
    numbers = host_array(x)
    whole = numbers.astype(np.int64)
    if (whole != numbers).any():
        raise InputError(f"{name} must hold whole numbers; got {numbers.tolist()}")
    return whole


def valid_tokens(shape, attention_mask):
    """Which tokens are no padding, bool: those that attention_mask marks with 1; without a mask all of `shape`.

    Raises `InputError` for a mask that holds anything but 1 and 0 (or True and False).
    """
    if attention_mask is None:
        return np.ones(shape, bool)
    mask = host_array(attention_mask)
    valid = mask == 1
    if mask.dtype.kind not in "biuf" or not (valid | (mask == 0)).all():
        raise InputError(
            f"attention_mask must hold 1 for tokens and 0 for padding; got {mask.dtype} {np.unique(mask[~valid])[:4].tolist()}"
        )
    return valid


def segments_of(lengths):
    """Run-length form `((length, count), ...)` of consecutive segment lengths; zero lengths are left out."""
    return tuple((length, len(list(run))) for length, run in groupby(int(n) for n in lengths if n))
