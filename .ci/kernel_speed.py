"""Times the C++ kernels of several builds in turns, one thread each: least of many runs, and the ratio to the first build.

    python .ci/kernel_speed.py                                      g++ and clang++ at every width this processor has
    python .ci/kernel_speed.py --compilers g++ --widths native --tree OTHER_CHECKOUT      before and after

`--tree` puts another checkout's kernels (with its own flags) in front of this one's at each width. Builds take turns and
the least counts, because the machine may be busy with other work. Nothing of MindSpore is loaded.
"""

import argparse
import ctypes
import functools
import math
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from kernel_builds import COMPILERS, FILES, ROOT, WIDTHS, Build, builds_here, part

RNG = np.random.default_rng(0)


class Case(NamedTuple):
    """One call of a kernel: its name in C++ and its arguments, the results last; owner keeps alive what they point to.

    file: where to look for it first (older checkouts have two kernels of some names).
    """

    kernel: str
    arrays: list
    owner: object = None
    file: str = "dense"


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def empty(*shape):
    return np.zeros(shape, np.float32)


def integers(*values):
    return np.array(values, np.int32)


def settings(*lengths):
    """What a kernel is told by a shape."""
    return np.zeros(lengths, np.int32)


class Stack:
    """The table of a decoder stack (`Stack` in decoder.h) and the arrays that it points to."""

    def __init__(self, width, heads, kv_heads, d, inner=0, experts=0, top_k=0, expert_inner=0, half=False):
        self.kept, self.kind = [], np.uint16 if half else np.float32
        names = "input_norm q k v o q_bias k_bias v_bias o_bias q_norm k_norm post_norm gate up down shared_gate router"
        parts = dict.fromkeys([*names.split(), "experts_gate_up", "experts_down"], 0)
        parts |= {
            name: self.keep(normal(n)) for name, n in dict(input_norm=width, q_norm=d, k_norm=d, post_norm=width).items()
        }
        keys = (kv_heads * d, width)
        parts |= self.matrices(self.kind, q=(heads * d, width), k=keys, v=keys, o=(width, heads * d))
        if inner:
            parts |= self.matrices(self.kind, gate=(inner, width), up=(inner, width), down=(width, inner))
        if experts:
            down, gate_up = (experts, expert_inner, width), (experts, width, 2 * expert_inner)
            parts |= self.matrices(np.float32, router=(experts, width), experts_gate_up=gate_up, experts_down=down)
        sizes = dict(inner=inner, experts=experts, top_k=top_k, expert_inner=expert_inner, normalise=True)
        stack = dict(
            width=width, heads=heads, kv_heads=kv_heads, head_dim=d, eps=1e-6, norm=self.keep(normal(width)), layers=1
        )
        self.parts = struct("Stack", **stack), struct("Layer", **parts, **sizes)

    def keep(self, array):
        self.kept.append(array)
        return array.ctypes.data

    def matrices(self, kind, **shapes):
        """Addresses of random matrices, float32 or the upper halves of such."""
        found = {}
        for name, shape in shapes.items():
            x = normal(*shape) / np.sqrt(shape[-1], dtype=np.float32)
            found[name] = self.keep(np.ascontiguousarray(x.view(np.uint16)[..., 1::2]) if kind == np.uint16 else x)
        return found


@functools.cache
def structs(name):
    return part("cpu_table").Struct(ctypes.CDLL(Build("g++", "native").library("fused")), name)


def struct(name, **values):
    return structs(name)(**values)


def decoder_step(batch, start, vocabulary=500, **sizes):
    stack, width, half = Stack(**sizes), sizes["width"], sizes["d"] // 2
    buffers = [stack.keep(normal(batch, sizes["kv_heads"], start + 1, 2 * half)) for _ in range(2)]
    cache = struct("Cache", blocks=batch, block=start + 1, width=1)
    table = part("cpu_table").table(*stack.parts, cache, buffers, [start + 1] * batch, list(range(batch)))
    inputs = normal(batch, 1, width), normal(batch, 1, half), normal(batch, 1, half), normal(vocabulary, width), table
    return Case("decoder_step", [*inputs, empty(batch, 1, vocabulary), empty(batch, 1, width)], stack)


