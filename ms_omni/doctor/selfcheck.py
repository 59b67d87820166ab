"""A tiny checkpoint through every stage, in this device's precision, against values recorded with the reference.

`data/selfcheck.npz` holds for each stage some values, and by how much bfloat16 alone changes them in the reference
(`tests/reference/record_doctor.py`). In a 16-bit precision a few times that is allowed.
"""

import tempfile
from pathlib import Path

import numpy as np

from .finding import error, ok, one_line

STORED = Path(__file__).with_name("data") / "selfcheck.npz"
FLOAT32_LIMIT = 1e-3
HALF_FACTOR = 4
ADVICE = (
    "compare the versions above with the table; run it with MS_OMNI_OPS=reference to see whether an operator is at fault"
)


def stages(_):
    """Findings on each stage and on a whole spoken answer."""
    from ..model import Qwen3OmniMoeForConditionalGeneration
    from ..tiny import write_tiny_checkpoint
    from . import probe
    from .stages import answer, run_stages

    with tempfile.TemporaryDirectory(prefix="ms_omni-doctor-") as folder:
        write_tiny_checkpoint(Path(folder) / "tiny", geometry=probe.GEOMETRY, seed=probe.SEED, dtype="float32")
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(Path(folder) / "tiny", progress=False)
        dtype, stored, good = str(model.dtype).lower(), np.load(STORED), []
        for name, values in run_stages(model):
            off, limit = distance(name, probe.kept(values), stored), limit_of(name, dtype, stored)
            if off <= limit:
                good.append(f"{name} {off:.0e}")
            else:
                yield error(f"{name}: off by {off:.2g} from the reference, {limit:.2g} is allowed in {dtype}", ADVICE)
        if good:
            yield ok(f"as the reference computes, in {dtype} (relative difference): {', '.join(good)}")
        yield _spoken(answer, model)


def distance(name, values, stored):
    """Root mean square of the difference to what is stored, relative to that; infinite for values that are no numbers."""
    expected = stored[name].astype(np.float64)
    if values.shape != expected.shape or not np.isfinite(values).all():
        return float("inf")
    return float(np.sqrt(np.mean((values - expected) ** 2) / np.mean(expected**2)))


def limit_of(name, dtype, stored):
    """How far a stage may be off."""
    return FLOAT32_LIMIT if dtype == "float32" else HALF_FACTOR * float(stored[f"{name}.bfloat16"])


def _spoken(answer, model):
    try:
        ids, wave = answer(model)
    except Exception as reason:
        return error(f"a spoken answer fails: {type(reason).__name__}: {one_line(reason)}", ADVICE)
    if not len(ids) or not wave.size or not np.isfinite(wave).all():
        return error("a spoken answer is empty or holds no numbers", ADVICE)
    return ok(f"a spoken answer: {len(ids)} tokens, {wave.size / 24_000:.2f} s of sound")
