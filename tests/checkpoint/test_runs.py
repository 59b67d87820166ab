"""Reading runs of elements: each rank gets exactly its part, and reads no more than that."""

import numpy as np
import pytest

from ms_omni.checkpoint import CheckpointReader, convert
from ms_omni.checkpoint.matching import plan_loading
from ms_omni.checkpoint.parameters import read_parameter, read_run
from ms_omni.parallel.plan import Flat
from tests.checkpoint.test_load import full


class Watched:
    """A reader that remembers which tensors were looked at."""

    def __init__(self, folder):
        self.reader, self.seen = CheckpointReader(folder), set()

    def array(self, name):
        self.seen.add(name)
        return self.reader.array(name)

    def release(self, name):
        self.reader.release(name)


@pytest.fixture(scope="module", params=["published", "converted"])
def folder(request, sharded, tmp_path_factory):
    if request.param == "published":
        return sharded
    target = tmp_path_factory.mktemp("runs") / "converted"
    convert(sharded, target, progress=False)
    return target


@pytest.fixture(scope="module")
def fills(folder, sharded):
    shapes = {name: tuple(value.shape) for name, value in full(sharded).parameters_and_names()}
    return plan_loading(shapes, CheckpointReader(folder))[0]


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_the_runs_of_all_ranks_are_what_one_process_reads(folder, fills, ranks):
    reader = CheckpointReader(folder)
    for fill in fills:
        whole = read_parameter(reader, fill, np.dtype(np.float32))
        for rank in range(ranks):
            run = Flat(by_rows="embed" in fill.parameter).slice(fill.shape, rank, ranks)
            np.testing.assert_array_equal(read_run(reader, fill, np.dtype(np.float32), run), run.cut(whole))


def test_experts_of_other_ranks_are_not_looked_at(sharded):
    shapes = {name: tuple(value.shape) for name, value in full(sharded).parameters_and_names()}
    name = "thinker.model.layers.2.mlp.experts.down"
    (fill,) = (fill for fill in plan_loading(shapes, CheckpointReader(sharded))[0] if fill.parameter == name)
    reader = Watched(sharded)
    read_run(reader, fill, np.dtype(np.float32), Flat().slice(fill.shape, 1, 4))
    assert reader.seen == {f"{name[: -len('.down')]}.{expert}.down_proj.weight" for expert in (2, 3)}
