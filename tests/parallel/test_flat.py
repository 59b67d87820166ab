"""Equal runs of a parameter: together they are all of it, and nothing but the end is padded."""

import numpy as np
import pytest

from ms_omni.parallel.plan import Flat

SHAPES = [(8, 6), (7, 5), (1, 9), (3,), (1,), (6, 4, 2), (5, 3, 2, 2), (2, 1, 7)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by_rows", [False, True])
def test_runs_of_all_ranks_are_the_parameter(shape, ranks, by_rows):
    whole = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    runs = [Flat(by_rows).slice(shape, rank, ranks) for rank in range(ranks)]
    parts = [run.cut(whole) for run in runs]
    assert all(part.shape == run.local_shape for part, run in zip(parts, runs))
    assert sum(run.stop - run.start for run in runs) == whole.size
    assert (runs[0].join(np.concatenate(parts)) == whole).all()
    assert (runs[0].join(np.concatenate([part.reshape(-1) for part in parts])) == whole).all()
    unit = int(np.prod(shape[1:])) if by_rows else 1
    assert runs[0].length * ranks - whole.size < unit * ranks


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_table_keeps_its_rows_whole(shape, ranks):
    run = Flat(by_rows=True).slice(shape, ranks - 1, ranks)
    assert run.in_rows and run.start % run.row == 0 and run.local_shape[1:] == shape[1:]


def test_rows_where_the_first_axis_divides():
    """As in mindone's own slices."""
    assert Flat().slice((8, 6), 1, 2).local_shape == (4, 6)
    assert Flat().slice((7, 5), 1, 2).local_shape == (18,)
