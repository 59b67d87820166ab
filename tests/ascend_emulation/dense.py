"""Norms, activations, rotary positions, products and convolutions."""

import math

import mindspore as ms
import numpy as np

from .kernel import FLOATS, Kernel, require, same_type

_ERF = np.frompyfunc(math.erf, 1, 1)


def _same(*types):
    return same_type(FLOATS, *types)


def _normalised(x, weight, epsilon, rounded):
    deviation = 1 / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(epsilon))
    return rounded(x * deviation) * weight, deviation


def _check_norm(epsilon, weight, x):
    require(isinstance(epsilon, float) and 0 < epsilon <= 1, f"eps {epsilon!r}")
    require(weight == x[-1:], f"weight {weight} for {x}")


def rms_norm(tensors, *, epsilon):
    """x `[..., D]`, gamma `[D]` -> the normalised x, its reciprocal deviation float32 `[..., 1]`."""
    require(tensors == ("x", "gamma"), f"tensors {tensors}")

    def shape(x, weight):
        _check_norm(epsilon, weight, x)
        return x, [*x[:-1], 1]

    def compute(x, weight, rounded=lambda x: x):
        return _normalised(x, weight, epsilon, rounded)

    return Kernel(2, compute, shape, lambda *types: (_same(*types), ms.float32))


def add_rms_norm(tensors, *, epsilon):
    """x1, x2 `[..., D]`, gamma `[D]` -> their sum normalised, its reciprocal deviation, the sum."""
    require(tensors == ("x1", "x2", "gamma"), f"tensors {tensors}")

    def shape(x, other, weight):
        _check_norm(epsilon, weight, x)
        require(x == other, f"{x} and {other}")
        return x, [*x[:-1], 1], x

    def dtype(*types):
        return _same(*types), ms.float32, types[0]

    def compute(x, other, weight, rounded=lambda x: x):
        total = rounded(x + other)
        return *_normalised(total, weight, epsilon, rounded), total

    return Kernel(3, compute, shape, dtype)


def layer_norm_ext(tensors, *, normalized_shape, eps):
    """Over the last axis -> the normalised input, mean and reciprocal deviation float32."""
    require(tensors == ("input", "weight", "bias"), f"tensors {tensors}")

    def shape(x, weight, bias):
        require(list(normalized_shape) == weight == bias == x[-1:], f"{normalized_shape}: {weight} and {bias} for {x}")
        return x, [*x[:-1], 1], [*x[:-1], 1]

    def compute(x, weight, bias):
        mean = x.mean(-1, keepdims=True)
        deviation = 1 / np.sqrt(np.square(x - mean).mean(-1, keepdims=True) + np.float32(eps))
        return (x - mean) * deviation * weight + bias, mean, deviation

    return Kernel(3, compute, shape, lambda *types: (_same(*types), ms.float32, ms.float32))


def add_layer_norm_v2(tensors, *, epsilon, additionalOut):
    """x1, x2 `[..., D]`, gamma and beta `[D]` -> their sum normalised, its mean and reciprocal deviation float32, the sum."""
    require(tensors == ("x1", "x2", "gamma", "beta") and additionalOut, f"tensors {tensors}, additionalOut {additionalOut}")

    def shape(x, other, weight, bias):
        _check_norm(epsilon, weight, x)
        require(x == other and weight == bias, f"{x} and {other}, {weight} and {bias}")
        return x, [*x[:-1], 1], [*x[:-1], 1], x

    def dtype(*types):
        found = _same(*types)
        return found, ms.float32, ms.float32, found

    def compute(x, other, weight, bias, rounded=lambda x: x):
        total = rounded(x + other)
        mean = total.mean(-1, keepdims=True)
        deviation = 1 / np.sqrt(np.square(total - mean).mean(-1, keepdims=True) + np.float32(epsilon))
        return (total - mean) * deviation * weight + bias, mean, deviation, total

    return Kernel(4, compute, shape, dtype)


def gelu_ext(tensors, *, approximate):
    require(tensors == ("input",) and approximate in ("none", "tanh"), f"tensors {tensors}, approximate {approximate!r}")

    def compute(x):
        if approximate == "tanh":
            return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
        return 0.5 * x * (1 + _ERF(x / np.float32(math.sqrt(2))).astype(np.float32))

    return Kernel(1, compute, lambda x: x, _same)


