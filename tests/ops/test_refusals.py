"""Every entry of the C++ files on arrays that do not fit one another: an error with a reason, and no memory is touched."""

import ctypes
import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.errors import InputError
from ms_omni.modeling.layer import Cell
from ms_omni.modeling.ops import build
from tests.ops import entries

try:
    from ms_omni.modeling.ops.cpu import Cpu
except OSError as error:
    pytest.skip(f"no kernels here: {error}", allow_module_level=True)

FILES = ("kernels", "dense", "attention", "wave", "fused", "layers")
INT, LONG, CODE = np.int32, np.int64, np.int8
# Shapes that fit: of the inputs, and of the results. A dtype behind a shape: other than float32.
ROWS = [(2, 3, 8)]
ATTENTION = [(2, 3, 4, 8), (2, 2, 5, 8), (2, 2, 5, 6), (1,), (2, 3, 5)], [(2, 3, 24)]
PAGED = [(2, 3, 4, 8), (5, 2, 16, 8), (5, 2, 16, 6), ((2, 4), INT), ((2,), INT), ((2,), INT), (1,)], [(2, 3, 24)]
ENTRIES = {
    **dict.fromkeys(("silu", "sigmoid", "gelu", "gelu_tanh"), (ROWS, ROWS)),
    "rms_norm": ([*ROWS, (8,), (1,)], ROWS),
    "layer_norm": ([*ROWS, (8,), (8,), (1,)], ROWS),
    "swiglu": ([(2, 3, 16)], ROWS),
    "rotary": ([(2, 3, 4, 8), (2, 3, 4), (2, 3, 4)], [(2, 3, 4, 8)]),
    "route_topk": ([(3, 8), ((2,), INT)], [(3, 2), ((3, 2), INT)]),
    "scale_channels": ([*ROWS, (8,)], ROWS),
    "weighted_sum_rows": ([(5, 8), ((3, 2), INT), (3, 2)], [(3, 8)]),
    "transpose": ([(2, 3, 4), ((3, 1, 2), INT)], [(4, 2, 3)]),
    "argmax": ([(2, 3, 8)], [((2, 3), INT)]),
    "draw": ([(2, 8), (2, 1), (3,)], [((2, 1), INT)]),
    "linear": ([*ROWS, (64, 8), (64,)], [(2, 3, 64)]),
    "linear_coded": ([*ROWS, ((64, 8), CODE), (64, 2), (64, 2), (64,)], [(2, 3, 64)]),
    "embedding": ([((2, 3), INT), (9, 8), ((1,), INT)], [(2, 3, 8)]),
    "embedding_coded": ([((2, 3), INT), ((9, 8), CODE), (9, 2), (9, 2), ((8,), INT), ((1,), INT)], [(2, 3, 8)]),
    "experts_coded": (
        [(3, 8), ((4, 10, 8), CODE), (4, 10, 2), (4, 10, 2), ((4, 8, 5), CODE), (4, 8, 1), (4, 8, 1)]
        + [(3, 2), ((3, 2), INT), ((1,), INT)],
        [(3, 8)],
    ),
    "experts": ([(3, 8), (4, 8, 10), (4, 5, 8), (3, 2), ((3, 2), INT), ((1,), INT)], [(3, 8)]),
    "conv2d": ([(2, 3, 9, 8), (5, 3, 3, 3), (5,), ((1, 2), INT)], [(2, 5, 9, 8)]),
    "downsample": ([(2, 3, 9, 8), (5, 3, 3, 3), (5,), (5, 5, 3, 3), (5,), (5, 5, 3, 3), (5,)], [(2, 5, 2, 1)]),
    "attention": ATTENTION,
    "attention_tiles": ATTENTION,
    **dict.fromkeys(("paged_attention", "paged_attention_tiles"), PAGED),
    "encode_rows": ([(3, 8)], [((3, 8), CODE), (3, 1)]),
    "packed_attention": ([(7, 2, 8), (7, 2, 8), (7, 2, 8), (1,), ((1,), INT)], [(7, 16)]),
    "conv1d": ([(2, 6, 20), (4, 3, 3), (4,), ((2, 2), INT)], [(2, 4, 16)]),
    "conv_transpose1d": ([(2, 6, 5), (6, 4, 8), (4,), ((4, 2), INT)], [(2, 4, 22)]),
    "snake_beta": ([(2, 4, 9), (4,), (4,)], [(2, 4, 9)]),
    "residual_unit": (
        [(2, 4, 9), (2, 4, 6), (4,), (4,), (4, 4, 3), (4,), (4,), (4,), (4, 4, 1), (4,), ((3,), INT)],
        [(2, 4, 9)],
    ),
    "decoder_step": ([(2, 1, 8), (2, 1, 2), (2, 1, 2), (9, 8), ((40,), LONG)], [(2, 1, 9), (2, 1, 8)]),
    "code_frame": ([(2, 1, 8), ((2, 1), INT), (2, 3), ((40,), LONG)], [((2, 4), INT), (2, 1, 8)]),
    "encoder_layers": ([(7, 8), ((1,), INT), ((40,), LONG), (7, 2), (7, 2)], [(7, 8)]),
    "projector": ([(8, 6), ((23,), LONG), ((12,), INT), ((5,), INT)], [(4, 5)]),
    "decoder_chunk": ([(1, 3, 8), (1, 3, 2), (1, 3, 2), ((40,), LONG)], [(1, 3, 8)]),
}
TABLES = ("decoder_step", "code_frame", "encoder_layers", "projector", "decoder_chunk")  # of zeros they describe nothing
# (entry, input, axis) whose length nothing else tells.
FREE = {
    ("embedding", 1, 0),
    *(("weighted_sum_rows", 0, 0), ("decoder_step", 4, 0), ("code_frame", 3, 0), ("decoder_chunk", 3, 0)),
    *(("encoder_layers", 1, 0), ("encoder_layers", 2, 0), ("projector", 1, 0)),
    *(("paged_attention", 3, 1), ("paged_attention_tiles", 3, 1)),
    *(("route_topk", 0, 1), ("argmax", 0, 2), ("draw", 0, 1), ("downsample", 0, 2), ("downsample", 0, 3)),
}
SCALES = {  # (entry, input) that may be float16 as well
    *(("linear_coded", 2), ("linear_coded", 3), ("embedding_coded", 2), ("embedding_coded", 3)),
    *(("experts_coded", argument) for argument in (2, 3, 5, 6)),
}
LIBRARIES = [ctypes.CDLL(build.library(file)) for file in FILES]


