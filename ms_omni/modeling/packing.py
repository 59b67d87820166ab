"""What callers pass as arrays, checked where it enters; and host-side book-keeping for packed sequences."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ..arrays import host_array as host_array
from ..errors import InputError

Axes = Sequence[int | str]


def numbers(x: Any, name: str) -> np.ndarray:
    """x as an array of real numbers. Raises `InputError` for what is none."""
    try:
        array = host_array(x)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} is no array of numbers: {error}") from None
    if array.dtype.kind not in "fiub" and array.dtype.name not in ("bfloat16",):
        raise InputError(f"{name} holds {array.dtype}, expected numbers")
    return array


def check_shape(x: Any, name: str, axes: Axes) -> None:
    """Raises `InputError` for an array of another shape than axes: lengths, and names of those that may be any but 0."""
    shape = tuple(x.shape)
    if len(shape) != len(axes) or not all(
        length > 0 if isinstance(axis, str) else length == axis for length, axis in zip(shape, axes)
    ):
        raise InputError(f"{name} has shape {list(shape)}, expected [{', '.join(map(str, axes))}], nothing of it empty")


def finite(x: Any, name: str, axes: Axes | None = None) -> np.ndarray:
    """x as a float32 array of finite numbers, with axes of the shape that `check_shape` asks for. Raises `InputError`."""
    array = numbers(x, name)
    if array.dtype == bool:
        raise InputError(f"{name} holds truth values, expected numbers")
    if axes is not None:
        check_shape(array, name, axes)
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.asarray(array, np.float32)
        broken = not np.isfinite(array.sum())  # a pass without a copy; a sum of finite numbers may be infinite as well
    if broken and not np.isfinite(array).all():
        raise InputError(f"{name} holds numbers that are NaN or infinite (in float32); what made it is at fault")
    return array


def check_ids(ids: np.ndarray, vocabulary: int) -> None:
    """Raises `InputError` for ids that are no integers `[B, T]` of this vocabulary."""
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise InputError(
            f"input_ids must be integers of shape [batch, tokens], not empty; got {ids.dtype} {list(ids.shape)}"
        )
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise InputError(f"input_ids must lie in [0, {vocabulary}); got {ids.min()} to {ids.max()}")


def whole_numbers(x: Any, name: str) -> np.ndarray:
    """x as int64: the numbers of a grid or a length, which may come as floats. Raises `InputError` for others."""
    given = numbers(x, name)
    with np.errstate(invalid="ignore"):
        whole = given.astype(np.int64)
    if (whole != given).any():
        raise InputError(f"{name} must hold whole numbers; got {given.tolist()}")
    return whole


def patch_grids(x: Any, name: str, merge: int) -> np.ndarray:
    """Patches `[n, 3]` of pictures in time, height and width as int64. Raises `InputError` for what cannot be such counts."""
    grids = whole_numbers(x, name)
    if grids.shape != (0, 3):
        check_shape(grids, name, ("pictures", 3))
    if (grids < 1).any() or (grids[:, 1:] % merge).any():
        raise InputError(
            f"{name} must hold positive patch counts whose height and width are multiples of {merge}; got {grids.tolist()}"
        )
    return grids


def marked(mask: Any, name: str) -> np.ndarray:
    """A mask as bool. Raises `InputError` for one that holds anything but 1 and 0 (or True and False)."""
    array = numbers(mask, name)
    valid = array == 1
    if not (valid | (array == 0)).all():
        others = np.unique(array[~valid & (array != 0)])[:4].tolist()
        raise InputError(f"{name} must hold 1 for what counts and 0 for padding; got {others}")
    return valid


def valid_tokens(shape: tuple[int, ...], attention_mask: Any) -> np.ndarray:
    """Which tokens are no padding, bool: those that attention_mask marks with 1; without a mask all of `shape`. `InputError`."""
    return np.ones(shape, bool) if attention_mask is None else marked(attention_mask, "attention_mask")


def segments_of(lengths: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Run-length form `((length, count), ...)` of consecutive segment lengths; zero lengths are left out."""
    return tuple((length, len(list(run))) for length, run in groupby(int(n) for n in lengths if n))
