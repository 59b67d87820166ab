"""Layers that note what they get to see."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .checkpoint.matching import file_root
from .checkpoint.open import as_published, open_checkpoint
from .checkpoint.quantise import Inputs
from .modeling.layers import Linear
from .modeling.moe import Experts
from .parallel.layers import become


def passing(x):
    """x; a layer whose parameters are read through anything but `identity` is run as it is, and not as a part of a fused operator."""
    return x


class WatchedLinear:
    """A `Linear` that hands its inputs to `saw`."""

    def construct(self, x):
        self.saw(x)
        return super().construct(x)


class WatchedExperts:
    """`Experts` that hand their inputs to `saw`."""

    def construct(self, x, weights, indices):
        self.saw(x, indices)
        return super().construct(x, weights, indices)


@contextmanager
def watch_inputs(model, folder: str | Path) -> Iterator[dict[str, Inputs]]:
    """Inside, `{published name: Inputs}` of the linear layers and experts in the decoders of thinker and talker grows."""
    reader = as_published(open_checkpoint(folder))
    root = file_root(reader.entries)
    inputs: dict[str, Inputs] = {}

    def note(name, rows):
        stored = f"{name}.weight".removeprefix(root)
        if stored in inputs:
            inputs[stored].add(Inputs.of(rows))
        else:
            inputs[stored] = Inputs.of(rows)

    def experts(stem):
        def saw(x, indices):
            rows, chosen = x.asnumpy().astype(np.float32), indices.asnumpy()
            for expert in np.unique(chosen):
                own = rows[(chosen == expert).any(axis=1)]
                gate, up = (
                    _matrix(reader, f"{stem}.{expert}.{part}_proj.weight".removeprefix(root)) for part in ("gate", "up")
                )
                note(f"{stem}.{expert}.gate_proj", own)
                note(f"{stem}.{expert}.up_proj", own)
                opened = own @ gate.T
                note(f"{stem}.{expert}.down_proj", opened / (1 + np.exp(-opened)) * (own @ up.T))

        return saw

    def linear(name):
        return lambda x: note(name, x.asnumpy().astype(np.float32).reshape(-1, x.shape[-1]))

    watched = []
    for name, cell in model.cells_and_names():
        if ".model.layers." not in f".{name}" or "code_predictor" in name or not name.startswith(("thinker.", "talker.")):
            continue
        kind, saw = (WatchedLinear, linear) if isinstance(cell, Linear) else (WatchedExperts, experts)
        if isinstance(cell, (Linear, Experts)):
            watched.append((cell, type(cell), cell.source))
            become(cell, kind, saw=saw(name), source=passing)
    try:
        yield inputs
    finally:
        for cell, kind, source in watched:
            object.__setattr__(cell, "__class__", kind)
            cell.source = source


def _matrix(reader, name) -> np.ndarray:
    return np.array(reader.array(name), np.float32)
