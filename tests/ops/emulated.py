"""Kernels that were compiled for aarch64, called from here: each library runs in a process of its own under qemu-user.

    CXX=aarch64-linux-gnu-g++ MS_OMNI_MARCH=armv8-a python -m pytest -p tests.ops.emulated tests/ops/test_exact.py
    CXX=... python -m tests.ops.emulated tests.ops.outputs          any other program of Python

As a plugin of pytest it lets the tests of the kernels run on such a build as they are, without their graphs: `ctypes.CDLL`
of a library for aarch64 is a `Library`, and `entries.Custom` stands in the place of `ops.Custom`. qemu computes what the
processor would, bit by bit, but has the memory model of this machine: an order that only ARM lets go is not seen.
"""

import ctypes
import functools
import importlib
import os
import platform
import runpy
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from . import entries

SYSROOT = "/usr/aarch64-linux-gnu"
MACHINE_AARCH64 = 183  # in the header of an ELF file
TYPES = {b"float32": 4, b"int32": 4, b"int64": 8, b"float16": 2, b"bfloat16": 2, b"float64": 8, b"int8": 1, b"uint8": 1}
EXISTS, NUMBER, TEXT = range(3)  # what is wanted of a function
_CDLL = ctypes.CDLL
sizes = {}  # bytes behind the addresses that tables hold, of this process


def missing() -> str | None:
    """What keeps libraries for aarch64 from being run here, or None."""
    if platform.machine() == "aarch64":
        return "this processor is one itself"
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64-static"):
        if not shutil.which(tool):
            return f"{tool} is not here"
    return None


@functools.cache
def driver() -> str:
    """Path of the program `emulated.cpp`, which lives as long as this process."""
    folder = tempfile.TemporaryDirectory()
    driver.folder = folder  # removed when this process ends
    path, source = f"{folder.name}/emulated", Path(__file__).with_suffix(".cpp")
    subprocess.run(["aarch64-linux-gnu-g++", "-O1", "-std=c++17", str(source), "-ldl", "-pthread", "-o", path], check=True)
    return path


