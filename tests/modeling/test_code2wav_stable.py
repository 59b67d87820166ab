"""Splitting a stream changes no bit where the operators are the C++ kernels: whole vocoders, then the kernels alone."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.config import Qwen3OmniMoeCode2WavConfig
from ms_omni.modeling import ops
from ms_omni.modeling.code2wav import CHUNK_FRAMES, Code2Wav
from ms_omni.modeling.layer import lazy_parameters
from ms_omni.modeling.ops.reference import Reference
from tests.ops import formulas
from tests.ops.conftest import close  # noqa: F401
from tests.reference import code2wav_cases as cases

if dict(row[:2] for row in ops.describe())["conv1d"] != "cpu":
    pytest.skip("the operators in force have no order of summation of their own", allow_module_level=True)

FRAMES = CHUNK_FRAMES + 5
SPLITS = {"1": [1] * 16 + [39], "3": [3] * 8 + [31], "7": [7] * 8, "50": [50] * 2, "mixed": [2, 1, 24, 0, 9, 1, 18]}


def build(geometry, saturated):
    """A vocoder with the cases' weights, or with unit normals everywhere, which drives it far into its clipping."""
    rng = np.random.default_rng(11)
    with lazy_parameters(ms.float32):
        vocoder = Code2Wav(Qwen3OmniMoeCode2WavConfig.from_dict(cases.GEOMETRIES[geometry]))
    for name, parameter in vocoder.parameters_and_names():
        shape = tuple(parameter.shape)
        values = rng.standard_normal(shape) if saturated else cases.weight(name, shape)
        parameter.set_data(Tensor(values.astype(np.float32)))
    return vocoder


@pytest.fixture(scope="module", params=[(name, loud) for name in cases.GEOMETRIES for loud in (False, True)], ids=str)
def vocoder(request):
    return build(*request.param)


@pytest.fixture(scope="module")
def codes(vocoder):
    shape = (2, vocoder.config.num_quantizers, FRAMES)
    return np.random.default_rng(5).integers(0, vocoder.config.codebook_size, shape)


@pytest.fixture(scope="module")
def whole(vocoder, codes):
    return vocoder.decode(codes).asnumpy()


@pytest.mark.parametrize("split", SPLITS)
def test_pieces_equal_the_whole(split, vocoder, codes, whole):
    stream, pieces, start = vocoder.stream(), [], 0
    for frames in SPLITS[split]:
        pieces.append(stream.step(codes[..., start : start + frames]).asnumpy())
        start += frames
    assert start >= FRAMES
    assert np.abs(np.concatenate(pieces, -1) - whole).max() == 0.0


def test_rows_equal_themselves_alone(vocoder, codes, whole):
    for row in range(len(codes)):
        assert np.abs(vocoder.decode(codes[row : row + 1]).asnumpy() - whole[row : row + 1]).max() == 0.0


RNG = np.random.default_rng(2)
LENGTHS = [*range(1, 41), 63, 64, 65, 130, 300]


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


CONVOLUTIONS = [  # channels, outputs, width, dilation, groups
    (1, 1, 1, 1, 1),
    (3, 7, 7, 1, 1),
    (65, 13, 7, 3, 1),
    (130, 6, 1, 1, 1),
    (6, 1, 7, 9, 1),
    (6, 9, 3, 2, 3),
    (5, 5, 7, 1, 5),
]


