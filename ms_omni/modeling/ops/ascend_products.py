"""Products with matrices as they are stored, each a cell with parameters in the layout of its kernel, packed on the host.

    numbers                            Dense    [out, in]                      Grouped   [E, in, out]
    codes of 8 bits, scale per output           [out, in], scales [out]                  [E, in, out], scales [E, out]
    codes of 4 bits, scale per output           [in, out/2], scales [out]                [E, in, out/2], scales [E, out]
    codes of 4 bits in groups                   [in, out/2], scales [in/g, out]          [E, in, out/2], scales [E, in/g, out]
    codes of 8 bits in groups                   [in, out], scales [in/g, out]            (none)

Codes that no kernel takes (`ms_omni/ascend.py`) become numbers here, with a warning. Several matrices on the same inputs are one product.
What is stored as codes stays on the host.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, mint, nn

from ...ascend import MOST, refusal
from ...errors import warn_once
from ...quantised import Quantised, Storage
from . import ascend_kernels as kernels
from . import ascend_weights as layouts
from .ascend_weights import Packed, array_type, rows

BITS = frozenset({8, 4})
"""Bits of codes that are multiplied with by kernels."""
PIECE = 256  # outputs of a piece of a product are a multiple of this


class Product(nn.Cell):
    """packs: the packed weights, whose sources are checked in `up_to_date`."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.packs = []

    def __call__(self, *inputs: Any) -> Any:
        return self.construct(*inputs)  # no graph of its own, whatever mode MindSpore is in

    def packed(self, make: Callable[..., np.ndarray], *sources: Parameter | None, dtype: ms.Type | None = None) -> Parameter:
        """A Parameter packed from others."""
        self.packs.append(Packed(make, *sources, dtype=dtype))
        return self.packs[-1].current()

    def bias_of(self, biases: Sequence[Parameter | None]) -> Parameter | None:
        if all(bias is None for bias in biases):
            return None
        return biases[0] if len(biases) == 1 else self.packed(rows, *biases)

    def up_to_date(self) -> "Product":
        """Itself, with the current numbers of its sources."""
        for packed in self.packs:
            packed.current()
        return self


class Dense(Product):
    """x `[N, in]` -> `[N, out]` by numbers in dtype; the matrices, Parameters or `Quantised`, are `[out, in]`."""

    def __init__(self, weights: Sequence[Parameter | Quantised], biases: Sequence[Parameter | None], dtype: ms.Type) -> None:
        super().__init__()
        kinds = [isinstance(weight, tuple) for weight in weights]
        flat = [part for weight in weights for part in (weight if isinstance(weight, tuple) else (weight,))]
        first: Any = weights[0]
        as_it_is = kinds == [False] and first.dtype == dtype
        self.weight = first if as_it_is else self.packed(lambda *parts: _numbers(kinds, parts, dtype), *flat)
        self.bias = self.bias_of(biases)

    def construct(self, x: Tensor) -> Tensor:
        return kernels.dense(x, self.weight, self.bias)


