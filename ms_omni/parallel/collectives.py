"""The only place that communicates: collectives over all ranks, and what they have moved so far.

MindSpore's CPU backend knows AllReduce, AllGather and Broadcast, over all ranks only, and the last one moves float32 and
int32 alone; the same calls run on HCCL. Arrays of the host travel as int32 words, whatever their dtype.
"""

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from .mesh import Mesh, Traffic


class AllReduce(nn.Cell):
    """Sums a tensor over all ranks; what a block's `reduce` is under a plan, also inside a compiled graph."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__(auto_prefix=False)
        self.traffic = traffic
        self.op = ops.AllReduce()

    def __call__(self, x: Tensor) -> Tensor:
        self.count(x)  # only outside a graph: the compiler reads `construct`, and who calls the graph counts
        return super().__call__(x)

    def count(self, x: Tensor) -> None:
        """Notes a sum of tensors like x."""
        self.traffic.add("all_reduce", _nbytes(x))

    def construct(self, x: Tensor) -> Tensor:
        return self.op(x)


class AllGather(nn.Cell):
    """Puts the tensors of all ranks, equal in shape, behind one another along the first axis."""

    def __init__(self, traffic: Traffic, size: int) -> None:
        super().__init__(auto_prefix=False)
        self.traffic = traffic
        self.size = size
        self.op = ops.AllGather()

    def __call__(self, x: Tensor) -> Tensor:
        self.traffic.add("all_gather", self.size * _nbytes(x))
        return super().__call__(x)

    def construct(self, x: Tensor) -> Tensor:
        return self.op(x)


class Collectives:
    """The collectives of one process among `mesh.size`; with one process each of them is the identity, uncounted.

    traffic: what went through, also through the cells that `reducer` and `gatherer` make.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.rank, self.size = mesh.rank, mesh.size
        self.traffic = Traffic()
        self._broadcasts: dict[int, Any] = {}
        if self.size > 1:
            self.all_reduce = self.reducer()  # pyright: ignore[reportAttributeAccessIssue]
            self.all_gather = self.gatherer()  # pyright: ignore[reportAttributeAccessIssue]

    def reducer(self) -> AllReduce:
        """A cell for the `reduce` of a block."""
        return AllReduce(self.traffic)

    def gatherer(self) -> AllGather:
        """A cell that gathers along the first axis."""
        return AllGather(self.traffic, self.size)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks of a float tensor."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Tensors `[n, ...]` of all ranks, equal in shape -> `[size * n, ...]`."""
        return x

    def broadcast(self, x: Tensor, root: int = 0) -> Tensor:
        """The float32 or int32 tensor of rank `root`; the others pass one of the same shape and dtype."""
        if self.size == 1:
            return x
        if root not in self._broadcasts:
            self._broadcasts[root] = ops.Broadcast(root)
        self.traffic.add("broadcast", _nbytes(x))
        return self._broadcasts[root]((x,))[0]

    # -- arrays of the host ------------------------------------------------------------------------------------------

    def gather_array(self, array: np.ndarray) -> np.ndarray:
        """Arrays of all ranks, equal in shape and dtype -> `[size, ...]`."""
        array = np.ascontiguousarray(array)
        words = self.all_gather(Tensor(_words(array))).asnumpy()
        return _rows(words.reshape(self.size, -1), array)

    def broadcast_array(self, array: np.ndarray, root: int = 0) -> np.ndarray:
        """The array of rank `root`; the others pass one of the same shape and dtype."""
        array = np.ascontiguousarray(array)
        return _rows(self.broadcast(Tensor(_words(array)), root).asnumpy()[None], array)[0]

    def broadcast_bytes(self, data: bytes | None, root: int = 0) -> bytes:
        """The bytes of rank `root`, of any length; the others pass None. Two broadcasts: length and content."""
        length = int(self.broadcast_array(np.array([len(data or b"")], np.int64), root)[0])
        content = np.frombuffer((data or b"") if self.rank == root else bytes(length), np.uint8)
        return self.broadcast_array(content, root).tobytes() if length else b""

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, of any length: a list. Two collectives: lengths and contents."""
        lengths = self.gather_array(np.array([len(data)], np.int64)).reshape(-1).tolist()
        padded = np.frombuffer(data.ljust(max(lengths), b"\0"), np.uint8)
        return [row[:length].tobytes() for row, length in zip(self.gather_array(padded), lengths)]


def _nbytes(x: Tensor) -> int:
    return x.size * x.itemsize


def _words(array: np.ndarray) -> np.ndarray:
    """The bytes of an array as int32, padded with zeros to whole words, at least one."""
    data = array.tobytes()
    return np.frombuffer(data.ljust(max(-(-len(data) // 4) * 4, 4), b"\0"), np.int32)


def _rows(words: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Rows of words back as arrays shaped and typed as `like`: `[n, ...]`."""
    rows = np.ascontiguousarray(words).view(np.uint8)[:, : like.nbytes]
    return np.ascontiguousarray(rows).view(like.dtype).reshape(len(words), *like.shape)