def code_frame(batch, half, groups=4, vocabulary=500, width=256):
    stack = Stack(width, 4, 2, 64, 512, half=half)
    sampling = dict(sampled=False, temperature=1.0, top_k=0, top_p=1.0)
    tables = {name: stack.keep(normal(groups, 32)) for name in ("cos", "sin")}
    first, *embeddings = (stack.keep(normal(vocabulary, width)) for _ in range(groups))
    sizes = dict(vocabulary=vocabulary, first_vocabulary=vocabulary, first_embedding=first)
    heads = stack.matrices(stack.kind, **{str(i): (vocabulary, width) for i in range(groups - 1)})
    parts = struct("Storage", half=half), *stack.parts, struct("Frame", **sampling, **tables, **sizes)
    table = part("cpu_table").table(*parts, embeddings, list(heads.values()))
    inputs = normal(batch, 1, width), integers(*[[3]] * batch), normal(batch, groups - 1), table
    return Case("code_frame", [*inputs, integers(*[[0] * groups] * batch), empty(batch, 1, width)], stack)


def linear(rows, inputs, outputs):
    return Case("linear", [normal(rows, inputs), normal(outputs, inputs), empty(rows, outputs)])


def experts(n, e, k, d, inner, file="dense"):
    index = np.stack([RNG.permutation(e)[:k] for _ in range(n)]).astype(np.int32)
    inputs = normal(n, d), normal(e, d, 2 * inner), normal(e, inner, d), normal(n, k), index, integers(-1)
    return Case("experts", [*inputs, empty(n, d)], None, file)


def attention(kernel, s, t, h, kv, d):
    mask = np.where(np.arange(t) <= np.arange(s)[:, None] + t - s, 0, -1e9).astype(np.float32)[None]
    return Case(kernel, [normal(1, s, h, d), normal(1, kv, t, d), normal(1, kv, t, d), normal(1), mask, empty(1, s, h * d)])


def residual_unit(c, t):
    snakes = [[normal(c) / 4, normal(c) / 4] for _ in range(2)]
    convs = [[normal(c, c, w) / 16, normal(c)] for w in (7, 1)]
    parts = [*snakes[0], *convs[0], *snakes[1], *convs[1]]
    return Case("residual_unit", [normal(1, c, t), normal(1, c, 6), *parts, settings(1), empty(1, c, t)])


def rows(kernel, *weights, n=50, d=1024):
    return Case(kernel, [normal(n, d), *weights, empty(n, d)])


def cases() -> dict[str, Case]:
    """Small enough that most runs are not interrupted, large enough that a call counts for little."""
    dense, sparse = dict(inner=512), dict(experts=16, top_k=4, expert_inner=96)
    stack, w, eps = dict(width=256, heads=4, kv_heads=2, d=64), normal(1024), normal(1) ** 2
    packed = [*(normal(150, 2, 72) for _ in range(3)), normal(1), integers(75, 150), empty(150, 144)]
    picture = [normal(1, 32, 20, 40), normal(48, 32, 3, 3), normal(48), settings(2, 2), empty(1, 48, 10, 20)]
    sound = [normal(1, 64, 156), normal(64, 64, 7), normal(64), settings(1, 1), empty(1, 64, 150)]
    upsampling = [normal(1, 96, 60), normal(96, 48, 16), normal(48), settings(8, 9), empty(1, 48, 472)]
    return {
        "linear, 1 row": linear(1, 512, 512),
        "linear, 4 rows": linear(4, 512, 512),
        "linear, 6 rows": linear(6, 512, 512),
        "linear, 96 rows": linear(96, 384, 256),
        "experts, 1 token": experts(1, 16, 4, 256, 96, "kernels"),
        "experts, 8 tokens": experts(8, 16, 4, 128, 96, "kernels"),
        "experts, 8 tokens, wide": experts(8, 8, 2, 512, 256, "kernels"),
        "experts, 24 tokens": experts(24, 3, 2, 128, 96),
        "conv2d": Case("conv2d", picture),
        "attention, 1 query": attention("attention", 1, 800, 8, 2, 64),
        "attention, tiles": attention("attention_tiles", 96, 96, 4, 2, 64),
        "packed attention": Case("packed_attention", packed),
        "conv1d": Case("conv1d", sound),
        "conv_transpose1d": Case("conv_transpose1d", upsampling),
        "residual unit": residual_unit(48, 288),
        "snake": Case("snake_beta", [normal(1, 64, 1000), normal(64), normal(64), empty(1, 64, 1000)]),
        "decode step": decoder_step(1, 100, **stack, **dense),
        "decode step, 4 rows": decoder_step(4, 300, **stack, **dense),
        "decode step, experts": decoder_step(1, 300, **stack, **sparse),
        "decode step, experts, 5 rows": decoder_step(5, 100, **stack, **sparse),
        "frame": code_frame(1, False),
        "frame, bfloat16": code_frame(1, True),
        "frame, bfloat16, 3 rows": code_frame(3, True),
        "rms_norm": rows("rms_norm", w, eps),
        "layer_norm": rows("layer_norm", w, w, eps),
        "swiglu": Case("swiglu", [normal(50, 1024), empty(50, 512)]),
        **{name: rows(name) for name in ("silu", "gelu", "gelu_tanh")},
        "rotary": Case("rotary", [normal(50, 8, 64), normal(50, 32), normal(50, 32), empty(50, 8, 64)]),
        "route": Case("route_topk", [normal(50, 128), integers(*[1] * 8), empty(50, 8), np.zeros((50, 8), np.int32)]),
    }