class CodedDense(Product):
    """The same by codes, of which all matrices have as many bits and groups as large; in pieces where a kernel does not support so many outputs."""

    def __init__(self, weights: Sequence[Quantised], biases: Sequence[Parameter | None], dtype: ms.Type) -> None:
        super().__init__()
        bits, outputs, groups = weights[0].bits, sum(weight.shape[0] for weight in weights), weights[0].scales.shape[-1]
        self.group = 0 if groups == 1 else weights[0].group
        self.outputs_first = bits == 8 and groups == 1
        size = -(-outputs // -(-outputs // MOST))
        starts = range(0, outputs, outputs if size == outputs else -(-size // PIECE) * PIECE)
        fields = [[weight[field] for weight in weights] for field in range(3)]
        pieces = [slice(start, min(start + starts.step, outputs)) for start in starts]
        self.codes = ParameterTuple([self._codes(fields[0], piece, bits) for piece in pieces])
        self.scales = ParameterTuple([self.packed(_scales(piece, dtype), *fields[1]) for piece in pieces])
        self.offsets = (None,) * len(pieces)
        if any(offsets is not None for offsets in fields[2]):
            self.offsets = ParameterTuple([self.packed(_offsets(piece, dtype), *fields[1], *fields[2]) for piece in pieces])
        self.bias = self.bias_of(biases)

    def _codes(self, codes, piece, bits):
        if self.outputs_first:
            return self.packed(lambda *parts: rows(*parts)[piece], *codes)
        if bits == 8:
            return self.packed(lambda *parts: layouts.across(rows(*parts)[piece]), *codes)
        return self.packed(lambda *parts: layouts.pairs_of_outputs(rows(*parts)[piece]), *codes, dtype=ms.qint4x2)

    def construct(self, x: Tensor) -> Tensor:
        outputs = ()
        for index in range(len(self.codes)):
            codes, scales, offsets = self.codes[index], self.scales[index], self.offsets[index]
            outputs = (*outputs, kernels.dense_of_codes(x, codes, scales, offsets, self.outputs_first, self.group))
        y = outputs[0] if len(outputs) == 1 else mint.cat(outputs, -1)
        return y if self.bias is None else y + self.bias


class CodedTable(Product):
    """ids `[...]` -> rows of a `Quantised` `[V, D]` with a scale per row, in dtype."""

    def __init__(self, weight: Quantised, dtype: ms.Type) -> None:
        super().__init__()
        self.dtype = dtype
        self.codes = self.packed(lambda codes: codes, weight.codes)
        self.scales, self.offsets = (
            None if part is None else self.packed(lambda part: part.astype(array_type(dtype)), part) for part in weight[1:]
        )

    def construct(self, ids: Tensor) -> Tensor:
        rows = kernels.embedding(ids, self.codes).astype(self.dtype) * kernels.embedding(ids, self.scales)
        return rows if self.offsets is None else rows + kernels.embedding(ids, self.offsets)


class Table(Product):
    """The same by numbers."""

    def __init__(self, weight: Quantised, dtype: ms.Type) -> None:
        super().__init__()
        self.weight = self.packed(lambda *parts: layouts.numbers(*parts, dtype=array_type(dtype)), *weight)

    def construct(self, ids: Tensor) -> Tensor:
        return kernels.embedding(ids, self.weight)


class Grouped(Product):
    """Rows `[N, in]` in groups of counts int64 `[E]` -> `[N, out]` by numbers in dtype, of a Parameter `[E, in, out]` or of a `Quantised`."""

    def __init__(self, weight: Parameter | Quantised, dtype: ms.Type) -> None:
        super().__init__()
        if isinstance(weight, tuple):
            self.weight = self.packed(lambda *parts: layouts.numbers(*parts, dtype=array_type(dtype)), *weight)
        elif weight.dtype != dtype:
            self.weight = self.packed(lambda part: part.astype(array_type(dtype)), weight)
        else:
            self.weight = weight

    def construct(self, x: Tensor, counts: Tensor) -> Tensor:
        return kernels.grouped_matmul(x, self.weight, counts)


class CodedGrouped(Product):
    """The same by codes."""

    def __init__(self, weight: Quantised, dtype: ms.Type) -> None:
        super().__init__()
        make, kind = (layouts.across, None) if weight.bits == 8 else (layouts.pairs_of_outputs, ms.qint4x2)
        self.codes = self.packed(lambda codes: layouts.of_each(make, codes), weight.codes, dtype=kind)
        self.scales = self.packed(_scales(slice(None), dtype), weight.scales)
        if weight.offsets is None:
            self.offsets = _zeros(tuple(self.scales.shape), dtype)
        else:
            self.offsets = self.packed(_offsets(slice(None), dtype), weight.scales, weight.offsets)

    def construct(self, x: Tensor, counts: Tensor) -> Tensor:
        return kernels.grouped_matmul_of_codes(x, self.codes, self.scales, self.offsets, counts)


def dense(
    weights: Sequence[Parameter | Quantised], biases: Sequence[Parameter | None], dtype: ms.Type, bits: frozenset[int] = BITS
) -> Product:
    """The product with matrices below one another, Parameters or `Quantised`. biases: one of each, or None; bits: see `BITS`."""
    make = CodedDense if _coded(weights, dtype, bits) else Dense
    return _once((*weights, *biases), dtype, make, lambda: make(weights, biases, dtype))


def grouped(weight: Parameter | Quantised, dtype: ms.Type, bits: frozenset[int] = BITS) -> Product:
    """The product of groups of rows with stacked experts. bits: see `BITS`."""
    make = CodedGrouped if _coded((weight,), dtype, bits) else Grouped
    return _once((weight,), dtype, make, lambda: make(weight, dtype))


def table(weight: Quantised, dtype: ms.Type) -> Product:
    """The rows of a `Quantised`."""
    make = CodedTable if weight.bits == 8 and weight.group == weight.shape[-1] else Table
    return _once((weight,), dtype, make, lambda: make(weight, dtype))


def _once(parts, dtype, kind, make):
    """A product with codes, up to date. It is created once for the same codes, as its packed weights take memory of the card."""
    flat = [part for whole in parts for part in (whole if isinstance(whole, tuple) else (whole,))]
    codes = next((part.codes for part in parts if isinstance(part, Quantised)), None)
    if codes is None:
        return make()
    products, key = getattr(codes, "products", {}), (kind, dtype, *map(id, flat))
    if key not in products:
        products[key] = make()
        codes.products = products
    return products[key].up_to_date()


def _coded(weights, dtype, bits):
    """Whether kernels take these as codes; warns if not, and if scales are rounded."""
    alike = {(weight.bits, weight.group) if isinstance(weight, Quantised) else None for weight in weights}
    if len(alike) > 1 or None in alike or weights[0].bits not in bits:
        return False
    first, computed = weights[0], str(dtype).lower()
    shape = *first.shape[:-2], sum(weight.shape[-2] for weight in weights), first.shape[-1]
    offset = computed if any(weight.offsets is not None for weight in weights) else None
    reason = refusal(Storage(first.bits, first.group, computed, offset), shape)
    if reason is not None:
        warn_once(f"weights {list(shape)} in {first.bits} bits become {computed} on this device: {reason}")
        return False
    stored = {str(weight.scales.dtype).lower() for weight in weights} - {computed, "bfloat16"}
    if stored and dtype != ms.float32:
        warn_once(
            f"scales in {stored.pop()} become {computed} on this device, where its kernels want that: off by 0.4 % at most"
        )
    return True


def _numbers(kinds, parts, dtype):
    """One below the other, of the parts of matrices one behind the other; kinds: which ones are codes."""
    parts, kind = iter(parts), array_type(dtype)
    return rows(*(
        layouts.numbers(next(parts), next(parts), next(parts), kind) if coded else next(parts).astype(kind) for coded in kinds
    ))  # fmt: skip


def _scales(piece, dtype):
    def make(*scales):
        together = scales[0] if len(scales) == 1 else rows(*scales)
        return layouts.outputs_last(together[..., piece, :], array_type(dtype))

    return make


def _offsets(piece, dtype):
    def make(*parts):
        count = len(parts) // 2
        terms = [layouts.in_scales(offsets, scales) for scales, offsets in zip(parts[:count], parts[count:])]
        together = terms[0] if count == 1 else rows(*terms)
        return layouts.outputs_last(together[..., piece, :], array_type(dtype))

    return make


_shared: dict = {}
_names = itertools.count()


def _zeros(shape, dtype):
    """One Parameter for all stacks of a shape."""
    if (shape, dtype) not in _shared:
        zeros = Tensor.from_numpy(np.zeros(shape, array_type(dtype)))
        _shared[shape, dtype] = Parameter(zeros, name=f"no_offsets{next(_names)}", requires_grad=False)
    return _shared[shape, dtype]
