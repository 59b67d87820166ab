"""Small committed files of reference values: fixed samples of large arrays, small arrays whole, and their shapes.

A large array is represented by a fixed low-discrepancy sample of its elements, so that a file of some hundred kilobytes
pins every layer of a model. numpy only, used by the recorders and by the tests.
"""

import json
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"
SAMPLE = 512
_GOLDEN = 0.6180339887498949  # multiples modulo 1 spread evenly and never fall into step with an axis


def sample(array: np.ndarray, limit: int = SAMPLE) -> np.ndarray:
    """At most `limit` elements of the flattened array, the same ones for the same size."""
    flat = np.asarray(array).reshape(-1)
    if flat.size <= limit:
        return flat
    return flat[((np.arange(limit) * _GOLDEN) % 1.0 * flat.size).astype(np.int64)]


class Recorder:
    """Collects values for one file."""

    def __init__(self):
        self.values: dict[str, np.ndarray] = {}
        self.shapes: dict[str, list[int]] = {}
        self.notes: dict[str, object] = {}

    def add(self, key: str, array, limit: int = SAMPLE, dtype=None):
        """Record `array` under `key`; whole if it has at most `limit` elements. `dtype` narrows what is stored."""
        array = np.asarray(array)
        if key in self.values:
            raise KeyError(f"{key} is recorded twice")
        self.shapes[key] = list(array.shape)
        self.values[key] = sample(array, limit).astype(dtype or array.dtype)

    def save(self, path: Path):
        meta = json.dumps({"shapes": self.shapes, "notes": self.notes})
        np.savez_compressed(path, __meta__=np.frombuffer(meta.encode(), dtype=np.uint8), **self.values)


class Reference:
    """Reads one recorded file and compares with it."""

    def __init__(self, path: Path):
        with np.load(path) as archive:
            self.values = {key: archive[key] for key in archive.files}
        meta = json.loads(self.values.pop("__meta__").tobytes())
        self.shapes, self.notes = meta["shapes"], meta["notes"]

    def __getitem__(self, key: str) -> np.ndarray:
        """A value that was recorded whole, in its shape."""
        return self.values[key].reshape(self.shapes[key])

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.values if key.startswith(prefix)]

    def gap(self, key: str, actual) -> tuple[float, float]:
        """Largest absolute difference to the recorded elements, and the largest recorded magnitude.

        Raises AssertionError when the shapes differ or a value is not finite.
        """
        actual = np.asarray(actual)
        expected = self.values[key]
        shape = self.shapes[key]
        assert list(actual.shape) == shape, f"{key}: got shape {list(actual.shape)}, the reference has {shape}"
        got = sample(actual, max(expected.size, 1)).astype(np.float64)
        assert np.isfinite(got).all(), f"{key}: values that are not finite"
        if expected.size == 0:
            return 0.0, 0.0
        expected = expected.astype(np.float64)
        return float(np.abs(got - expected).max()), float(np.abs(expected).max())
