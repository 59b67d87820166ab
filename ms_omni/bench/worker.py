"""This model as a party in a process of its own: `python -m ms_omni.bench.worker MODEL INPUTS.npz [--no-compile]`."""

import sys
import time

from .protocol import peak_gb, serve

PARTY = None


def load(model, inputs, compile_steps=True, **quantised):
    """Loads the model; says how long it took and what it runs on. Its numbers are those of a fresh process."""
    global PARTY
    started = time.perf_counter()
    import numpy as np

    from ..model import Qwen3OmniMoeForConditionalGeneration

    imported = time.perf_counter()
    loaded = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        model, progress=False, compile_steps=compile_steps, **quantised
    )
    done = {"import_s": imported - started, "load_s": time.perf_counter() - imported, "peak_gb": peak_gb()}

    from .measures import Measures

    PARTY = Measures(loaded, dict(np.load(inputs)))
    return {**done, **description(loaded)}


def description(model):
    """What the numbers depend on, in words."""
    import mindspore

    from ..modeling import ops
    from .memory import storage

    table = ops.describe()
    implementations = sorted({implementation for _, implementation, _ in table})
    attention = next(implementation for name, implementation, _ in table if name == "attention")
    return {
        "software": f"MindSpore {mindspore.__version__}",
        "device": model.device,
        "precision": str(model.dtype).lower(),
        "operators": " + ".join(implementations),
        "vectors": ops.vectors(),
        "storage": storage(model),
        "attention": attention,
    }


def run(kind, settings):
    """One repetition of a scenario."""
    return PARTY.run(kind, settings)


if __name__ == "__main__":
    serve(load, run)
    sys.exit(0)
