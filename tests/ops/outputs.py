"""What the kernels make of fixed inputs, one digest per kernel: `python -m tests.ops.outputs` prints them as JSON.

Large enough for several threads. The same numbers come out on any number of threads, and from every compiler that
builds for vectors of the same width with the same multiply-adds.
"""

import hashlib
import json

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ms_omni import runtime
from ms_omni.modeling import ops
from ms_omni.quantised import Quantised, Storage, quantised


def outputs() -> dict[str, str]:
    """`{kernel: digest of its output}`."""
    rng = np.random.default_rng(29)

    def normal(*shape):
        return Tensor(rng.standard_normal(shape).astype(np.float32))

    def integers(high, *shape):
        return Tensor(rng.integers(0, high, shape).astype(np.int32))

    def codes(bits, *shape):
        storage = Storage(bits, 32 if bits == 4 else None, "float32")
        parts = quantised(rng.standard_normal(shape).astype(np.float32), storage)
        return Quantised(*(None if part is None else Tensor(part) for part in parts))

    weights = {"bfloat16": normal(300, 640).astype(ms.bfloat16), "int8": codes(8, 300, 640), "int4": codes(4, 300, 640)}
    found = {
        **{
            f"linear of {rows} rows, {kind}": ops.linear(normal(rows, 640), weight)
            for kind, weight in weights.items()
            for rows in (1, 5, 70)
        },
        "experts, int8": ops.experts(
            normal(40, 128), codes(8, 6, 2 * 96, 128), codes(8, 6, 128, 96), normal(40, 2), integers(6, 40, 2)
        ),
        "linear": ops.linear(normal(70, 600), normal(300, 600), normal(300)),
        "linear of one row": ops.linear(normal(1, 700), normal(900, 700)),
        "experts": ops.experts(
            normal(40, 130), normal(6, 130, 2 * 70), normal(6, 70, 130), normal(40, 2), integers(6, 40, 2)
        ),
        "attention": ops.attention(normal(2, 150, 6, 40), normal(2, 2, 150, 40), normal(2, 2, 150, 40), None, 0.2),
        "attention of one query": ops.attention(
            normal(3, 1, 8, 64), normal(3, 2, 900, 64), normal(3, 2, 900, 64), None, 0.2
        ),
        **{
            f"paged_attention of {queries}": ops.paged_attention(
                normal(2, queries, 6, 40),
                normal(9, 2, 128, 40),
                normal(9, 2, 128, 40),
                Tensor(np.array([[3, 8, 1, 0], [5, 2, 7, 4]], np.int32)),
                Tensor(np.array([300, 400], np.int32)),
                Tensor(np.array([301 + queries // 2, 400 + queries], np.int32)),
                0.2,
            )
            for queries in (1, 100)
        },
        "packed_attention": ops.packed_attention(
            normal(400, 4, 36), normal(400, 4, 36), normal(400, 4, 36), ((100, 4),), 0.2
        ),
        "conv2d": ops.conv2d(normal(2, 9, 40, 60), normal(30, 9, 3, 3), normal(30), 2, 1),
        "conv1d": ops.conv1d(normal(1, 40, 700), normal(50, 40, 7), normal(50), 2),
        "conv_transpose1d": ops.conv_transpose1d(normal(1, 60, 300), normal(60, 30, 8), normal(30), 4, 2),
        "residual_unit": ops.residual_unit(
            normal(1, 40, 2000),
            normal(1, 40, 18),
            (normal(40), normal(40)),
            (normal(40, 40, 7), normal(40)),
            3,
            (normal(40), normal(40)),
            (normal(40, 40, 1), normal(40)),
        ),
        "snake_beta": ops.snake_beta(normal(2, 60, 4000), normal(60), normal(60)),
        "rms_norm": ops.rms_norm(normal(700, 1030), normal(1030), 1e-6),
        "layer_norm": ops.layer_norm(normal(700, 1030), normal(1030), normal(1030), 1e-6),
        "rotary": ops.rotary(normal(600, 8, 70), normal(600, 35), normal(600, 35)),
        "swiglu": ops.swiglu(normal(700, 1002)),
        "route_topk": ops.route_topk(normal(900, 128), 8, True)[0],
        **{name: getattr(ops, name)(normal(700, 1001)) for name in ("silu", "sigmoid", "gelu", "gelu_tanh")},
    }
    return {name: hashlib.sha256(x.asnumpy().tobytes()).hexdigest()[:16] for name, x in found.items()}


if __name__ == "__main__":
    runtime.setup()  # MindSpore beside numpy 2 fails at its first number otherwise
    print(json.dumps(outputs()))
