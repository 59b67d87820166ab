"""One matrix of a published checkpoint: what its tensors say, and the numbers in our form or dequantised.

    weight[n, k] = codes[n, k] * scales[n, k // group] + offsets[n, k // group]

A layout (a file beside this one) describes a matrix from the headers of its tensors and decodes them when they are read.
Whole numbers of up to 8 bits in groups of inputs are stored as ours (`ms_omni.quantised`): int4 for up to 4 bits, else int8, with
the same scales; zero points become offsets, -zero * scale in float32. These are the same numbers up to the rounding of
float32. Anything else is dequantised: computed in float32 and rounded once to the dtype of the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from ms_omni.quantised import BLOCK, Quantised, Storage, pack

from ..safetensors import WEIGHT_DTYPES, Entry

Arrays = Mapping[str, np.ndarray]
Parts = Mapping[str, Entry]  # the tensors of a module by the last word of their names
STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where a word's eight columns stand among its nibbles


class Misfit(Exception):
    """What is wrong with the tensors of one matrix; its text is a line of the report."""


class Decoded(NamedTuple):
    """A matrix as numbers. codes: int8 `[N, K]`, or float32 where they are no whole numbers; scales, offsets: `[N, G]`.

    group_of: `[K]`, the group of each input, where that is not k // (K / G).
    """

    codes: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None = None
    group_of: np.ndarray | None = None


@dataclass(frozen=True)
class Matrix:
    """shape: [N, K]; dtype: of its scales; storage: ours, or None with the reason in `why`.

    decode: {last word of a tensor's name: array} -> Decoded; raises `Misfit` for values that contradict the configuration.
    """

    shape: tuple[int, int]
    dtype: str
    storage: Storage | None
    why: str
    decode: Callable[[Arrays], Decoded]

    def codes(self, arrays: Arrays) -> Quantised:
        """The matrix in our form."""
        assert self.storage is not None
        decoded = self._finite(arrays)
        codes = decoded.codes if self.storage.bits == 8 else pack(decoded.codes)
        return Quantised(codes, np.ascontiguousarray(decoded.scales), decoded.offsets)

    def array(self, arrays: Arrays) -> np.ndarray:
        """The matrix dequantised, in float32."""
        codes, scales, offsets, group_of = self._finite(arrays)
        scales, groups = scales.astype(np.float32), scales.shape[1]
        offsets = None if offsets is None else offsets.astype(np.float32)
        if group_of is None:
            matrix = codes.reshape(len(codes), groups, -1) * scales[..., None]
            if offsets is not None:
                matrix += offsets[..., None]
        else:
            matrix = codes * scales[:, group_of]
            if offsets is not None:
                matrix += offsets[:, group_of]
        return matrix.reshape(codes.shape)

    def _finite(self, arrays: Arrays) -> Decoded:
        """What it decodes to. Raises `Misfit` for scales, offsets or numbers of float8 that are not finite."""
        with np.errstate(invalid="ignore", divide="ignore"):
            decoded = self.decode(arrays)
        for numbers in decoded[:3]:
            if numbers is not None and numbers.dtype.kind != "i" and not np.isfinite(numbers).all():
                raise Misfit("holds NaN or infinite numbers; fetch it again")
        return decoded


class Layout(Protocol):
    """How one tool writes matrices."""

    title: str  # for messages
    dropped: tuple[str, ...]  # last words of tensors that describe activations: not needed where weights are dequantised

    def holds(self, parts: Parts) -> bool:
        """Whether these are the tensors of a quantised matrix."""
        ...

    def matrix(self, module: str, parts: Parts) -> Matrix:
        """Describes it from its headers. Raises `Misfit`."""
        ...

    def uses(self, parts: Parts) -> set[str]:
        """The tensors that belong to the matrix; the others of the module (a bias) are tensors of their own."""
        ...


def storage_for(
    bits: int, shape: tuple[int, int], groups: int, scale: str, offset: str | None
) -> tuple[Storage | None, str]:
    """(ours, "") for whole numbers of `bits`, or (None, why not). scale, offset: dtypes as in a header."""
    inputs, ours = shape[1], 4 if bits <= 4 else 8
    group = inputs // groups
    if groups > 1 and group % BLOCK:
        return None, f"groups of {group} are no multiple of {BLOCK}"
    if ours == 4 and inputs % BLOCK:
        return None, f"{inputs} inputs are no multiple of {BLOCK}"
    return Storage(ours, None if groups == 1 else group, STORED[scale], offset and STORED[offset]), ""


def groups_of(inputs: int, group: int | None) -> int:
    """How many groups `inputs` make; None, 0 and -1 mean one for all. Raises `Misfit` for groups that do not divide."""
    if not group or group < 0:
        return 1
    if inputs % group:
        raise Misfit(f"{inputs} inputs are no whole groups of {group}, which the configuration says")
    return inputs // group


def order_of(stored: np.ndarray | None, inputs: int, groups: int, ordered: bool) -> np.ndarray | None:
    """`Decoded.group_of` of the stored groups of inputs, None where neighbours make them. ordered: whether the configuration says
    that activations order them. Raises `Misfit` for an order that it does not say, and for groups that are not there.
    """
    if stored is None or (stored == np.arange(inputs) // (inputs // groups)).all():
        return None
    if not ordered:
        raise Misfit("g_idx orders the groups, but the configuration says nothing of it (desc_act, actorder)")
    if stored.min() < 0 or stored.max() >= groups:
        raise Misfit(f"g_idx reaches from {stored.min()} to {stored.max()}, expected 0 to {groups - 1}")
    return stored


def offsets_of(zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Offsets of zero points: -zero * scale, in float32 (exact for scales of 16 bits)."""
    return -zeros.astype(np.float32) * scales.astype(np.float32)


def need(parts: Parts, *words: str) -> None:
    """Raises `Misfit` that names what is missing."""
    missing = [word for word in words if word not in parts]
    if missing:
        raise Misfit(f"holds {', '.join(sorted(parts))} but no {' and no '.join(missing)}")


def two_axes(parts: Parts, word: str) -> tuple[int, int]:
    """The shape of a tensor. Raises `Misfit` for one that is no matrix."""
    if len(parts[word].shape) != 2:
        raise Misfit(f"{word} is {list(parts[word].shape)}, expected two axes")
    outputs, inputs = parts[word].shape
    return outputs, inputs


def expect(parts: Parts, word: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
    """Raises `Misfit` for a tensor of another dtype, or of none of the shapes."""
    entry = parts[word]
    if entry.dtype not in dtypes:
        raise Misfit(f"{word} is {entry.dtype}, expected {' or '.join(dtypes)}")
    if entry.shape not in shapes:
        raise Misfit(f"{word} is {list(entry.shape)}, expected {' or '.join(str(list(shape)) for shape in shapes)}")


def expect_scales(parts: Parts, word: str, *shapes: tuple[int, ...]) -> str:
    """As `expect`, of a floating dtype, which is returned."""
    expect(parts, word, WEIGHT_DTYPES, *shapes)
    return parts[word].dtype


def unpack_bits(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` numbers of a stream of bits, lowest first, that runs through the words of the last axis.

    words: `[..., W]` of 32 bits. Returns uint8 `[..., count]`.
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        numbers = octets
    elif bits in (2, 4):
        numbers = np.empty((*octets.shape, 8 // bits), np.uint8)
        for index in range(8 // bits):
            np.bitwise_and(octets >> (index * bits), (1 << bits) - 1, out=numbers[..., index])
        numbers = numbers.reshape(*octets.shape[:-1], -1)
    else:
        single = np.unpackbits(octets, axis=-1, count=octets.shape[-1] * 8 // bits * bits, bitorder="little")
        numbers = np.packbits(single.reshape(*octets.shape[:-1], -1, bits), axis=-1, bitorder="little")[..., 0]
    return numbers[..., :count]


def unpack_awq(words: np.ndarray) -> np.ndarray:
    """`[R, W]` words of eight nibbles in AWQ's order -> uint8 `[R, 8 W]`."""
    nibbles = unpack_bits(words, 4, 8 * words.shape[-1])
    return nibbles.reshape(len(words), -1, 8)[..., AWQ_ORDER].reshape(len(words), -1)


def words_of(count: int, bits: int) -> int:
    """Words of 32 bits that hold `count` numbers."""
    return -(-count * bits // 32)
