"""Linear maps, look-ups, norms and activations against numpy in float64."""

import numpy as np
import pytest

from ms_omni.modeling import ops
from tests.ops import formulas


@pytest.mark.parametrize("shape", [(1, 7), (3, 1, 7), (2, 3, 5, 7), (0, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(shape, bias, normal, tensors, close):
    x, weight, offset = normal(*shape), normal(5, 7), normal(5) if bias else None
    expected = formulas.f64(x) @ formulas.f64(weight).T + (0 if offset is None else offset)
    close(ops.linear(*tensors(x, weight, offset)), expected)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 1)])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_embedding(shape, kind, rng, normal, tensors, close):
    ids, weight = rng.integers(0, 11, shape).astype(kind), normal(11, 3)
    close(ops.embedding(*tensors(ids, weight)), weight[ids], 0)


@pytest.mark.parametrize("shape", [(1, 9), (2, 3, 4, 9), (5, 1)])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_rms_norm(shape, eps, normal, tensors, close):
    x, weight = normal(*shape), normal(shape[-1])
    close(ops.rms_norm(*tensors(x, weight), eps), formulas.rms_norm(x, weight, eps))


def test_rms_norm_of_zeros_is_zero_and_of_large_values_is_finite(tensors, close):
    x = np.stack([np.zeros(6), np.full(6, 1e15)]).astype(np.float32)
    close(ops.rms_norm(*tensors(x, np.ones(6, np.float32)), 1e-6), [[0] * 6, [1] * 6])


@pytest.mark.parametrize("shape", [(1, 9), (2, 5, 9)])
@pytest.mark.parametrize("eps", [1e-5, 0.2])
def test_layer_norm(shape, eps, normal, tensors, close):
    x, weight, bias = normal(*shape) + 3, normal(9), normal(9)
    close(ops.layer_norm(*tensors(x, weight, bias), eps), formulas.layer_norm(x, weight, bias, eps), 1e-5)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "sigmoid"])
def test_activation(name, normal, tensors, close):
    x = np.concatenate([normal(33) * 3, np.array([0, -20, 20, -90, 90], np.float32)])
    close(getattr(ops, name)(*tensors(x)), getattr(formulas, name)(x))


def test_gelus_differ(tensors):
    """They agree to three digits, so a mix-up would hide below loose tolerances."""
    x = tensors(np.linspace(-3, 3, 50, dtype=np.float32))[0]
    gap = np.abs(ops.gelu(x).asnumpy() - ops.gelu_tanh(x).asnumpy()).max()
    assert 1e-4 < gap < 1e-3


@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 14)])
def test_swiglu_gates_with_the_first_half(shape, normal, tensors, close):
    x = normal(*shape)
    gate, up = np.split(formulas.f64(x), 2, axis=-1)
    close(ops.swiglu(*tensors(x)), formulas.silu(gate) * up)


@pytest.mark.parametrize("shape", [(4, 3, 6), (2, 5, 1, 2), (2, 1, 7, 10)])
def test_rotary(shape, normal, rng, tensors, close):
    angles = rng.uniform(-4, 4, (*shape[:-2], shape[-1] // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    x = normal(*shape)
    rotated = ops.rotary(*tensors(x, cos, sin))
    close(rotated, formulas.rotary(x, cos, sin))
    close(np.square(rotated.asnumpy()).sum(-1), np.square(x).sum(-1), 1e-5)  # a rotation keeps lengths


def test_scale_channels(normal, tensors, close):
    x, scale = normal(2, 3, 5), normal(5)
    close(ops.scale_channels(*tensors(x, scale)), formulas.f64(x) * scale)


def test_argmax_takes_the_first_of_equals(tensors):
    x = np.array([[1, 5, 5, 2], [-3, -3, -4, -9]], np.float32)
    assert ops.argmax(*tensors(x)).asnumpy().tolist() == [1, 0]


def test_clip(tensors, close):
    close(ops.clip(*tensors(np.array([-2, -1, 0.5, 3], np.float32)), -1.0, 1.0), [-1, -1, 0.5, 1], 0)
    assert np.isnan(ops.clip(*tensors(np.array([np.nan, np.inf, -np.inf], np.float32)), -1.0, 1.0).asnumpy()).all()


def test_transpose_is_contiguous(normal, tensors, close):
    x = normal(2, 3, 4)
    moved = ops.transpose(*tensors(x), (2, 0, 1))
    close(moved, x.transpose(2, 0, 1), 0)
    assert moved.is_contiguous()


def test_concat(normal, tensors, close):
    x, y = normal(2, 3, 4), normal(2, 0, 4)
    z = normal(2, 1, 4)
    close(ops.concat(tensors(x, z), 1), np.concatenate([x, z], 1), 0)
    close(ops.concat(tensors(x, y), 1), x, 0)
    close(ops.concat(tensors(x), -1), x, 0)


@pytest.mark.parametrize("labels", [[0, 4, 2], [1, 1, 1]])
def test_cross_entropy(labels, normal, tensors, close):
    logits, labels = normal(3, 5) * 4, np.array(labels, np.int32)
    close(ops.cross_entropy(*tensors(logits, labels)), formulas.cross_entropy(logits, labels))


def test_cross_entropy_survives_large_logits(tensors, close):
    logits = np.array([[1000, 0], [0, 1000]], np.float32)
    close(ops.cross_entropy(*tensors(logits, np.array([0, 0], np.int32))), 500.0)