def fitting(name):
    """Arrays of zeros, but where those mean nothing."""
    arrays = [
        np.zeros(*(spec if isinstance(spec[0], tuple) else (spec, np.float32))) for part in ENTRIES[name] for spec in part
    ]
    values = {"packed_attention": [(4, 7)], "draw": [(2, 1)], "experts": [(5, -1)], "experts_coded": [(9, -1)]}
    values |= {key: [(5, 1)] for key in ("paged_attention", "paged_attention_tiles")}
    for argument, value in values.get(name, ()):
        arrays[argument][:] = value
    return arrays


def call(name, arrays):
    """(what the entry returns, the reason of the last refusal in its file)"""
    library = next(library for library in LIBRARIES if hasattr(library, f"ms_omni_{name}"))
    library.ms_omni_refusal.restype = ctypes.c_char_p
    returned = entries.call(getattr(library, f"ms_omni_{name}"), arrays)
    return returned, library.ms_omni_refusal().decode()


def test_all_entries_are_here():
    sources = "".join((Path(build.FOLDER) / f"{file}.cpp").read_text() for file in FILES)
    assert set(re.findall(r"^KERNEL\((\w+),", sources, re.M)) == ENTRIES.keys()


def other_shapes(shape):
    for axis, length in enumerate(shape):
        for wrong in {length + 1, length - 1, 0, 2 * length} - {length}:
            yield axis, (*shape[:axis], wrong, *shape[axis + 1 :])
    yield None, (*shape, 1)
    yield None, (1, *shape)
    yield None, shape[1:]
    yield None, ()


@pytest.mark.parametrize("name", ENTRIES)
def test_what_does_not_fit_is_refused(name):
    whole = fitting(name)
    if name not in TABLES:
        assert call(name, whole)[0] == 0
    for argument, array in enumerate(whole):
        wrong = [
            np.zeros(array.shape, kind)
            for kind in (np.float16, np.float64, INT, LONG, np.float32)
            if kind != array.dtype and (kind != np.float16 or (name, argument) not in SCALES)
        ]
        wrong += [
            np.zeros(shape, array.dtype) for axis, shape in other_shapes(array.shape) if (name, argument, axis) not in FREE
        ]
        for other in wrong:
            returned, reason = call(name, [*whole[:argument], other, *whole[argument + 1 :]])
            assert returned == 1, (argument, other.dtype, other.shape)
            assert reason.startswith(f"{name}: "), reason
    assert call(name, whole[:-1])[0] == call(name, [*whole, whole[0]])[0] == 1  # one too few, one too many


