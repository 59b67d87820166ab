"""What a kernel takes besides tensors: structs of C++, filled by the names of their members, as one array of int64."""

import ctypes
from typing import Any

import numpy as np

from ...errors import InputError
from ...quantised import BLOCK, Quantised

KINDS = ("float32", "bfloat16", "float16", "int8", "uint8")
"""Of numbers in a stored matrix: `Kind` in stored.h by its index."""
SCALES = KINDS[:3]


class Struct:
    """A struct of C++ as numpy has it, with the members that its library says (`NAMES` in aot.h); a member may be such a struct.
    A call makes one, of the values of all members by name.
    """

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.name = name
        function = getattr(library, f"ms_omni_members_of_{name}")
        function.restype = ctypes.c_char_p
        members = [member.rsplit(" ", 1) for member in function().decode().split(";")[:-1]]
        self.kinds = {name: kind for kind, name in members}
        self.dtype = np.dtype([(name, _dtype(library, kind)) for name, kind in self.kinds.items()])

    def __call__(self, **values: Any) -> np.ndarray:
        """`[1]` of `dtype`."""
        if values.keys() != self.kinds.keys():
            wrong = sorted(values.keys() ^ self.kinds.keys())
            raise TypeError(f"the struct {self.name} in C++ and its values in Python differ in {', '.join(wrong)}")
        return np.array([tuple(values[name] for name in self.kinds)], self.dtype)


def _dtype(library, kind):
    if kind in ("i64", "double"):
        return np.dtype(np.float64 if kind == "double" else np.int64)
    return np.dtype(np.int64) if kind.endswith("*") else Struct(library, kind).dtype


def _offset(dtype, name):
    return (dtype.fields or {})[name][1]


def parts_of(weight: Any) -> dict[str, Any]:
    """The tensors of a weight by the name that `Matrix` in stored.h has for them: a tensor's, those of a `Quantised`, or none of None."""
    parts = dict(zip(("numbers", "scales", "offsets"), weight)) if isinstance(weight, Quantised) else {"numbers": weight}
    return {name: part for name, part in parts.items() if part is not None}


def described(weight: Any) -> tuple:
    """The members of `Matrix` for a weight (see `parts_of`), with 0 for addresses."""
    kinds = {name: KINDS.index(kind_of(part)) for name, part in parts_of(weight).items()}
    group = weight.group if isinstance(weight, Quantised) else 0
    return 0, 0, 0, kinds.get("numbers", 0), kinds.get("scales", 0), kinds.get("offsets", 0), group


def kind_of(part: Any) -> str:
    """The type of a tensor's or an array's numbers by name."""
    return str(part.dtype).lower()


def check_matrix(what: str, weight: Any, shape: tuple[int, ...]) -> None:
    """Raises `InputError` for a weight that is no matrix of this shape `[..., N, K]` in a form that the kernels read: addresses say
    none of it. what: whose it is, and its name.
    """
    if not isinstance(weight, Quantised):
        if tuple(weight.shape) != shape or kind_of(weight) not in KINDS[:2]:
            raise InputError(f"{what} is {kind_of(weight)} {list(weight.shape)}, expected float32 or bfloat16 {list(shape)}")
        return
    codes, scales, offsets = weight
    if kind_of(codes) not in KINDS[3:] or weight.shape != shape:
        raise InputError(
            f"{what} has codes {kind_of(codes)} {list(codes.shape)}, expected int8 {list(shape)}, or uint8 of half as many"
        )
    *outer, inputs = shape
    whole = tuple(scales.shape[:-1]) == tuple(outer) and scales.shape[-1] > 0 and inputs % scales.shape[-1] == 0
    if kind_of(scales) not in SCALES or not whole or (weight.bits == 4 and weight.group % BLOCK):
        raise InputError(
            f"{what} has scales {kind_of(scales)} {list(scales.shape)}, expected one of {', '.join(SCALES)} for each row of {list(outer)} "
            f"and group of its {inputs} inputs" + (f", with groups of a multiple of {BLOCK}" if weight.bits == 4 else "")
        )
    if offsets is not None and (kind_of(offsets) not in SCALES or offsets.shape != scales.shape):
        raise InputError(
            f"{what} has offsets {kind_of(offsets)} {list(offsets.shape)}, expected them as the scales {list(scales.shape)}"
        )


def address(part: Any) -> int:
    """Where the numbers of a tensor or an array begin, 0 for None. Whoever takes it keeps the part alive."""
    if part is None:
        return 0
    return part.ctypes.data if type(part) is np.ndarray else part.data_ptr()


def table(*parts: Any) -> np.ndarray:
    """Structs and addresses one behind the other, int64."""
    return np.concatenate([np.asarray(part).view(np.int64) for part in parts])


class Template:
    """A table of structs as it is at every call but for the addresses of parameters, which are filled in anew: one that was given other
    data is read where it is then.
    """

    def __init__(self) -> None:
        self.numbers, self.parameters, self.positions = np.zeros(0, np.int64), [], []

    def add(self, struct: Struct, weights: dict[str, Any], **values: Any) -> None:
        """One more struct, of the members that are weights (`Matrix` or a pointer; see `parts_of`) and of the others."""
        matrices = {name for name in weights if struct.kinds[name] == "Matrix"}
        members = {name: described(weight) if name in matrices else 0 for name, weight in weights.items()}
        start = self.numbers.nbytes
        self.numbers = table(self.numbers, struct(**members, **values))
        for name, weight in weights.items():
            offset = _offset(struct.dtype, name)
            for part, parameter in parts_of(weight).items():
                within = _offset(struct.dtype[name], part) if name in matrices else 0
                self.positions.append((start + offset + within) // self.numbers.itemsize)
                self.parameters.append(parameter)

    def table(self) -> np.ndarray:
        """int64, with the addresses as they are now."""
        filled = self.numbers.copy()
        filled[self.positions] = [address(parameter) for parameter in self.parameters]
        return filled