class Kernels:
    """The functions of a build, in whichever of its libraries they are."""

    def __init__(self, build: Build):
        self.libraries = {file: ctypes.CDLL(build.library(file)) for file in FILES}

    def call(self, case: Case):
        """A function without arguments that runs the kernel once."""
        shapes = [(ctypes.c_int64 * x.ndim)(*x.shape) for x in case.arrays]
        pointers = (ctypes.c_void_p * len(shapes))(*(x.ctypes.data for x in case.arrays))
        ranks = (ctypes.c_int * len(shapes))(*(x.ndim for x in case.arrays))
        types = (ctypes.c_char_p * len(shapes))(*(str(x.dtype).encode() for x in case.arrays))
        addresses = (ctypes.c_void_p * len(shapes))(*map(ctypes.addressof, shapes))
        function = self.find(case)
        return lambda kept=shapes: function(len(kept), pointers, ranks, addresses, types, None, None)

    def find(self, case):
        found = (getattr(self.libraries[file], f"ms_omni_{case.kernel}", None) for file in (case.file, *FILES))
        return next(function for function in found if function)


def least_s(calls, seconds):
    """The least time of each call, in turns for `seconds` in all."""
    least, end = [math.inf] * len(calls), time.perf_counter() + seconds
    for call in calls:
        if call():
            raise RuntimeError("a kernel refused its arguments")
    while time.perf_counter() < end:
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            least[i] = min(least[i], time.perf_counter() - start)
    return least


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compilers", default=",".join(COMPILERS))
    parser.add_argument("--widths", default=",".join(WIDTHS))
    parser.add_argument("--tree", type=Path, action="append", default=[], help="another checkout")
    parser.add_argument("--seconds", type=float, default=1.0, help="per kernel")
    parser.add_argument("--only", default="", help="part of the names of the kernels to time")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    builds = builds_here(options.compilers.split(","), options.widths.split(","), [*options.tree, ROOT])
    kernels = [Kernels(build) for build in builds]
    print(f"{'microseconds':30s}" + "".join(f"{build.name:>26s}" for build in builds))
    ratios = []
    for name, case in cases().items():
        if options.only not in name:
            continue
        times = least_s([x.call(case) for x in kernels], options.seconds)
        ratios.append([times[0] / x for x in times])
        print(f"{name:30s}" + "".join(f"{x * 1e6:18.1f} {times[0] / x:6.2f}x" for x in times), flush=True)
    print(f"{'geometric mean':30s}" + "".join(f"{x:25.2f}x" for x in np.exp(np.log(ratios).mean(0))))


if __name__ == "__main__":
    sys.exit(main())
