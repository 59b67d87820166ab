"""A row has the bits that it has alone: in every batch, at every place, beside whatever else, on any number of threads."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.modeling import ops
from ms_omni.modeling.talker import TalkerModel
from tests.ops import test_fused as fused
from tests.ops.outputs import outputs

try:
    from ms_omni.modeling.ops import cpu
except OSError as error:
    pytest.skip(f"no kernels here: {error}", allow_module_level=True)

RNG = np.random.default_rng(23)
BATCHES = [1, 2, 3, 4, 5, 6, 7, 11, 30, 64]


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def check_rows(function, count, batches=BATCHES):
    """function(slice of rows) gives the rows of function(all), whatever the slice."""
    whole = function(slice(0, count))
    for rows in batches:
        for start in {0, 1, count // 3, count - rows}:
            part = slice(start, start + rows)
            for got, expected in zip(arrays(function(part)), arrays(whole), strict=True):
                assert np.array_equal(got, expected[part]), f"rows {start} .. {start + rows}"


def arrays(found):
    return [x.asnumpy() for x in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("inputs, outputs", [(1, 1), (19, 7), (64, 33), (300, 130), (1030, 17), (257, 16)])
def test_linear(inputs, outputs, biased):
    x, weight, bias = normal(100, inputs), Tensor(normal(outputs, inputs)), Tensor(normal(outputs)) if biased else None
    check_rows(lambda s: ops.linear(Tensor(x[s]), weight, bias), 100)


@pytest.mark.parametrize(
    "e, k, d, inner", [(3, 2, 20, 7), (4, 1, 33, 64), (8, 3, 70, 65), (2, 2, 520, 300), (16, 4, 64, 96)]
)
def test_experts(e, k, d, inner):
    x, weights, gate_up, down = normal(90, d), normal(90, k), Tensor(normal(e, d, 2 * inner)), Tensor(normal(e, inner, d))
    index = np.stack([RNG.permutation(e)[:k] for _ in range(90)]).astype(np.int32)
    check_rows(lambda s: ops.experts(Tensor(x[s]), gate_up, down, Tensor(weights[s]), Tensor(index[s])), 90)


@pytest.mark.parametrize("d", [1, 6, 34, 64, 130])
def test_rows_of_many_kinds(d):
    x, weight, bias = normal(90, d) * 3, Tensor(normal(d)), Tensor(normal(d))
    cos, sin, noise = normal(90, d), normal(90, d), RNG.uniform(size=(90, 1)).astype(np.float32)
    pairs = normal(90, 3, 2 * d)
    functions = [
        lambda s: ops.rms_norm(Tensor(x[s]), weight, 1e-5),
        lambda s: ops.layer_norm(Tensor(x[s]), weight, bias, 1e-6),
        lambda s: ops.rotary(Tensor(pairs[s]), Tensor(cos[s]), Tensor(sin[s])),
        lambda s: ops.swiglu(Tensor(pairs[s])),
        lambda s: ops.route_topk(Tensor(x[s]), min(d, 3), True),
        lambda s: ops.draw(Tensor(x[s]), Tensor(noise[s]), 0.8, 20, 0.9),
        *(lambda s, name=name: getattr(ops, name)(Tensor(x[s])) for name in ("silu", "sigmoid", "gelu", "gelu_tanh")),
    ]
    for function in functions:
        check_rows(function, 90, BATCHES[:7])


@pytest.mark.parametrize("name", ["silu", "sigmoid", "gelu", "gelu_tanh"])
def test_an_element_does_not_depend_on_its_place(name):
    x = normal(300) * 5
    check_rows(lambda s: getattr(ops, name)(Tensor(x[s])), 300, range(1, 41))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kernel", ["attention", "attention_tiles"])
def test_attention(kernel, masked):
    """Of batch rows, and of queries, with the same keys."""
    function, scale = getattr(cpu, f"_{kernel}"), Tensor(np.array([0.2], np.float32))
    q, k, v = normal(5, 30, 6, 34), normal(5, 2, 300, 34), normal(5, 2, 300, 34)
    mask = np.where(RNG.uniform(size=(5, 30, 300)) < 0.4, -1e9, RNG.uniform(size=(5, 30, 300))).astype(np.float32)
    masks = [mask] if masked else []
    check_rows(lambda s: function(*(Tensor(x[s]) for x in (q, k, v)), scale, *(Tensor(x[s]) for x in masks)), 5, range(1, 6))
    check_rows(
        lambda s: function(Tensor(q[:1, s]), Tensor(k[:1]), Tensor(v[:1]), scale, *(Tensor(x[:1, s]) for x in masks))[0],
        30,
        range(1, 14),
    )


def test_packed_attention_of_a_segment_alone():
    q, k, v = (normal(100, 2, 20) for _ in range(3))
    whole, start = ops.packed_attention(*map(Tensor, (q, k, v)), ((7, 2), (40, 1), (46, 1)), 0.3).asnumpy(), 0
    for length in (7, 7, 40, 46):
        part = slice(start, start := start + length)
        alone = ops.packed_attention(*(Tensor(x[part]) for x in (q, k, v)), ((length, 1),), 0.3)
        assert np.array_equal(alone.asnumpy(), whole[part])


def test_conv2d():
    x, weight, bias = normal(5, 3, 15, 22), Tensor(normal(7, 3, 3, 3)), Tensor(normal(7))
    check_rows(lambda s: ops.conv2d(Tensor(x[s]), weight, bias, 2, 1), 5, range(1, 6))


@pytest.mark.parametrize("start, stop", [(6, 13), (11, 70), (33, 200)])
def test_a_piece_of_sound(start, stop):
    x, weight, bias = normal(1, 12, 200), Tensor(normal(12, 12, 3)), Tensor(normal(12))
    parts = (bias, bias), (weight, bias), 3, (bias, bias), (Tensor(normal(12, 12, 1)), bias)
    whole = ops.conv1d(Tensor(x), weight, bias, 3).asnumpy()[..., start - 6 : stop - 6]
    assert np.array_equal(ops.conv1d(Tensor(x[..., start - 6 : stop].copy()), weight, bias, 3).asnumpy(), whole)
    whole = ops.residual_unit(Tensor(x), Tensor(np.zeros((1, 12, 6), np.float32)), *parts).asnumpy()[..., start:stop]
    piece = ops.residual_unit(Tensor(x[..., start:stop].copy()), Tensor(x[..., start - 6 : start].copy()), *parts)
    assert np.array_equal(piece.asnumpy(), whole)


needs_fused = pytest.mark.skipif(not hasattr(ops.implementation(), "decoder_step"), reason="no fused steps")


@needs_fused
@pytest.mark.parametrize("stack", ["odd", "dense layers and biases", "threads"])
def test_decoder_step(stack, rng):
    """Rows of a batch, none as long as another, against themselves alone: prompt and three tokens, in blocks of other sizes."""
    model, head = fused.random_stack(fused.STACKS[stack], TalkerModel, rng)
    rows = [normal(length, model.config.hidden_size) for length in (12, 9, 40, 5, 23)]
    alone = [fused.decode(model, head, [row], 3, 32)[1] for row in rows]
    for batch, block, padding in ((1, 16, 3), (2, 128, 0), (3, 16, 1), (4, 48, 0), (5, 16, 11)):
        together = fused.decode(model, head, rows[5 - batch :], 3, block, padding, first=batch)[1]
        for step, found in enumerate(together):
            for row, own in zip(found, alone[5 - batch :], strict=True):
                assert np.array_equal(row, own[step][0])


@needs_fused
def test_what_pads_a_chunk_leaves_no_trace(rng):
    """A prompt with padding behind it has the bits that it has without, and so has what is decoded then."""
    model, head = fused.random_stack({}, TalkerModel, rng)
    rows = normal(1, 6, model.config.hidden_size)

    def read(holes):
        step = fused.step_of(model, head, 4)
        x = np.concatenate([rows[:, :5], normal(1, holes, model.config.hidden_size)], 1)
        rope = model.rope(fused.positions([*range(5), *[0] * holes]))
        hidden = step.pool.read_chunk(model, Tensor(x), rope, 0, 5, [3, 1])
        found = step(
            Tensor(rows[:, 5:]), model.rope(fused.positions([5])), np.array([[3, 1]], np.int32), np.array([6], np.int32)
        )
        return [hidden.asnumpy()[:, :5], *(x.asnumpy() for x in found)]

    for found, expected in zip(read(3), read(0), strict=True):
        assert np.array_equal(found, expected)


@needs_fused
@pytest.mark.parametrize("sampling", [None, (0.8, 20, 0.9)])
@pytest.mark.parametrize("stack", ["odd", "threads"])
def test_code_frame(stack, sampling, rng, normal):
    talker = fused.talker_like(6, rng, **{**fused.STACKS[stack], "vocab_size": 211})
    inputs = fused.frame_inputs(talker, 5, rng, normal)
    whole = fused.frames(talker, sampling, inputs)[1:]
    for batch in range(1, 6):
        for found, expected in zip(fused.frames(talker, sampling, [x[5 - batch :] for x in inputs])[1:], whole):
            assert np.array_equal(found, expected[5 - batch :])


@pytest.mark.parametrize("threads", ["1", "3"])
def test_any_number_of_threads(threads):
    found = subprocess.run(
        [sys.executable, "-m", "tests.ops.outputs"],
        env={**os.environ, "OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout.splitlines()[-1]) == outputs()
