"""Convolutions and the vocoder's activation."""

import numpy as np
import pytest

from ms_omni.modeling import ops
from tests.ops import formulas


@pytest.mark.parametrize(
    "channels, out, width, dilation, groups, length",
    [
        (3, 5, 1, 1, 1, 4),
        (4, 6, 7, 1, 1, 11),
        (4, 4, 7, 1, 4, 9),
        (6, 4, 3, 1, 2, 8),
        (3, 2, 7, 9, 1, 60),
        (2, 2, 3, 2, 2, 5),
    ],
)
def test_conv1d(channels, out, width, dilation, groups, length, normal, tensors, close):
    x, weight, bias = normal(2, channels, length), normal(out, channels // groups, width), normal(out)
    close(ops.conv1d(*tensors(x, weight, bias), dilation, groups), formulas.conv1d(x, weight, bias, dilation, groups), 5e-6)


def test_conv1d_settings_are_not_mixed_up(normal, tensors, close):
    """Primitives are kept per setting; two convolutions of one width must not share one."""
    x, weight, bias = normal(1, 4, 20), normal(4, 4, 3), normal(4)
    for dilation in (1, 3, 1, 2):
        close(ops.conv1d(*tensors(x, weight, bias), dilation), formulas.conv1d(x, weight, bias, dilation), 5e-6)
    depthwise = normal(4, 1, 3)
    close(ops.conv1d(*tensors(x, depthwise, bias), 1, 4), formulas.conv1d(x, depthwise, bias, 1, 4), 5e-6)


@pytest.mark.parametrize(
    "channels, out, width, stride, length",
    [
        (3, 5, 2, 2, 4),
        (4, 2, 16, 8, 3),
        (2, 3, 10, 5, 1),
        (2, 2, 3, 4, 5),
        (1, 1, 1, 1, 2),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_conv_transpose1d(batch, channels, out, width, stride, length, normal, tensors, close):
    x, weight, bias = normal(batch, channels, length), normal(channels, out, width), normal(out)
    close(ops.conv_transpose1d(*tensors(x, weight, bias), stride), formulas.conv_transpose1d(x, weight, bias, stride), 5e-6)


@pytest.mark.parametrize(
    "channels, out, kernel, stride, padding, size",
    [
        (1, 3, (3, 3), 2, 1, (8, 9)),
        (3, 2, (3, 3), 2, 1, (5, 13)),
        (2, 4, (1, 1), 1, 0, (3, 2)),
        (2, 1, (2, 3), 1, 2, (4, 4)),
    ],
)
def test_conv2d(channels, out, kernel, stride, padding, size, normal, tensors, close):
    x, weight, bias = normal(2, channels, *size), normal(out, channels, *kernel), normal(out)
    expected = formulas.conv2d(x, weight, bias, stride, padding)
    close(ops.conv2d(*tensors(x, weight, bias), stride, padding), expected, 5e-6)


@pytest.mark.parametrize("count, size, out", [(1, (1, 1), 3), (3, (17, 10), 5), (9, (128, 100), 48), (2, (8, 9), 33)])
def test_downsample(count, size, out, normal, tensors):
    """Bit for bit what the convolutions make one by one, for as many pictures as stay near or more."""
    x, *weights = tensors(
        normal(count, 1, *size), normal(out, 1, 3, 3), normal(out, out, 3, 3) * 0.1, normal(out, out, 3, 3) * 0.1
    )
    layers, expected = [(weight, *tensors(normal(out))) for weight in weights], x
    for layer in layers:
        expected = ops.gelu(ops.conv2d(expected, *layer, 2, 1))
    result = ops.downsample(x, layers)
    assert result.shape == expected.shape and np.array_equal(result.asnumpy(), expected.asnumpy())


@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 7, 1)])
def test_snake_beta(shape, normal, tensors, close):
    x, alpha, beta = normal(*shape) * 2, normal(shape[1]) * 0.5, normal(shape[1]) * 0.5
    close(ops.snake_beta(*tensors(x, alpha, beta)), formulas.snake_beta(x, alpha, beta), 5e-6)


def test_snake_beta_of_huge_numbers(tensors):
    """Beyond what float32 can turn into an angle: the number itself, and no accident of a conversion."""
    x = np.array([[[1e8, -1e12, 9e30, -3e38, np.inf, np.nan]]], np.float32)
    result = ops.snake_beta(*tensors(x, np.zeros(1, np.float32), np.zeros(1, np.float32))).asnumpy()
    np.testing.assert_array_equal(result[..., :4], x[..., :4])
    assert np.isnan(result[0, 0, 5]) and not np.isfinite(result[0, 0, 4])
