"""Tables split by rows (embeddings): a lookup sends the rows that are asked for, never the table."""

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from ..modeling import ops


class SplitTable:
    """What `Embedding.fetch` becomes: each rank looks up the ids of its own rows, and a sum brings them together.

    All other ranks add zeros, so the rows are exactly those of the table. first: the first row that this rank holds.
    """

    def __init__(self, first, all_reduce):
        self.first = first
        self.all_reduce = all_reduce

    def __call__(self, ids, weight):
        """ids `[...]` -> places int32 `[...]` into the rows `[N, D]` that were fetched."""
        rows = self.all_reduce(ops.embedding_part(ids.reshape(-1), weight, self.first))  # [N, D]
        return _numbered(ids.shape), rows


def _numbered(shape):
    count = int(np.prod(shape))
    return Tensor(np.arange(count).reshape(shape), mstype.int32)
