"""The C++ kernels against numpy and `reference`: odd shapes, views, no rows, in pynative and in a graph."""

import ast
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint

from ms_omni.modeling.ops import build
from ms_omni.modeling.ops.reference import Reference
from tests.ops import formulas

try:
    from ms_omni.modeling.ops.cpu import Cpu
except OSError as error:  # the choice among implementations has a test of its own below
    pytest.skip(f"no kernels here: {error}", allow_module_level=True)

RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def integers(high, *shape):
    return RNG.integers(0, high, shape).astype(np.int32)


def angles(*shape):
    x = normal(*shape)
    return np.cos(x), np.sin(x)


# Name, arguments (arrays become tensors), formula or None for `reference`.
CASES = [
    *[
        ("rms_norm", (normal(*shape, d), normal(d), 1e-6), formulas.rms_norm)
        for shape, d in [((1,), 1), ((2, 3), 17), ((5, 1, 2), 64), ((0, 3), 5), ((300,), 1030)]
    ],
    *[
        ("layer_norm", (normal(*shape, d), normal(d), normal(d), 1e-5), formulas.layer_norm)
        for shape, d in [((1,), 3), ((2, 3), 33), ((0,), 5), ((300,), 1030)]
    ],
    *[
        (name, (normal(*shape) * 4,), getattr(formulas, name))
        for name in ("gelu", "gelu_tanh", "silu", "sigmoid")
        for shape in [(1,), (3, 37), (0, 4), (700, 1001)]
    ],
    *[("swiglu", (normal(*shape),), None) for shape in [(1, 2), (3, 5, 14), (0, 6), (500, 2002)]],
    *[
        ("rotary", (normal(*lead, h, 2 * half), *angles(*lead, half)), formulas.rotary)
        for lead, h, half in [((1, 1), 1, 1), ((2, 3), 5, 7), ((9,), 2, 16), ((1, 0), 2, 4), ((2, 300), 8, 32)]
    ],
    *[
        ("linear", (normal(*lead, k), normal(m, k), *bias), lambda x, w, b=0: formulas.f64(x) @ w.T + b)
        for lead, k, m in [((1,), 1, 1), ((2, 1), 19, 7), ((1, 3), 64, 33), ((0,), 4, 3), ((70,), 5, 6)]
        for bias in [(), (normal(m),)]
    ],
    *[
        ("route_topk", (normal(n, e) * 2, k, normalise), None)
        for n, e, k in [(1, 1, 1), (5, 7, 3), (4, 4, 4), (500, 128, 8)]
        for normalise in (True, False)
    ],
    *[
        ("scale_channels", (normal(*shape), normal(shape[-1])), lambda x, s: formulas.f64(x) * s)
        for shape in [(1, 1), (2, 3, 19), (0, 4), (900, 1001)]
    ],
    *[
        ("snake_beta", (normal(b, c, t) * 30, normal(c), normal(c)), formulas.snake_beta)
        for b, c, t in [(1, 1, 1), (2, 3, 37), (1, 4, 0), (2, 64, 5001)]
    ],
    *[
        ("conv1d", (normal(b, c, t), normal(c, 1, w), normal(c), dilation, c), formulas.conv1d)
        for b, c, t, w, dilation in [(1, 2, 7, 7, 1), (2, 5, 23, 3, 4), (1, 96, 301, 7, 1)]
    ],
    *[
        ("weighted_sum_rows", (normal(9, d), integers(9, n, taps), normal(n, taps)), None)
        for n, d, taps in [(1, 1, 1), (4, 13, 3), (40, 48, 16)]
    ],
    *[
        ("transpose", (normal(*shape), axes), lambda x, axes: x.transpose(axes))
        for shape, axes in [
            ((2, 3), (1, 0)),
            ((2, 5, 3, 4), (0, 2, 1, 3)),
            ((2, 5, 3), (0, 2, 1)),
            ((1, 1, 3, 4), (0, 2, 1, 3)),
            ((3, 2, 5, 4), (0, 3, 1, 2)),
            ((0, 2, 3), (2, 0, 1)),
        ]
    ],
    *[("argmax", (normal(*shape),), lambda x: x.argmax(-1)) for shape in [(1, 1), (2, 3, 65), (3, 5001)]],
    *[
        ("draw", (normal(b, v) * 3, RNG.uniform(size=(b, 1)).astype(np.float32), t, k, p), None)
        for b, v in [(1, 1), (5, 97), (3, 2048)]
        for t, k, p in [(1.0, 0, 1.0), (0.7, 50, 0.9), (1.3, 5, 0.5)]
    ],
]

