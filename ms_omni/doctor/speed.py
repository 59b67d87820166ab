"""How fast this machine is, beside the constants that `ms-omni plan` reckons with: memory, products, launches, links.

A few seconds each; what is measured is what the model will do it with, our own operators.
"""

import time

import numpy as np

from ..parallel.hardware import TO_MEASURE, load_hardware
from .finding import note, ok, warning

LEAST_S = 0.2  # of repetitions
CHAIN = 200  # small kernels, one after another
POOR = 0.7  # of what `plan` reckons with
SIZES = {"CPU": (1 << 22, 512), "Ascend": (1 << 27, 8192)}  # elements that are read and written; rows of a product
NO_PLAN = "'ms-omni plan' has no figures for this device"


def rates(_):
    """Findings on memory bandwidth, matrix products and the cost of a launch."""
    from ..modeling import ops
    from ..runtime import card, setup

    runtime = setup()
    ops.settle(runtime.dtype)
    yield from beside(measure(ops, runtime), card()[0], str(runtime.dtype).lower())
    if runtime.device == "Ascend":
        yield from to_confirm()


def to_confirm():
    """What a user measures to confirm what `ms-omni plan` computes."""
    yield note(
        "the times of 'ms-omni plan' are computed; to confirm them, run, and put figures into a copy of its --hardware file:"
    )
    yield from (note(f"{command}: {what}") for command, what in TO_MEASURE)


def measure(ops, runtime):
    """{constant of a hardware file: what was measured}, launch_us as "eager" and "graph"."""
    from mindspore import Tensor

    elements, rows = SIZES[runtime.device]
    big = Tensor(np.zeros(elements, np.float32)).astype(runtime.dtype)
    square = Tensor(np.ones((rows, rows), np.float32)).astype(runtime.dtype)
    small = Tensor(np.zeros((1, 64), np.float32)).astype(runtime.dtype)
    chain = compiled_chain(ops)
    wait = waiter(runtime.device)
    return {
        "memory_gb_per_s": 2 * big.nbytes / seconds(lambda: ops.relu(big), wait) / 1e9,
        "bf16_tflops": 2 * rows**3 / seconds(lambda: ops.linear(square, square), wait) / 1e12,
        "eager": 1e6 / CHAIN * seconds(lambda: one_by_one(ops, small), wait),
        "graph": 1e6 / CHAIN * seconds(lambda: chain(small), wait),
    }


def seconds(run, wait):
    """Seconds of a call of `run`, repeated until it takes long enough. wait: until the device is done."""
    times = 1
    while times * repeated(run, wait, times) < LEAST_S:
        times *= 4
    return repeated(run, wait, times)


def repeated(run, wait, times):
    """Seconds of a call of `run`, the mean of `times` after one that warms up."""
    run()
    wait()
    started = time.perf_counter()
    for _ in range(times):
        run()
    wait()
    return (time.perf_counter() - started) / times


def waiter(device):
    """A function that waits for the device: CPU computes at once (see `runtime.py`), and MindSpore refuses to wait for it."""
    import mindspore

    return mindspore.runtime.synchronize if device == "Ascend" else (lambda: None)


def one_by_one(ops, x):
    """`CHAIN` launches from Python."""
    for _ in range(CHAIN):
        x = ops.silu(x)
    return x


def compiled_chain(ops):
    """The same as one graph."""
    import mindspore

    class Chain(mindspore.nn.Cell):
        @mindspore.jit
        def construct(self, x):
            for _ in range(CHAIN):
                x = ops.silu(x)
            return x

    return Chain(auto_prefix=False)


UNITS = {
    "memory_gb_per_s": ("memory", "GB/s"),
    "bf16_tflops": ("matrix product", "TFLOP/s"),
    "eager": ("a launch one by one", "us"),
    "graph": ("a launch in a graph", "us"),
    "all_reduce_gb_per_s": ("large sums", "GB/s"),
    "all_gather_gb_per_s": ("large gathers", "GB/s"),
    "collective_us": ("a small sum", "us"),
}


def beside(found, card, what, cards=1):
    """Findings on measured constants, a warning for those that are far worse than what `plan` reckons with.

    card: a hardware file's name or None; what: in which precision, or over which links; cards: processes that took part.
    """
    planned = constants(load_hardware(card), cards) if card else {}
    good, poor = [], []
    for name, value in found.items():
        label, unit = UNITS[name]
        text = f"{label} {value:.3g} {unit}"
        if name in planned:
            text += f" (plan: {planned[name]:g})"
            share = planned[name] / value if unit == "us" else value / planned[name]
            (poor if share < POOR else good).append(text)
        else:
            good.append(text)
    if good:
        yield ok(f"{what}: {', '.join(good)}")
    if poor:
        yield warning(
            f"slower than 'ms-omni plan' reckons with, {what}: {', '.join(poor)}",
            f"end other work on this machine and try again; else put the figures into a copy of configs/hardware/{card}.json "
            "and give it to 'ms-omni plan --hardware'",
        )
    if not card:
        yield note(NO_PLAN)


def constants(hardware, cards):
    """The constants of a hardware file by the names of `UNITS`."""
    return {
        "memory_gb_per_s": hardware.memory_gb_per_s,
        "bf16_tflops": hardware.bf16_tflops,
        "collective_us": hardware.collective_us,
        "eager": hardware.launch_us["eager"],
        "graph": hardware.launch_us["graph"],
        "all_reduce_gb_per_s": hardware.bandwidth("all_reduce", cards) / 1e9,
        "all_gather_gb_per_s": hardware.bandwidth("all_gather", cards) / 1e9,
    }