@pytest.mark.parametrize("channels, outputs, width, dilation, groups", CONVOLUTIONS)
def test_conv1d(channels, outputs, width, dilation, groups, close):
    x, weight, bias = normal(2, channels, 420), normal(outputs, channels // groups, width), normal(outputs)
    settings, reach = (*map(Tensor, (weight, bias)), dilation, groups), (width - 1) * dilation
    whole = ops.conv1d(Tensor(x), *settings).asnumpy()
    close(whole, formulas.conv1d(x, weight, bias, dilation, groups))
    for length in LENGTHS:
        part = x[1:, :, length : 2 * length + reach][..., :420]
        result = ops.conv1d(Tensor(part.copy()), *settings).asnumpy()
        assert np.array_equal(result, whole[1:, :, length : length + result.shape[-1]])
    assert ops.conv1d(Tensor(x[..., :reach].copy()), *settings).shape == (2, outputs, 0) if reach else True


@pytest.mark.parametrize(
    "channels, outputs, width, stride",
    [
        (1, 1, 1, 1),
        (65, 5, 16, 8),
        (130, 7, 2, 2),
        (3, 4, 6, 3),
        (4, 30, 7, 3),
        (2, 3, 3, 4),
    ],
)
def test_conv_transpose1d(channels, outputs, width, stride, close):
    """Outputs that have all their contributions in the piece are those of the whole."""
    x, weight, bias = normal(2, channels, 330), normal(channels, outputs, width), normal(outputs)
    settings, reach = (*map(Tensor, (weight, bias)), stride), -(-width // stride) - 1
    whole = ops.conv_transpose1d(Tensor(x), *settings).asnumpy()
    close(whole, formulas.conv_transpose1d(x, weight, bias, stride))
    for length in LENGTHS:
        part = x[1:, :, 17 : 17 + length + reach]
        result = ops.conv_transpose1d(Tensor(part.copy()), *settings).asnumpy()
        result = result[..., reach * stride : part.shape[-1] * stride]
        first = (17 + reach) * stride
        assert np.array_equal(result, whole[1:, :, first : first + result.shape[-1]])


def test_conv_transpose1d_leaves_out_both_ends():
    x, weight, bias = (Tensor(normal(*shape)) for shape in ((2, 9, 50), (9, 4, 6), (4,)))
    whole = ops.conv_transpose1d(x, weight, bias, 3).asnumpy()
    assert np.array_equal(ops.conv_transpose1d(x, weight, bias, 3, 2).asnumpy(), whole[..., 2:-2])
    assert ops.conv_transpose1d(x[..., :1], weight, bias, 3, 3).shape == (2, 4, 0)


@pytest.mark.parametrize("channels, width, dilation", [(1, 1, 1), (5, 7, 9), (24, 3, 2), (70, 7, 1)])
def test_residual_unit(channels, width, dilation, close):
    """As its parts one by one, and in pieces as in the whole, bit by bit."""
    reach, total = (width - 1) * dilation, 700
    x, before = normal(2, channels, total), normal(2, channels, reach)
    snakes = [tuple(Tensor(normal(channels) * 0.3) for _ in range(2)) for _ in range(2)]
    convs = [tuple(Tensor(normal(*shape) / 8) for shape in ((channels, channels, w), (channels,))) for w in (width, 1)]
    parts = (snakes[0], convs[0], dilation, snakes[1], convs[1])
    whole = ops.residual_unit(Tensor(x), Tensor(before), *parts).asnumpy()
    y = Reference.snake_beta(Tensor(np.concatenate([before, x], -1)), *snakes[0])
    y = Reference.snake_beta(Reference.conv1d(y, *convs[0], dilation), *snakes[1])
    close(whole, x + Reference.conv1d(y, *convs[1]).asnumpy(), 5e-6)
    history = np.concatenate([before, x], -1)
    for length in LENGTHS:
        part = slice(length, min(2 * length, total))
        result = ops.residual_unit(Tensor(x[..., part].copy()), Tensor(history[..., length : length + reach].copy()), *parts)
        assert np.array_equal(result.asnumpy(), whole[..., part])


@pytest.mark.parametrize("inputs, outputs", [(1, 1), (48, 96), (131, 19), (300, 7)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear(inputs, outputs, biased, close):
    x, weight, bias = normal(420, inputs), normal(outputs, inputs), normal(outputs) if biased else None
    settings = (Tensor(weight), Tensor(bias) if biased else None, True)
    whole = ops.linear(Tensor(x), *settings).asnumpy()
    close(whole, x.astype(np.float64) @ weight.T.astype(np.float64) + (0 if bias is None else bias))
    for length in LENGTHS:
        assert np.array_equal(ops.linear(Tensor(x[9 : 9 + length]), *settings).asnumpy(), whole[9 : 9 + length])
    assert ops.linear(Tensor(np.zeros((2, 0, inputs), np.float32)), *settings).shape == (2, 0, outputs)


def test_attention_of_queries_alone_and_without_excluded_keys():
    """A query's result is the same beside 400 others and keys out of its window as alone with its window."""
    total, window = 400, 12
    q, k, v = normal(1, total, 4, 12), normal(1, 2, total, 12), normal(1, 2, total, 12)
    distance = np.arange(total)[:, None] - np.arange(total)
    mask = np.where((distance >= 0) & (distance < window), 0, -1e9).astype(np.float32)[None]
    whole = ops.attention(*map(Tensor, (q, k, v, mask)), 0.3, True).asnumpy()
    for i in range(0, total, 7):
        visible = slice(max(i - window + 1, 0), i + 1)
        part = [x.copy() for x in (q[:, i : i + 1], k[:, :, visible], v[:, :, visible], mask[:, i : i + 1, visible])]
        assert np.array_equal(ops.attention(*map(Tensor, part), 0.3, True).asnumpy(), whole[:, i : i + 1])


ELEMENTWISE = {name: getattr(ops, name) for name in ("silu", "gelu", "gelu_tanh")}
ELEMENTWISE["snake_beta"] = lambda x: ops.snake_beta(x.reshape(1, 1, -1), Tensor([0.3]), Tensor([-0.2])).reshape(-1)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elements_do_not_depend_on_their_place(name):
    x = normal(300) * 5
    whole = ELEMENTWISE[name](Tensor(x)).asnumpy()
    for length in range(1, 41):
        for start in (0, 1, 5, 64, 131, 300 - length):
            part = slice(start, start + length)
            assert np.array_equal(ELEMENTWISE[name](Tensor(x[part])).asnumpy(), whole[part])


@pytest.mark.parametrize("d", [1, 12, 48, 50, 130])
def test_rows_do_not_depend_on_their_place(d):
    x, weight, bias = normal(90, d), Tensor(normal(d)), Tensor(normal(d))
    index, mean = RNG.integers(0, 90, (90, 16)).astype(np.int32), np.full((90, 16), 1 / 16, np.float32)
    functions = [
        lambda s: ops.rms_norm(Tensor(x[s]), weight, 1e-5),
        lambda s: ops.scale_channels(Tensor(x[s]), weight),
        lambda s: ops.layer_norm(Tensor(x[s]), weight, bias, 1e-6),
        lambda s: ops.weighted_sum_rows(Tensor(x), Tensor(index[s]), Tensor(mean[s])),
    ]
    for function in functions:
        whole = function(slice(0, 90)).asnumpy()
        for length in range(1, 41):
            part = slice(length, 2 * length)
            assert np.array_equal(function(part).asnumpy(), whole[part])


def test_views_are_read_as_they_look(close):
    x, weight, bias = normal(2, 40, 6), normal(5, 6, 3), normal(5)
    close(
        ops.conv1d(Tensor(x).transpose(0, 2, 1), *map(Tensor, (weight, bias))),
        formulas.conv1d(x.transpose(0, 2, 1), weight, bias, 1, 1),
    )
    cut, transposed = slice(3, 21), np.ascontiguousarray(weight.transpose(1, 0, 2))
    result = ops.conv_transpose1d(Tensor(x).transpose(0, 2, 1)[..., cut], Tensor(transposed), Tensor(bias), 2)
    close(result, formulas.conv_transpose1d(x.transpose(0, 2, 1)[..., cut], transposed, bias, 2))
    close(ops.linear(Tensor(x)[:, ::2], Tensor(weight[..., 0].copy()), None, True), x[:, ::2] @ weight[..., 0].T)


@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_transposes_of_one_shape_are_not_mixed_up(axes):
    x = normal(2, 3, 4)
    assert np.array_equal(ops.transpose(Tensor(x), axes).asnumpy(), x.transpose(axes))