def swiglu(tensors, *, dim):
    """`silu(first half) * second half` along the last axis."""
    require(tensors == ("input",) and dim == -1, f"tensors {tensors}, axis {dim}")

    def shape(x):
        require(x[-1] % 2 == 0, f"{x[-1]} channels, expected an even number")
        return [*x[:-1], x[-1] // 2]

    def compute(x):
        gate, up = np.split(x, 2, -1)
        with np.errstate(over="ignore"):
            return gate / (1 + np.exp(-gate)) * up

    return Kernel(1, compute, shape, _same)


def rotary_position_embedding(tensors, *, mode):
    """x `[B, N, H, D]`, cos and sin `[1, N, 1, D]`, both halves filled -> x with its pairs (i, i + D/2) turned."""
    require(tensors == ("x", "cos", "sin") and mode == 0, f"tensors {tensors}, mode {mode}")

    def shape(x, cos, sin):
        require(len(x) == 4 and cos == sin == [1, x[1], 1, x[3]], f"x {x} (BSND), cos {cos}, sin {sin} (1S1D)")
        require(x[3] % 2 == 0 and x[3] < 896 and x[0] < 1000 and x[2] < 1000, f"x {x}")
        return x

    def compute(x, cos, sin):
        require(max(np.abs(cos).max(), np.abs(sin).max()) <= 1.00001, "cosines and sines beyond 1")
        low, high = np.split(x, 2, -1)
        return x * cos + np.concatenate([-high, low], -1) * sin

    return Kernel(3, compute, shape, _same)


def apply_rotary_pos_emb(tensors, *, cos_format):
    """query `[N, H * D]`, key `[N, K * D]`, cos and sin `[N, D]`, both halves filled -> both with their pairs (i, i + D/2) turned."""
    require(
        tensors == ("query", "key", "cos", "sin", "position_ids") and cos_format == 2, f"tensors {tensors}, {cos_format}"
    )

    def shape(q, k, cos, sin, lengths):
        require(len(q) == len(k) == 2 and cos == sin and [q[0]] == [k[0]] == cos[:1] == lengths, f"q {q}, k {k}, cos {cos}")
        require(q[1] % cos[1] == k[1] % cos[1] == cos[1] % 2 == 0, f"q {q}, k {k}, cos {cos}")
        return q, k

    def dtype(q, k, cos, sin, lengths):
        require(lengths == ms.int32, f"lengths {lengths}")
        return (_same(q, k, cos, sin),) * 2

    def compute(q, k, cos, sin, lengths):
        turned, (cos, sin) = [], (table[:, None] for table in (cos, sin))
        for x in (q, k):
            heads = x.reshape(len(x), -1, cos.shape[-1])
            low, high = np.split(heads, 2, -1)
            turned.append((heads * cos + np.concatenate([-high, low], -1) * sin).reshape(x.shape))
        return tuple(turned)

    return Kernel(5, compute, shape, dtype)


def dense(tensors):
    """input `[..., C]`, weight `[M, C]`, bias `[M]` or none -> `[..., M]`."""
    require(tensors in (("input", "weight"), ("input", "weight", "bias")), f"tensors {tensors}")

    def shape(x, weight, bias=None):
        require(len(weight) == 2 and x[-1] == weight[1], f"x {x}, weight {weight}")
        require(bias is None or bias == weight[:1], f"bias {bias}, weight {weight}")
        return [*x[:-1], weight[0]]

    def compute(x, weight, bias=0):
        return x @ weight.T + bias

    return Kernel(len(tensors), compute, shape, _same)


def addmm(tensors, *, beta, alpha):
    """`input + mat1 @ mat2`."""
    require(tensors == ("input", "mat1", "mat2") and beta == alpha == 1, f"tensors {tensors}, {beta}, {alpha}")

    def shape(x, first, second):
        require(len(first) == len(second) == 2 and first[1] == second[0], f"{first} times {second}")
        require(x == [first[0], second[1]], f"{x} for a product of {first} and {second}")
        return x

    return Kernel(3, lambda x, first, second: x + first @ second, shape, _same)


def baddbmm(tensors, *, beta, alpha):
    """`input + batch1 @ batch2`."""
    require(tensors == ("input", "batch1", "batch2") and beta == alpha == 1, f"tensors {tensors}, {beta}, {alpha}")

    def shape(x, first, second):
        require(
            len(first) == len(second) == 3 and first[0] == second[0] and first[2] == second[1], f"{first} times {second}"
        )
        require(x == [*first[:2], second[2]], f"{x} for a product of {first} and {second}")
        return x

    return Kernel(3, lambda x, first, second: x + first @ second, shape, _same)


def _of_elements(tensors, value, compute):
    """input, tensor1, tensor2, the second of which may have one column."""
    require(tensors == ("input", "tensor1", "tensor2") and value == 1, f"tensors {tensors}, {value}")

    def shape(x, first, second):
        require(x == first and second in (first, [*first[:-1], 1]), f"{x}, {first}, {second}: not emulated")
        return x

    def quiet(*arrays):
        with np.errstate(invalid="ignore"):
            return compute(*arrays)

    return Kernel(3, quiet, shape, _same)


def addcmul_ext(tensors, *, value):
    return _of_elements(tensors, value, lambda x, first, second: x + first * second)


def addcdiv_ext(tensors, *, value):
    return _of_elements(tensors, value, lambda x, first, second: x + first / second)


def conv2d_ext(tensors, *, stride, padding, dilation, groups):
    """input `[B, C, h, w]`, weight `[M, C / groups, kh, kw]`, bias `[M]`; pairs for the other arguments."""
    require(tensors == ("input", "weight", "bias"), f"tensors {tensors}")

    def out_size(x, weight, axis):
        reach = (weight[axis] - 1) * dilation[axis - 2] + 1
        padded = x[axis] + 2 * padding[axis - 2]
        require(padded >= reach, f"x {x} is smaller than the kernel {weight}")
        return (padded - reach) // stride[axis - 2] + 1

    def shape(x, weight, bias):
        require(len(x) == len(weight) == 4 and x[1] == weight[1] * groups, f"x {x}, weight {weight}, {groups} groups")
        require(bias == weight[:1] and weight[0] % groups == 0, f"bias {bias}, weight {weight}, {groups} groups")
        return [x[0], weight[0], out_size(x, weight, 2), out_size(x, weight, 3)]

    def compute(x, weight, bias):
        height, width = out_size(x.shape, weight.shape, 2), out_size(x.shape, weight.shape, 3)
        x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
        batch, channels = len(x), weight.shape[1]
        kernels = weight.reshape(groups, -1, *weight.shape[1:])  # [g, M/g, C/g, kh, kw]
        total = np.zeros((batch, groups, kernels.shape[1], height * width), np.float32)
        for row, column in np.ndindex(*weight.shape[2:]):
            top, left = row * dilation[0], column * dilation[1]
            rows = slice(top, top + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (width - 1) * stride[1] + 1, stride[1])
            total += kernels[..., row, column] @ x[:, :, rows, columns].reshape(batch, groups, channels, -1)
        return total.reshape(batch, -1, height, width) + bias[:, None, None]

    return Kernel(3, compute, shape, _same)
