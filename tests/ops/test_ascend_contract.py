"""Each kernel of Ascend on CPU: right calls pass MindSpore's checks and stop for want of a kernel, wrong ones are refused.

MindSpore infers shapes and types before it looks for a kernel, so a call that ends with "unregistered" has the arguments
that the kernel wants, as far as MindSpore looks. Much it does not look at; the emulation refuses that as well, because the
documentation excludes it. `by` says who refuses a wrong call: both, or the emulation ("documentation") alone.
"""

import importlib.util

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from ms_omni.modeling.ops import ascend_kernels, emulation


def raw_kernels():
    """The module as it is written, whatever has been installed over it in this process."""
    spec = importlib.util.spec_from_file_location("raw_ascend_kernels", ascend_kernels.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RAW = raw_kernels()


class T:
    """A tensor to be made: a shape of random floats in the dtype under test, or given values and another dtype."""

    def __init__(self, *shape, values=None, dtype=None, buffer=False):
        self.shape, self.values, self.dtype, self.buffer = shape, values, dtype, buffer

    def tensor(self, dtype):
        if self.values is not None:
            return Tensor(np.array(self.values), self.dtype)
        values = np.random.default_rng(3).uniform(-1, 1, self.shape).astype(np.float32)
        made = Tensor(values).astype(self.dtype or dtype)
        return Parameter(made) if self.buffer else made


def int32(*values):
    return T(values=values, dtype=ms.int32)


def int64(*values):
    return T(values=values, dtype=ms.int64)


def mask(*shape):
    return T(values=np.zeros(shape, bool), dtype=ms.bool_)


Q, KV, STEP = T(2, 8, 5, 32), T(2, 2, 9, 32), T(2, 8, 1, 32)
PACKED, ROWS, EXPERTS = T(12, 4, 32), T(6, 32), T(4, 32, 24)
BUFFER = T(7, 32, buffer=True)
GRID = [[0, 1], [2, 1], [0, 3]]
FLOAT = ms.float32

RIGHT = {
    "fused_infer_attention": [
        (Q, KV, KV, mask(2, 1, 5, 9), 2, 0.2, "BNSD_BSND"),
        (STEP, KV, KV, mask(2, 1, 1, 9), 2, 0.2, "BNSD"),
        (T(3, 7, 4, 32), T(3, 7, 4, 32), T(3, 7, 4, 32), None, 4, 0.2, "BSND"),
    ],
    "varlen_attention": [(PACKED, PACKED, PACKED, (5, 12), 0.2), (PACKED, PACKED, PACKED, (12,), 0.2)],
    "rms_norm": [(T(2, 3, 32), T(32), 1e-6)],
    "layer_norm": [(T(2, 3, 32), T(32), T(32), 1e-5)],
    "gelu": [(T(3, 4), "none"), (T(3, 4), "tanh")],
    "swiglu": [(T(2, 3, 32),)],
    "rotary_position_embedding": [(T(1, 6, 4, 32), T(1, 6, 1, 32), T(1, 6, 1, 32))],
    "topk": [(T(3, 9), 4)],
    "moe_init_routing": [(T(3, 32), int32(*GRID), 4)],
    "grouped_matmul": [(ROWS, EXPERTS, int64(2, 4, 4, 6))],
    "moe_token_unpermute": [(ROWS, int32(3, 1, 0, 2, 5, 4), T(3, 2))],
    "dense": [(T(2, 3, 32), T(8, 32), T(8)), (T(2, 32), T(8, 32), None)],
    "conv2d": [
        (T(1, 4, 9, 9), T(6, 4, 3, 3), T(6), (2, 2), (1, 1), (1, 1), 1),
        (T(1, 4, 1, 9), T(6, 4, 1, 3), T(6), (1, 1), (0, 0), (1, 2), 1),
    ],
    "index_copy": [(BUFFER, int32(3, 1), T(2, 32))],
}

BOTH, DOCUMENTATION = "both", "documentation"

WRONG = [
    ("fused_infer_attention", (Q, KV, KV, None, 2, 0.2, "BNDS"), BOTH, "a layout that does not exist"),
    ("fused_infer_attention", (Q, KV, KV, None, 2, "0.2", "BNSD"), DOCUMENTATION, "a scale that is no number"),
    ("fused_infer_attention", (Q, KV, KV, None, 8, 0.2, "BNSD"), DOCUMENTATION, "another number of kv heads"),
    ("fused_infer_attention", (T(2, 7, 5, 32), KV, KV, None, 2, 0.2, "BNSD"), DOCUMENTATION, "heads not in groups"),
    ("fused_infer_attention", (Q, T(2, 2, 9, 16), T(2, 2, 9, 16), None, 2, 0.2, "BNSD"), DOCUMENTATION, "channels"),
    ("fused_infer_attention", (Q, KV, T(2, 2, 8, 32), None, 2, 0.2, "BNSD"), DOCUMENTATION, "values fewer than keys"),
    (
        "fused_infer_attention",
        (T(2, 8, 5, 24), T(2, 2, 9, 24), T(2, 2, 9, 24), None, 2, 0.2, "BNSD"),
        DOCUMENTATION,
        "channels no multiple of 16",
    ),
    ("fused_infer_attention", (Q, KV, KV, mask(2, 1, 5, 8), 2, 0.2, "BNSD"), DOCUMENTATION, "a mask too narrow"),
    ("fused_infer_attention", (Q, KV, KV, T(2, 1, 5, 9), 2, 0.2, "BNSD"), DOCUMENTATION, "an additive mask"),
    ("fused_infer_attention", (STEP, KV, KV, None, 2, 0.2, "BNSD_BSND"), DOCUMENTATION, "that layout for one query"),
    ("varlen_attention", (Q, Q, Q, (5, 12), 0.2), DOCUMENTATION, "four axes"),
    ("varlen_attention", (PACKED, PACKED, PACKED, (5, 7), 0.2), DOCUMENTATION, "lengths instead of ends"),
    ("varlen_attention", (PACKED, PACKED, PACKED, (5, 5, 12), 0.2), DOCUMENTATION, "an empty segment"),
    ("varlen_attention", (PACKED, T(12, 2, 32), T(12, 2, 32), (12,), 0.2), DOCUMENTATION, "fewer kv heads"),
    ("rms_norm", (T(2, 3, 32), T(31), 1e-6), BOTH, "a weight too short"),
    ("rms_norm", (T(2, 3, 32), T(32), "1e-6"), BOTH, "eps that is no number"),
    ("rms_norm", (T(2, 3, 32), int32(*range(32)), 1e-6), DOCUMENTATION, "an integer weight"),
    ("layer_norm", (T(2, 3, 32), T(31), T(32), 1e-5), BOTH, "a weight too short"),
    ("gelu", (T(3, 4), "erf"), BOTH, "an approximation that does not exist"),
    ("swiglu", (T(2, 31),), BOTH, "an odd number of channels"),
    ("rotary_position_embedding", (T(1, 6, 4, 32), T(1, 6, 1, 16), T(1, 6, 1, 16)), DOCUMENTATION, "half a table"),
    ("rotary_position_embedding", (T(6, 4, 32), T(1, 6, 1, 32), T(1, 6, 1, 32)), DOCUMENTATION, "three axes"),
    ("rotary_position_embedding", (T(1, 6, 4, 32), None, T(1, 6, 1, 32)), BOTH, "no cosines"),
    ("topk", (T(3, 9), 10), BOTH, "more than there are"),
    ("moe_init_routing", (T(2, 32), int32(*GRID), 4), BOTH, "other numbers of rows"),
    ("moe_init_routing", (T(3, 32), int64(*GRID), 4), BOTH, "int64 indices"),
    ("moe_init_routing", (T(32), int32(*GRID), 4), BOTH, "one axis"),
    ("moe_init_routing", (T(3, 32), int32(*GRID), 3), DOCUMENTATION, "an expert that does not exist"),
    ("grouped_matmul", (ROWS, T(4, 31, 24), int64(2, 4, 5, 6)), BOTH, "other inner sizes"),
    ("grouped_matmul", (ROWS, T(32, 24), int64(2, 4, 5, 6)), BOTH, "weights of one expert"),
    ("grouped_matmul", (ROWS, EXPERTS, None), BOTH, "no groups"),
    ("grouped_matmul", (ROWS, EXPERTS, int64(2, 6)), DOCUMENTATION, "fewer groups than experts"),
    ("grouped_matmul", (ROWS, EXPERTS, int32(2, 4, 5, 6)), DOCUMENTATION, "int32 ends"),
    ("grouped_matmul", (ROWS, EXPERTS, int64(2, 2, 1, 1)), DOCUMENTATION, "counts instead of ends"),
    ("grouped_matmul", (ROWS, EXPERTS, int64(2, 4, 5, 7)), DOCUMENTATION, "ends past the last row"),
    ("moe_token_unpermute", (ROWS, int64(*range(6)), T(3, 2)), DOCUMENTATION, "int64 places"),
    ("moe_token_unpermute", (ROWS, int32(*range(6)), T(2, 2)), DOCUMENTATION, "too few probabilities"),
    ("moe_token_unpermute", (ROWS, int32(0, 0, 1, 2, 3, 4), T(3, 2)), DOCUMENTATION, "a place that comes twice"),
    ("dense", (T(2, 32), T(8, 31), None), BOTH, "other inner sizes"),
    ("conv2d", (T(1, 4, 9, 9), T(6, 5, 3, 3), T(6), (2, 2), (1, 1), (1, 1), 1), BOTH, "other channels"),
    ("index_copy", (BUFFER, int32(3, 1), T(2, 31)), DOCUMENTATION, "rows too short"),
    ("index_copy", (BUFFER, int32(3, 1, 2), T(2, 32)), DOCUMENTATION, "more places than rows"),
    ("conv2d", (T(1, 4, 2, 2), T(6, 4, 7, 7), T(6), (2, 2), (1, 1), (1, 1), 1), BOTH, "smaller than the kernel"),
]


def made(arguments, dtype):
    return [item.tensor(dtype) if isinstance(item, T) else item for item in arguments]


def outcome(function, arguments, dtype):
    """ "runs", "unregistered" (stopped for want of a kernel only) or "refused"."""
    try:
        function(*made(arguments, dtype))
        return "runs"
    except (ValueError, TypeError) as error:
        lacks = str(error).startswith("Select CPU operator")
        return "unregistered" if lacks else "refused"  # the CPU kernel that exists knows no bfloat16
    except RuntimeError as error:
        lacks = any(part in str(error) for part in ("unregistered", "Create kernelmod"))
        return "unregistered" if lacks else "refused"


def test_every_kernel_has_a_contract_and_an_emulation():
    public = {name for name, item in vars(RAW).items() if callable(item) and item.__module__ == RAW.__name__}
    assert public == set(RIGHT) == set(emulation.KERNELS) == {row[0] for row in WRONG}


@pytest.mark.parametrize("name, arguments", [(name, item) for name, items in RIGHT.items() for item in items])
def test_right_calls_reach_the_kernel(name, arguments):
    if name == "moe_token_unpermute":  # MindSpore has no inference of its shapes on CPU, right or wrong
        with pytest.raises(RuntimeError, match="Not implement"):
            RAW.moe_token_unpermute(*made(arguments, ms.bfloat16))
    else:
        assert outcome(getattr(RAW, name), arguments, ms.bfloat16) == "unregistered"
    assert outcome(emulation.KERNELS[name], arguments, ms.float32) == "runs"


@pytest.mark.parametrize("name, arguments, by, what", WRONG, ids=[f"{row[0]}-{row[3]}" for row in WRONG])
def test_wrong_calls_are_refused(name, arguments, by, what):
    assert outcome(emulation.KERNELS[name], arguments, ms.float32) == "refused", what
    if by == BOTH:
        assert outcome(getattr(RAW, name), arguments, ms.bfloat16) == "refused", what
