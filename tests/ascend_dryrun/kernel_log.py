"""Which kernels MindSpore launches or builds, read from its own log.

A graph says of each kernel which kind it is when it is built. Operator by operator, MindSpore says which of its functions it
runs; each is one aclnn kernel, but for those that only look at the same memory in another way. Functions of the older kind
("RunOp") build a kernel for each new shape, and say then which kind it is.
"""

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

VARIABLES = {"GLOG_v": "2", "MS_SUBMODULE_LOG_v": "{DEVICE:1,PYNATIVE:0}"}
"""The levels of MindSpore's log that show this; set before it is imported."""
KINDS = {
    "opapi_kernel": "aclnn",  # called in CANN by name, nothing is built
    "acl_kernel": "aclop",  # built by CANN for every new shape
    "host_kernel": "host",  # computed on the host, or a view
    "internal_kernel": "internal",  # inside MindSpore's wheel, where infer_boost is on
    "hccl_kernel": "hccl",
    "cpu_kernel": "host",
    "rt_kernel": "free",  # reshapes, which are not launched
}
VIEWS = frozenset(
    ("as_strided", "broadcast_to", "chunk", "expand_dims", "narrow", "reshape", "select_ext", "slice_ext", "split")
    + ("split_tensor", "split_with_size", "squeeze", "to_device", "to_dtype", "to_other", "transpose", "transpose_ext")
    + ("unstack_ext", "view")
)
"""Functions that launch nothing themselves, beside those that MindSpore calls `..._view`; those that they call may."""
_GRAPH = re.compile(r"GenerateKernelMod\] kernel opname:([^,\s]+), kernel type:(\w+)")
_EAGER = re.compile(r"\(\d+,([0-9a-f]+),.*\] (In|Out) (\w+) function|RunOpFrontend\] RunOp name: (\w+)")


@dataclass(frozen=True)
class Launches:
    """How often each kernel is launched, `{(name, kind): number}`; those that are free are left out."""

    numbers: Counter

    @classmethod
    def none(cls) -> "Launches":
        return cls(Counter())

    def __sub__(self, other: "Launches") -> "Launches":
        return Launches(self.numbers - other.numbers)

    def __add__(self, other: "Launches") -> "Launches":
        return Launches(self.numbers + other.numbers)

    def times(self, factor: int) -> "Launches":
        return Launches(Counter({key: factor * number for key, number in self.numbers.items()}))

    @property
    def total(self) -> int:
        """Launches on the device: kernels on the host are none."""
        return sum(number for (_, kind), number in self.numbers.items() if kind != "host")

    @property
    def kinds(self) -> dict[str, int]:
        found = Counter(dict.fromkeys(("aclnn", "aclop", "host", "internal", "hccl"), 0))
        for (_, kind), number in self.numbers.items():
            found[kind] += number
        return dict(found)

    @property
    def names(self) -> dict[str, dict[str, int]]:
        """`{kind: {name: number}}`."""
        found = defaultdict(dict)
        for (name, kind), number in sorted(self.numbers.items()):
            found[kind][name] = number
        return dict(found)


class KernelLog:
    """Sends this process's stderr to a file, where MindSpore's log then is, and reads it; begin before MindSpore is imported."""

    def __init__(self, path: Path):
        os.environ.update(VARIABLES)
        self.path = path
        self.place = 0
        self.kinds = {}  # of operators of the older kind, by name
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), 2)

    def skip(self) -> None:
        """What has happened so far is not counted."""
        self._new()

    def built(self) -> Launches:
        """The kernels of the graphs that were compiled since the last call. Nothing else may have been computed."""
        found = [(name, KINDS.get(kind, kind)) for name, kind in _GRAPH.findall(self._new())]
        return Launches(Counter(key for key in found if key[1] != "free"))

    def launched(self) -> Launches:
        """What was launched operator by operator since the last call. No graph may have been compiled."""
        text, numbers, inside = self._new(), Counter(), defaultdict(list)
        for thread, edge, function, operator in _EAGER.findall(text):
            if operator:
                if operator in self.kinds:  # others are worked out by MindSpore itself
                    numbers[operator, self.kinds[operator]] += 1
            elif edge == "Out":
                del inside[thread][-1:]
            else:
                launches = not (function in VIEWS or function.endswith("_view"))
                if launches and not any(inside[thread]):  # a function that launches says nothing new by what it calls
                    numbers[function, "aclnn"] += 1
                inside[thread].append(launches)
        return Launches(numbers)

    def _new(self) -> str:
        text = self._text()
        self.kinds.update((name, KINDS.get(kind, kind)) for name, kind in _GRAPH.findall(text))
        return text

    def _text(self) -> str:
        import mindspore

        mindspore.runtime.synchronize()
        with self.path.open(errors="replace") as file:
            file.seek(self.place)
            text = file.read()
            self.place = file.tell()
        return text