for n, e, k, d, inner in [(1, 3, 1, 6, 5), (1, 8, 8, 64, 33), (7, 5, 2, 17, 40), (300, 4, 3, 70, 65), (60, 2, 1, 130, 64)]:
    index = np.stack([RNG.permutation(e)[:k] for _ in range(n)]).astype(np.int32)
    CASES.append(
        ("experts", (normal(n, d), normal(e, d, 2 * inner), normal(e, inner, d), normal(n, k), index), formulas.experts)
    )
for b, s, t, h, kv, d in [
    (1, 1, 1, 1, 1, 1),
    (2, 1, 9, 6, 2, 5),
    (3, 5, 11, 6, 3, 20),
    (1, 30, 30, 2, 2, 16),
    (1, 1, 3000, 8, 2, 64),
    (1, 100, 100, 2, 1, 8),
]:
    mask = np.where(RNG.uniform(size=(b, s, t)) < 0.4, -1e9, RNG.uniform(size=(b, s, t))).astype(np.float32)
    mask[:, 0] = -1e9  # a query that may see nothing sees everything alike
    arrays = normal(b, s, h, d), normal(b, kv, t, d), normal(b, kv, t, d)
    CASES += [("attention", (*arrays, None, d**-0.5), formulas.attention), ("attention", (*arrays, mask, 0.3), None)]


def run(name, arguments, graph):
    function = getattr(Cpu, name)
    tensors = [Tensor(x) for x in arguments if isinstance(x, np.ndarray)]

    if not graph:
        return function(*[Tensor(x) if isinstance(x, np.ndarray) else x for x in arguments])
    positions = [i for i, x in enumerate(arguments) if isinstance(x, np.ndarray)]
    constants = tuple(x for x in arguments if not isinstance(x, np.ndarray))
    return _Graph(function, len(arguments), positions, constants)(*tensors)


class _Graph(ms.nn.Cell):
    """function(*tensors) with the constants in their positions, as one compiled graph."""

    def __init__(self, function, count, positions, constants):
        super().__init__()
        self.function = function
        self.order = tuple(positions.index(i) if i in positions else -1 for i in range(count))
        self.constants = constants

    @ms.jit
    def construct(self, *tensors):
        arguments, taken = (), 0
        for position in self.order:
            if position >= 0:
                arguments = arguments + (tensors[position],)
            else:
                arguments = arguments + (self.constants[taken],)
                taken += 1
        return self.function(*arguments)


