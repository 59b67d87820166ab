"""What a kernel takes besides tensors: structs of C++, filled by the names of their members, as one array of int64."""

import ctypes

import numpy as np


class Struct:
    """A struct of C++ as numpy has it, with the members that its library says (`NAMES` in aot.h). A call makes one, of the
    values of all members by name.
    """

    def __init__(self, library: ctypes.CDLL, name: str):
        self.name = name
        function = getattr(library, f"ms_omni_members_of_{name}")
        function.restype = ctypes.c_char_p
        members = [member.rsplit(" ", 1) for member in function().decode().split(";")[:-1]]
        self.dtype = np.dtype([(name, np.float64 if kind == "double" else np.int64) for kind, name in members])

    def __call__(self, **values) -> np.ndarray:
        """`[1]` of `dtype`."""
        if values.keys() != self.dtype.fields.keys():
            wrong = sorted(values.keys() ^ self.dtype.fields.keys())
            raise TypeError(f"the struct {self.name} in C++ and its values in Python differ in {', '.join(wrong)}")
        return np.array([tuple(values[name] for name in self.dtype.names)], self.dtype)


def address(part) -> int:
    """Where the numbers of a tensor or an array begin, 0 for None. Whoever takes it keeps the part alive."""
    if part is None:
        return 0
    return part.ctypes.data if type(part) is np.ndarray else part.data_ptr()


def table(*parts) -> np.ndarray:
    """Structs and addresses one behind the other, int64."""
    return np.concatenate([np.asarray(part).view(np.int64) for part in parts])
