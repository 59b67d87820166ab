"""Matrices stored as whole numbers of 8 or 4 bits with scales: their layout, and how numpy packs and unpacks them.

    weight[n, k] = codes[n, k] * scales[n, k // group] + offsets[n, k // group]

Codes of 8 bits are int8 `[..., N, K]`. Codes of 4 bits are -8 to 7, plus 8, two in a byte of uint8 `[..., N, K / 2]`: byte 16 b + j holds
input 32 b + j in its low half and input 32 b + 16 + j in its high one, so that a vector of bytes is two vectors of neighbours. N: outputs,
K: inputs, as in published matrices, also where experts are stacked (`[E, 2I, D]`, `[E, D, I]`).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .arrays import MODEL_TYPES
from .errors import InputError

BLOCK = 32  # inputs whose codes of 4 bits lie together
GROUPS = (128, 64, 32)


class Quantised(NamedTuple):
    """A stored matrix, or a stack of them, as arrays, tensors or parameters; see above. offsets: None for zeros."""

    codes: Any
    scales: Any
    offsets: Any = None

    @property
    def bits(self) -> int:
        return 4 if str(self.codes.dtype).lower().endswith("uint8") else 8

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix, `[..., N, K]`."""
        shape = tuple(self.codes.shape)
        return shape if self.bits == 8 else (*shape[:-1], 2 * shape[-1])

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.shape[-1] // self.scales.shape[-1]


@dataclass(frozen=True)
class Storage:
    """How a matrix is stored. group: inputs that share a scale, None for all of them; scale, offset: dtypes by name, offset None without."""

    bits: int
    group: int | None = None
    scale: str = "bfloat16"
    offset: str | None = None

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of codes, and of scales and offsets, of a matrix `[..., N, K]`. Raises `InputError` for a K that does not divide."""
        *outer, inputs = shape
        group = self.group or inputs
        if inputs % group or (self.bits == 4 and group % BLOCK):
            raise InputError(
                f"a matrix {list(shape)} has {inputs} inputs, which are no whole groups of {group}"
                + (f" (codes of 4 bits: a multiple of {BLOCK})" if self.bits == 4 else "")
            )
        return (*outer, inputs if self.bits == 8 else inputs // 2), (*outer, inputs // group)


def pack(codes: np.ndarray) -> np.ndarray:
    """int8 `[..., K]` of -8 to 7 -> uint8 `[..., K / 2]`."""
    halves = (codes + 8).astype(np.uint8).reshape(*codes.shape[:-1], -1, 2, BLOCK // 2)
    return (halves[..., 0, :] | halves[..., 1, :] << 4).reshape(*codes.shape[:-1], -1)


def unpack(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack`."""
    blocks = packed.reshape(*packed.shape[:-1], -1, 1, BLOCK // 2)
    halves = np.concatenate([blocks & 15, blocks >> 4], axis=-2)
    return halves.reshape(*packed.shape[:-1], -1).astype(np.int8) - 8


def dequantised(stored: Quantised) -> np.ndarray:
    """The matrix in float32, from arrays."""
    codes = stored.codes if stored.bits == 8 else unpack(stored.codes)
    grouped = codes.reshape(*codes.shape[:-1], stored.scales.shape[-1], -1).astype(np.float32)
    grouped *= stored.scales.astype(np.float32)[..., None]
    if stored.offsets is not None:
        grouped += stored.offsets.astype(np.float32)[..., None]
    return grouped.reshape(codes.shape)


def quantised(matrix: np.ndarray, storage: Storage) -> Quantised:
    """A matrix `[..., N, K]` rounded to the nearest codes, without offsets. Raises `InputError`, see `Storage.shapes`."""
    _, scales_shape = storage.shapes(matrix.shape)
    largest = 2 ** (storage.bits - 1) - 1
    grouped = matrix.astype(np.float32).reshape(*scales_shape, -1)
    scales = (np.abs(grouped).max(axis=-1) / largest).astype(MODEL_TYPES[storage.scale])
    steps = scales.astype(np.float32)[..., None]
    codes = np.divide(grouped, steps, out=np.zeros_like(grouped), where=steps > 0)
    codes = np.clip(np.rint(codes), -largest - 1, largest).astype(np.int8).reshape(matrix.shape)
    return Quantised(codes if storage.bits == 8 else pack(codes), scales)