def compare(actual, expected, relative=3e-6):
    actual = actual if isinstance(actual, tuple) else (actual,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, want in zip(actual, expected, strict=True):
        got, want = got.asnumpy(), want.asnumpy() if isinstance(want, Tensor) else np.asarray(want)
        assert got.shape == want.shape
        gap = np.abs(got.astype(np.float64) - want).max(initial=0)
        assert gap <= relative * max(np.abs(want).max(initial=0), 1e-3)


def number_of(case):
    return f"{case[0]}-{'-'.join('x'.join(map(str, x.shape)) for x in case[1] if isinstance(x, np.ndarray))}"


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
@pytest.mark.parametrize("case", CASES, ids=number_of)
def test_kernel(case, graph):
    name, arguments, formula = case
    if formula is None or (not arguments[0].size and name == "gelu"):  # numpy cannot vectorise erf over nothing
        formula = getattr(Reference, name)
        expected = formula(*[Tensor(x) if isinstance(x, np.ndarray) else x for x in arguments])
    else:
        expected = formula(*arguments)
    compare(run(name, arguments, graph), expected)


def views(x):
    """Tensors that share memory with another and are not laid out in order, with the arrays that they stand for."""
    wide = Tensor(np.concatenate([x, x + 1], -1))
    return [
        (mint.permute(Tensor(np.ascontiguousarray(x.transpose(2, 0, 1))), (1, 2, 0)), x),
        (wide[..., x.shape[-1] :], x + 1),
        (Tensor(np.concatenate([x, x * 2], 1))[:, x.shape[1] :], x * 2),
        (mint.unsqueeze(Tensor(x[:, 0]), 1).broadcast_to(x.shape), np.broadcast_to(x[:, :1], x.shape)),
        (Tensor(np.repeat(x, 2, 0))[::2], x),
    ]


@pytest.mark.parametrize("view", range(5))
def test_views_are_read_as_what_they_stand_for(view):
    x, array = views(normal(3, 4, 6))[view]
    weight = normal(6)
    compare(Cpu.rms_norm(x, Tensor(weight), 1e-6), formulas.rms_norm(array, weight, 1e-6))
    compare(Cpu.swiglu(x), Reference.swiglu(Tensor(array.copy())))
    compare(Cpu.transpose(x, (0, 2, 1)), array.transpose(0, 2, 1))
    cos, sin = angles(3, 3)
    compare(Cpu.rotary(x, Tensor(cos), Tensor(sin)), formulas.rotary(array, cos, sin))
    keys = mint.unsqueeze(x, 1)
    compare(
        Cpu.attention(Tensor(x.asnumpy()[:, :2, None]), keys, keys, None, 0.5),
        formulas.attention(array[:, :2, None], array[:, None], array[:, None], None, 0.5),
    )


@ms.jit
def _graph_of_views(x, weight):
    transposed = mint.permute(x, (2, 0, 1))
    return (
        Cpu.silu(transposed),
        Cpu.silu(x[:, 1:]),
        Cpu.silu(x[..., 2:4]),
        Cpu.rms_norm(x[1], weight, 1e-6),
        Cpu.silu(transposed.reshape(6, 12)),
        Cpu.silu(x.swapaxes(0, 2)),
    )


def test_views_in_a_graph():
    x, weight = normal(3, 4, 6), normal(6)
    transposed = x.transpose(2, 0, 1)
    expected = (
        *map(formulas.silu, (transposed, x[:, 1:], x[..., 2:4])),
        formulas.rms_norm(x[1], weight, 1e-6),
        formulas.silu(transposed.reshape(6, 12)),
        formulas.silu(x.swapaxes(0, 2)),
    )
    compare(_graph_of_views(Tensor(x), Tensor(weight)), expected)


def test_other_types_go_to_the_reference():
    x = Tensor(normal(3, 8)).astype(ms.float16)
    assert Cpu.silu(x).dtype == ms.float16


def test_infinities_and_nan_keep_their_meaning():
    x = Tensor(np.array([np.inf, -np.inf, np.nan, 200, -200], np.float32))
    silu = Cpu.silu(x).asnumpy()
    assert silu[0] == np.inf and np.isnan(silu[2]) and silu[3] == 200 and abs(silu[4]) < 1e-30
    assert np.isnan(Cpu.rms_norm(x.reshape(1, 5), Tensor(np.ones(5, np.float32)), 1e-6).asnumpy()).all()


LOADING = {"turn"}  # compiled by the first load and not with the operators
SOURCES = sorted({file.removesuffix(".cpp") for file in os.listdir(build.FOLDER) if file.endswith(".cpp")} - LOADING)
CHOICE = """
import sys, numpy as np, mindspore as ms
from ms_omni.modeling import ops
x = ms.Tensor(np.array([[3.0, 4.0]], np.float32))
print(dict((name, (used, why)) for name, used, why in ops.describe())["rms_norm"])
print(ops.rms_norm(x, ms.Tensor(np.ones(2, np.float32)), 0.0).asnumpy().tolist())
"""


def chosen(tmp_path, **environment):
    inherited = {key: value for key, value in os.environ.items() if key not in ("MS_OMNI_OPS", "CXX")}
    done = subprocess.run(
        [sys.executable, "-c", CHOICE],
        capture_output=True,
        text=True,
        check=True,
        env={**inherited, "XDG_CACHE_HOME": str(tmp_path), **environment},
    )
    choice, values = done.stdout.strip().splitlines()[-2:]
    assert np.allclose(ast.literal_eval(values), [[0.848528, 1.131371]], atol=1e-5)
    return choice, [line for line in done.stderr.splitlines() if "reference operators" in line]


@pytest.mark.slow
def test_the_kernels_are_compiled_once_and_found_again(tmp_path):
    assert chosen(tmp_path) == ("('cpu', 'the device is CPU')", [])
    files = os.listdir(tmp_path / "ms_omni")
    assert sorted(file.split("-")[0] for file in files) == SOURCES
    before = os.stat(tmp_path / "ms_omni" / files[0]).st_mtime_ns
    assert chosen(tmp_path, MS_OMNI_OPS="cpu") == ("('cpu', 'MS_OMNI_OPS=cpu')", [])
    assert os.stat(tmp_path / "ms_omni" / files[0]).st_mtime_ns == before


def test_reference_can_be_forced(tmp_path):
    assert chosen(tmp_path, MS_OMNI_OPS="reference") == ("('reference', 'MS_OMNI_OPS=reference')", [])
    assert not os.listdir(tmp_path)


def test_without_a_compiler_one_line_says_that_it_is_slower(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    choice, lines = chosen(tmp_path, PATH=str(empty))
    assert choice.startswith("('reference', \"there is no C++ compiler 'g++'") and len(lines) == 1


def test_a_compiler_that_fails_does_not_fail_the_program(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "error: no space" >&2\nexit 1\n')
    compiler.chmod(0o755)
    choice, lines = chosen(tmp_path, CXX=str(compiler))
    assert choice.startswith("('reference', ") and "error: no space" in choice and len(lines) == 1
    assert not os.listdir(tmp_path / "ms_omni")


def test_the_source_is_part_of_the_package():
    assert os.path.isfile(build.source("kernels"))
