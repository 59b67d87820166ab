"""A frame's codes on Ascend, over emulated kernels: rows that are sampled each in its own way, in one launch."""

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.modeling.ops.reference import Reference
from ms_omni.modeling.steps import FrameStep, compiles_ahead
from tests.ops.test_fused import SMALL, frame_inputs, talker_like

ALIGNED = {**SMALL, "head_dim": 16, "mrope_section": (3, 3, 2), "sparse": (False, False, False), "vocab_size": 211}
TIMES = 40  # rows of a launch that are alike


@pytest.fixture
def talker(rng, ascend):
    return talker_like(4, rng, **ALIGNED)


def frame_of(step, hidden, code, kinds, seed=5):
    """Codes and sums, each row with a random stream of its own."""
    noise = step.no_noise(len(hidden))
    for row in range(len(hidden)):
        noise[row] = step.noise(np.random.default_rng([seed, row]))
    codes, total = step(Tensor(hidden), Tensor(code), Tensor(noise), kinds)
    return codes.asnumpy(), total.asnumpy()


def test_greedy_codes_are_those_of_the_cells(talker, rng, normal, use_operators, close):
    hidden, code, noise = frame_inputs(talker, 5, rng, normal)
    step = FrameStep(talker, 5, None)
    assert step.mixes and step.graph is None
    codes, total = frame_of(step, hidden, code, [None] * 5)
    use_operators(Reference)
    talker.prepared_frame = None
    expected, summed = FrameStep(talker, 5, None)(Tensor(hidden), Tensor(code), Tensor(noise))
    assert codes.tolist() == expected.asnumpy().tolist()
    close(total, summed.asnumpy(), 2e-6)


def test_each_row_is_sampled_in_its_own_way_whoever_is_beside_it(talker, rng, normal):
    hidden, code, _ = frame_inputs(talker, 1, rng, normal)
    kinds = [None, (0.7, 50, 1.0), (1.0, 1, 1.0), (1.0, 64, 1e-6), (5.0, 3, 1.0), (0.9, 50, 0.8)]
    hidden, code = np.repeat(hidden, len(kinds), 0), np.repeat(code, len(kinds), 0)
    step = FrameStep(talker, len(kinds), None)
    codes, _ = frame_of(step, hidden, code, kinds)
    for row, kind in enumerate(kinds):
        noise = step.noise(np.random.default_rng([5, row]))[None]
        alone, _ = step(Tensor(hidden[:1]), Tensor(code[:1]), Tensor(noise), [kind])
        assert alone.asnumpy().tolist() == codes[row : row + 1].tolist()
    assert (codes[[2, 3]] == codes[0]).all()  # one candidate, and the likeliest alone reaches top_p
    assert len({tuple(row) for row in codes.tolist()}) > 1


def test_the_second_code_is_drawn_as_often_as_it_is_likely(talker, rng, normal, use_operators):
    hidden, code, _ = frame_inputs(talker, 1, rng, normal)
    kind, rows = (2.0, 7, 0.8), np.repeat(hidden, TIMES, 0)
    step, found = FrameStep(talker, TIMES, None), []
    for seed in range(30):
        found += frame_of(step, rows, np.repeat(code, TIMES, 0), [kind] * TIMES, seed)[0][:, 1].tolist()
    use_operators(Reference)
    predictor = talker.code_predictor
    metadata = predictor.attention_metadata(0, 2, 1)
    x = np.concatenate([hidden, talker.model.codec_embedding.weight.asnumpy()[code]], 1)
    logits = predictor.read(Tensor(x), (*metadata[:3], None), None, 0).asnumpy()[0] / kind[0]
    likeliest = np.argsort(-logits)[: kind[1]]
    shares = np.exp(logits[likeliest] - logits.max())
    shares /= shares.sum()
    allowed = np.cumsum(shares) - shares < kind[2]
    shares = shares[allowed] / shares[allowed].sum()
    assert set(found) <= set(likeliest[allowed].tolist()) and allowed.sum() > 2
    counts = np.array([found.count(id) for id in likeliest[allowed]])
    assert np.square(counts - len(found) * shares).sum() < 4 * len(found)  # of a multinomial: below len(found) on average


def test_kinds_that_the_launch_does_not_know_run_through_the_cells(talker, rng, normal):
    arrays = frame_inputs(talker, 2, rng, normal)
    for kind in ((1.0, 0, 1.0), (1.0, 65, 0.9)):
        step = FrameStep(talker, 2, kind)
        assert not step.mixes and step.fused is None and not step.due()
        assert step(*map(Tensor, arrays))[0].shape == (2, 4)


def test_a_frame_of_numbers_that_are_none_shows_in_the_sum_of_its_row(talker, rng, normal):
    hidden, code, _ = frame_inputs(talker, 3, rng, normal)
    hidden[1, 0, 2] = np.nan
    total = frame_of(FrameStep(talker, 3, None), hidden, code, [None, (0.9, 50, 0.8), (0.9, 50, 0.8)])[1]
    assert np.isnan(total).any((1, 2)).tolist() == [False, True, False]


def test_weights_given_later_are_used(talker, rng, normal):
    hidden, code, _ = frame_inputs(talker, 2, rng, normal)
    step = FrameStep(talker, 2, None)
    first = frame_of(step, hidden, code, [None] * 2)[0]
    assert FrameStep(talker, 1, None).fused is step.fused
    weight = talker.code_predictor.model.layers[0].self_attn.k_proj.weight
    weight.set_data(Tensor(-weight.asnumpy()))
    again = FrameStep(talker, 2, None)
    assert again.fused is not step.fused and not (frame_of(again, hidden, code, [None] * 2)[0] == first).all()


def test_graphs_are_made_before_anybody_waits_on_ascend_alone():
    assert compiles_ahead(0) and not compiles_ahead(None) and not compiles_ahead(32)
