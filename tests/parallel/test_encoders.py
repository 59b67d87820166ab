"""Sharing the work of the encoders: whatever the shares, the features are those of one process."""

import copy

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.parallel.layers import SharedAudio, SharedVision, become, shares
from tests.parallel.answers import inputs_of


class Replay:
    """One rank of several that run one after another: what the others send is known from a round before."""

    def __init__(self, rank, size, known=None):
        self.rank, self.size, self.known = rank, size, known
        self.sent = None

    def all_gather(self, rows):
        assert self.sent is None, "one gather per call"
        self.sent = rows.asnumpy()
        everyone = [self.sent] * self.size if self.known is None else self.known
        return Tensor(np.concatenate(everyone))


def of_every_rank(size, call):
    """`call(comm)` of each rank, with what all of them send."""
    first = [Replay(rank, size) for rank in range(size)]
    for comm in first:
        call(comm)
    known = None if first[0].sent is None else [comm.sent for comm in first]
    assert all((comm.sent is None) == (known is None) for comm in first)
    return [call(Replay(rank, size, known)) for rank in range(size)], known is not None


def shared(tower, part, comm):
    """A twin of the encoder, with the same parameters, that shares its work."""
    twin = copy.copy(tower)
    become(twin, part, comm=comm)
    return twin


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("case, gathers", [("two_images", True), ("video", True)])
def test_pictures_and_frames(case, gathers, size, model_of, tiny_checkpoint):
    tower, inputs = model_of("tiny").thinker.visual, inputs_of(tiny_checkpoint, case)
    kind = "video" if case == "video" else "image"
    pixels = np.asarray(inputs["pixel_values_videos" if kind == "video" else "pixel_values"])
    grid = inputs[f"{kind}_grid_thw"]
    features, deepstack = tower(pixels, grid)
    found, gathered = of_every_rank(size, lambda comm: shared(tower, SharedVision, comm)(pixels, grid))
    assert gathered == gathers
    for own, levels in found:
        for mine, whole in zip((own, *levels), (features, *deepstack), strict=True):
            np.testing.assert_allclose(mine.asnumpy(), whole.asnumpy(), atol=2e-5)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("case, gathers", [("audio_11s", True), ("two_audios", True)])
def test_windows_of_sound(case, gathers, size, model_of, tiny_checkpoint):
    thinker, inputs = model_of("tiny").thinker, inputs_of(tiny_checkpoint, case)
    features = inputs["input_features"]
    lengths = np.asarray(inputs["feature_attention_mask"]).sum(-1)
    packed = np.concatenate([np.asarray(clip)[:, :length] for clip, length in zip(features, lengths)], axis=1)
    tower = thinker.audio_tower
    whole = tower(packed, lengths).asnumpy()
    found, gathered = of_every_rank(size, lambda comm: shared(tower, SharedAudio, comm)(packed, lengths).asnumpy())
    assert gathered == gathers
    for own in found:
        np.testing.assert_allclose(own, whole, atol=2e-5)


@pytest.mark.parametrize(
    "costs, ranks, expected",
    [
        ([1, 1, 1, 1], 2, [2]),
        ([1, 1, 1, 1], 4, [1, 2, 3]),
        ([8, 1, 1], 2, [1]),
        ([1, 1, 8], 2, [2]),
        ([5], 3, [0, 1]),
        ([3, 3], 4, [0, 1, 1]),
    ],
)
def test_neighbouring_shares_of_about_equal_cost(costs, ranks, expected):
    found = shares(costs, ranks)
    assert len(found) == ranks - 1 and found == sorted(found) and found[-1] <= len(costs)
    assert found == expected