NOTHING = {  # arguments that have an axis of rows in front
    **{name: (0, -1) for name, (inputs, _) in ENTRIES.items() if inputs[0] in (ROWS[0], (2, 3, 16))},
    **dict.fromkeys(("conv1d", "conv_transpose1d", "conv2d", "downsample", "snake_beta"), (0, -1)),
    **dict.fromkeys(("attention", "attention_tiles"), (0, 1, 2, 4, 5)),
    "experts": (0, 3, 4, 6),
    "experts_coded": (0, 7, 8, 10),
    **dict.fromkeys(("embedding", "embedding_coded"), (0, -1)),
    "rotary": (0, 1, 2, 3),
    "route_topk": (0, 2, 3),
    "weighted_sum_rows": (1, 2, 3),
    "draw": (0, 1, 3),
    "residual_unit": (0, 1, -1),
}


@pytest.mark.parametrize("name", NOTHING)
def test_no_rows_are_fine(name):
    arrays = fitting(name)
    for argument in NOTHING[name]:
        arrays[argument] = arrays[argument][:0]
    assert call(name, arrays)[0] == 0


def test_no_outputs_are_fine():
    x, weight, bias, y = fitting("linear")
    assert call("linear", [x, weight[:0], bias[:0], y[..., :0]])[0] == 0


@pytest.mark.parametrize(
    ("name", "argument", "value", "reason"),
    [
        ("experts", 4, 4, "indices hold 4, but there are 4 experts"),
        ("experts", 4, -1, "indices hold -1, but there are 4 experts"),
        ("experts_coded", 8, 4, "indices hold 4, but there are 4 experts"),
        ("weighted_sum_rows", 1, 5, "index holds 5, expected 0 to 4"),
        ("weighted_sum_rows", 1, -1, "index holds -1, expected 0 to 4"),
        ("packed_attention", 4, 8, "the segments do not cover the rows of q"),
        ("packed_attention", 4, 6, "the segments do not cover the rows of q"),
        *(
            (name, argument, value, reason)
            for name in ("paged_attention", "paged_attention_tiles")
            for argument, value, reason in (
                (3, 5, "tables hold 5, expected 0 to 4"),
                (3, -1, "tables hold -1, expected 0 to 4"),
                (4, 1, "first holds 1 for a length of 1"),
                (4, -1, "first holds -1 for a length of 1"),
                (5, 65, "lengths hold 65, expected 1 to 64"),
                (5, 0, "lengths hold 0, expected 1 to 64"),
            )
        ),
        ("decoder_step", 4, 0, "the table does not describe a stack"),
        ("decoder_step", 4, 1 << 40, "the table does not describe a stack"),
        ("code_frame", 3, 0, "the table does not describe a predictor of 3 codes"),
        ("encoder_layers", 2, 0, "the table does not describe layers"),
        ("encoder_layers", 2, 1 << 40, "the table does not describe layers"),
        ("projector", 1, 0, "the table does not describe a projector"),
        ("projector", 1, 1 << 40, "the table does not describe a projector"),
        ("decoder_chunk", 3, 0, "the table does not describe a stack"),
        ("decoder_chunk", 3, 1 << 40, "the table does not describe a stack"),
    ],
)
def test_values_that_lead_outside_are_refused(name, argument, value, reason):
    arrays = fitting(name)
    arrays[argument][...] = value
    assert call(name, arrays) == (1, f"{name}: {reason}")


def test_what_means_nothing_is_no_crash():
    arrays = fitting("draw")
    for settings in ([np.nan, 3, np.nan], [0, -5, 0], [1, np.inf, 1], [1, np.nan, 1]):
        arrays[0][:], arrays[2][:] = np.nan, settings
        assert call("draw", arrays)[0] == 0 and 0 <= arrays[3].min() <= arrays[3].max() < 8
    logits = np.full((3, 8), np.nan, np.float32)
    indices = Cpu.route_topk(Tensor(logits), 2, True)[1].asnumpy()
    assert 0 <= indices.min() <= indices.max() < 8


def zeros(*shape):
    return Tensor(np.zeros(shape, np.float32))


class Sum(Cell):
    def construct(self, index):
        return Cpu.weighted_sum_rows(zeros(5, 8), index, zeros(3, 2))


@ms.jit
def in_a_graph(x, weight):
    return Cpu.linear(x, weight)


def test_an_operator_says_what_does_not_fit():
    with pytest.raises(
        InputError, match=r"^linear: weight is \[5, 8\], expected .*\[M, K\], where M is 5, K is 1; got \[4096, 1\]"
    ):
        Cpu.linear(zeros(4096, 1), zeros(5, 8))
    with pytest.raises(InputError, match=r"^linear: weight is \[5, 8\], expected"):
        in_a_graph(zeros(4096, 1), zeros(5, 8))


def test_a_cell_says_which_values_are_refused():
    with pytest.raises(InputError, match=r"^weighted_sum_rows: index holds 7, expected 0 to 4$"):
        Sum()(Tensor(np.full((3, 2), 7, np.int32)))
