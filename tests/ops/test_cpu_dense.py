"""The C++ kernels for large products and attention against `reference`: odd sizes, all tails of the tiles, fixed sums."""

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.modeling.ops.reference import Reference
from tests.ops import formulas

try:
    from ms_omni.modeling.ops import cpu
    from ms_omni.modeling.ops.cpu import Cpu
except OSError as error:
    pytest.skip(f"no kernels here: {error}", allow_module_level=True)

RNG = np.random.default_rng(17)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    "rows, inputs, outputs",
    [
        (1, 1, 1),
        (5, 7, 3),
        (6, 16, 64),
        (13, 33, 65),
        (70, 513, 130),
        (200, 1030, 17),
        (7, 2049, 95),
        (64, 40, 200),
        (0, 3, 4),
    ],
)
def test_linear(rows, inputs, outputs, biased, close):
    x, weight, bias = normal(rows, inputs), normal(outputs, inputs), normal(outputs) if biased else None
    result = Cpu.linear(Tensor(x), Tensor(weight), Tensor(bias) if biased else None)
    close(result, formulas.f64(x) @ weight.T + (bias if biased else 0))


def test_a_row_has_the_same_bits_in_every_batch():
    x, weight, bias = normal(300, 600), Tensor(normal(150, 600)), Tensor(normal(150))
    whole = Cpu.linear(Tensor(x), weight, bias).asnumpy()
    for rows in (5, 6, 7, 64, 101, 299):
        assert np.array_equal(Cpu.linear(Tensor(x[17 : 17 + rows]), weight, bias).asnumpy(), whole[17 : 17 + rows])


@pytest.mark.parametrize(
    "n, e, k, d, inner",
    [
        (1, 1, 1, 1, 1),
        (17, 3, 2, 20, 7),
        (40, 40, 1, 33, 64),
        (300, 4, 3, 70, 65),
        (230, 2, 1, 520, 40),
        (90, 16, 4, 64, 96),
    ],
)
def test_experts(n, e, k, d, inner, close):
    index = np.stack([RNG.permutation(e)[:k] for _ in range(n)]).astype(np.int32)
    arguments = normal(n, d), normal(e, d, 2 * inner), normal(e, inner, d), normal(n, k), index
    close(Cpu.experts(*map(Tensor, arguments)), formulas.experts(*arguments), 3e-6)


def test_shares_of_the_experts_add_up(close):
    index = np.stack([RNG.permutation(7)[:3] for _ in range(60)]).astype(np.int32)
    x, gate_up, down, weights = normal(60, 33), normal(7, 33, 40), normal(7, 20, 33), normal(60, 3)
    shares = [
        Cpu.experts(*map(Tensor, (x, gate_up[part], down[part], weights, index)), part.start)
        for part in (slice(0, 2), slice(2, 3), slice(3, 7))
    ]
    close(sum(share.asnumpy() for share in shares), formulas.experts(x, gate_up, down, weights, index), 3e-6)


def test_experts_all_in_one_and_one_that_does_not_exist(close):
    arguments = [normal(250, 9), normal(3, 9, 10), normal(3, 5, 9), normal(250, 1), np.full((250, 1), 1, np.int32)]
    close(Cpu.experts(*map(Tensor, arguments)), formulas.experts(*arguments), 3e-6)
    arguments[4][249] = 3
    with pytest.raises(RuntimeError):
        Cpu.experts(*map(Tensor, arguments)).asnumpy()


@pytest.mark.parametrize(
    "batch, channels, height, width, outputs, taps, stride, padding",
    [
        (1, 1, 3, 3, 1, 3, 2, 1),
        (2, 3, 7, 5, 9, 3, 2, 1),
        (1, 2, 6, 9, 5, 3, 1, 0),
        (3, 70, 16, 13, 7, 3, 2, 1),
        (1, 2, 20, 1, 3, 3, 2, 1),
        (1, 4, 11, 130, 6, 5, 3, 2),
        (2, 3, 1, 8, 4, 1, 1, 0),
    ],
)
def test_conv2d(batch, channels, height, width, outputs, taps, stride, padding, close):
    arguments = (
        *map(Tensor, (normal(batch, channels, height, width), normal(outputs, channels, taps, taps), normal(outputs))),
        stride,
        padding,
    )
    close(Cpu.conv2d(*arguments), Reference.conv2d(*arguments).asnumpy())


def masks(b, s, t):
    """None; causal with padding on the left; arbitrary with a row that may see nothing."""
    causal = np.where(np.arange(t) <= np.arange(s)[:, None] + t - s, 0, -1e9)
    padded = np.broadcast_to(causal, (b, s, t)).astype(np.float32).copy()
    padded[0, s // 3 :, : t // 3] = -1e9
    free = np.where(RNG.uniform(size=(b, s, t)) < 0.4, -1e9, RNG.uniform(size=(b, s, t))).astype(np.float32)
    free[:, 0] = -1e9
    return None, padded, free


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize(
    "b, s, t, h, kv, d",
    [
        (1, 1, 1, 1, 1, 1),
        (2, 9, 70, 6, 2, 5),
        (1, 300, 300, 2, 1, 16),
        (2, 40, 600, 4, 4, 72),
        (1, 65, 257, 7, 1, 33),
        (1, 530, 530, 1, 1, 8),
    ],
)
def test_attention(b, s, t, h, kv, d, kind, close):
    mask = masks(b, s, t)[kind]
    q, k, v = normal(b, s, h, d), normal(b, kv, t, d), normal(b, kv, t, d)
    tensors = [Tensor(x) for x in (q, k, v, np.array([0.3], np.float32), *([] if mask is None else [mask]))]
    expected = Reference.attention(*tensors[:3], None if mask is None else tensors[4], 0.3)
    close(cpu._attention_tiles(*tensors), expected.asnumpy(), 5e-6)


@pytest.mark.parametrize("segments", [((1, 1),), ((3, 2), (13, 2), (1, 1)), ((300, 1), (9, 3)), ((64, 4),)])
def test_packed_attention(segments, close):
    n = sum(length * count for length, count in segments)
    arguments = [Tensor(normal(n, 3, 20)) for _ in range(3)]
    close(
        Cpu.packed_attention(*arguments, segments, 0.3),
        Reference.packed_attention(*arguments, segments, 0.3).asnumpy(),
        5e-6,
    )


def test_scores_far_apart_do_not_overflow(close):
    q, k, v = (Tensor(normal(1, 40, 2, 8) * 60), *(Tensor(normal(1, 2, 400, 8) * 60) for _ in range(2)))
    scale = Tensor(np.array([1.0], np.float32))
    close(cpu._attention_tiles(q, k, v, scale), Reference.attention(q, k, v, None, 1.0).asnumpy(), 5e-5)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_extremes(name):
    values = np.array([np.inf, np.nan, 300, -300, 0, -0.0, 1e-30], np.float32)
    result = getattr(Cpu, name)(Tensor(values)).asnumpy()
    assert result[0] == np.inf and np.isnan(result[1]) and result[2] == 300 and abs(result[3]) < 1e-30
    assert (result[4:6] == 0).all() and result[6] == np.float32(1e-30) / 2