class Library:
    """In the place of `ctypes.CDLL`."""

    def __init__(self, path: str):
        self._name = path
        emulator = shlex.split(os.environ.get("MS_OMNI_EMULATOR") or "qemu-aarch64-static")
        command = [*emulator, "-L", SYSROOT, driver(), path]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._functions = {}

    def __getattr__(self, name):
        if name not in self._functions:
            if not self._ask(name, EXISTS):
                raise AttributeError(f"{self._name} has no {name}")
            self._functions[name] = Function(self, name)
        return self._functions[name]

    def run(self, name, wanted, blocks=(), links=(), arguments=()):
        """(what the function returned, the blocks afterwards); arguments: numbers, or blocks as ("block", place)."""
        numbers = [(1, x[1]) if isinstance(x, tuple) else (0, x) for x in arguments]
        request = [_int64s(len(name)), name.encode(), _int64s(wanted, len(blocks))]
        for block in blocks:
            request += [_int64s(len(block)), block]
        request += [_int64s(len(links), *(x for link in links for x in link))]
        request += [_int64s(len(numbers), *(x for pair in numbers for x in pair))]
        self._process.stdin.write(b"".join(request))
        self._process.stdin.flush()
        if wanted == TEXT:
            size = self._number(name)
            return (None if size < 0 else self._read(name, size)), []
        return self._number(name), [self._read(name, len(block)) for block in blocks]

    def _ask(self, name, wanted):
        return self.run(name, wanted)[0]

    def _number(self, name):
        return struct.unpack("<q", self._read(name, 8))[0]

    def _read(self, name, size):
        received = self._process.stdout.read(size)
        if len(received) < size:
            raise RuntimeError(f"{name} of {self._name} ended its process with {self._process.wait()}: {received!r}")
        return received

    def __del__(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Request:
    """Memory of this process that goes to the other one and comes back."""

    def __init__(self):
        self.blocks, self.links, self.slots, self.own = [], [], {}, []

    def block(self, data: bytes) -> tuple:
        self.blocks.append(data)
        return "block", len(self.blocks) - 1

    def memory(self, address: int, size: int) -> tuple:
        """The block of memory that begins here; once, however often it is named. Addresses in it (a table) as well."""
        if (address, size) not in self.slots:
            self.slots[address, size] = slot = self.block(ctypes.string_at(address, size) if size else b"")
            self.own.append((slot[1], address))
        return self.slots[address, size]

    def table(self, address: int, size: int) -> tuple:
        """Memory of int64, some of them addresses that are known."""
        slot = self.memory(address, size)
        for at, number in enumerate(struct.unpack(f"<{size // 8}q", self.blocks[slot[1]])):
            if number in sizes:
                self.links.append((slot[1], 8 * at, self.memory(number, sizes[number])[1]))
        return slot

    def pointers(self, blocks) -> tuple:
        slot = self.block(bytes(8 * len(blocks)))
        self.links += [(slot[1], 8 * at, block[1]) for at, block in enumerate(blocks)]
        return slot

    def run(self, library, name, arguments):
        returned, after = library.run(name, NUMBER, self.blocks, self.links, arguments)
        linked = {block for block, *_ in self.links}
        for slot, address in self.own:
            if slot not in linked and after[slot] != self.blocks[slot]:
                ctypes.memmove(address, after[slot], len(after[slot]))
        return returned


class Function:
    """A function of the library, with the arguments that ctypes would pass."""

    def __init__(self, library, name):
        self.library, self.name, self.restype = library, name, ctypes.c_int

    def __call__(self, *arguments):
        if self.restype is ctypes.c_char_p:
            return self.library.run(self.name, TEXT)[0]
        request = Request()
        if self.name.endswith("_use_threads"):
            return request.run(self.library, self.name, arguments)
        convert = self._turn if "_turn_" in self.name else self._results if self.name.endswith("_results") else self._kernel
        returned = request.run(self.library, self.name, convert(request, *arguments))
        return self.restype and self.restype(returned & (1 << 64) - 1).value

    def _kernel(self, request, count, data, ranks, shapes, types, *_):
        arrays = []
        for address, rank, shape, kind in zip(data, ranks, shapes, types):
            size = TYPES[kind]
            for length in (ctypes.c_int64 * rank).from_address(shape) if rank else ():
                size *= length
            arrays.append((request.table if kind == b"int64" else request.memory)(address or 0, size))
        names = request.pointers([request.block(kind + b"\0") for kind in types])
        return count, request.pointers(arrays), *self._shapes(request, ranks, shapes), names, 0, 0

    def _results(self, request, count, ranks, shapes, to):
        return count, *self._shapes(request, ranks, shapes), request.memory(ctypes.addressof(to), ctypes.sizeof(to))

    def _shapes(self, request, ranks, shapes):
        lengths = [request.block(ctypes.string_at(shape, 8 * rank)) for rank, shape in zip(ranks, shapes)]
        return request.block(bytes(ranks)), request.pointers(lengths)

    def _turn(self, request, source, source_step, target, target_step, rows, columns):
        width = 2 if "bfloat16" in self.name else 4
        read, written = width * ((rows - 1) * source_step + columns), 4 * ((columns - 1) * target_step + rows)
        return request.memory(source, read), source_step, request.memory(target, written), target_step, rows, columns


def _int64s(*numbers):
    return struct.pack(f"<{len(numbers)}q", *numbers)


class CDLL(ctypes.CDLL):
    """`ctypes.CDLL`, but a `Library` where the file is one for aarch64."""

    def __new__(cls, name=None, *arguments, **options):
        if name and os.path.isfile(name):
            with open(name, "rb") as file:
                if struct.unpack("<4s14xH", file.read(20)) == (b"\x7fELF", MACHINE_AARCH64):
                    return _library(str(name))
        return _CDLL(name, *arguments, **options)


@functools.cache
def _library(path):
    return Library(path)


def install() -> None:
    """From now on `ctypes.CDLL` takes libraries for aarch64 too. Raises `OSError` where they cannot be run."""
    if missing():
        raise OSError(missing())
    ctypes.CDLL = CDLL


def pytest_configure():
    from mindspore import ops

    install()
    ops.Custom = entries.Custom
    from ms_omni.modeling.ops import cpu_fused, cpu_table

    address = cpu_table.address

    def known(part):
        at = address(part)
        if at:
            sizes[at] = part.nbytes
        return at

    cpu_table.address = cpu_fused.address = known


if __name__ == "__main__":
    importlib.import_module("tests.ops.emulated").pytest_configure()
    runpy.run_module(sys.argv[1], run_name="__main__")
