"""Inputs of the self-check, seeded, for the geometry "tiny"; the recorder of the reference draws the same ones."""

import numpy as np

GEOMETRY, SEED = "tiny", 20
KEPT = 256  # values that are stored of each stage


def image():
    """Pixels `[N, 1536]` and grid `[1, 3]` of a picture of 4 x 6 patches."""
    return _pixels(1, np.array([[1, 4, 6]], np.int64))


def video():
    """Pixels and grid of two frame pairs of 4 x 4 patches."""
    return _pixels(2, np.array([[2, 4, 4]], np.int64))


def _pixels(seed, grid):
    return np.random.RandomState(seed).standard_normal((grid.prod(), 1536)).astype(np.float32), grid


def audio():
    """Mel frames `[1, 128, 180]`: a whole chunk and a part."""
    return np.random.RandomState(3).standard_normal((1, 128, 180)).astype(np.float32)


def text():
    """Ids `[1, 12]`, all of them words."""
    return np.random.RandomState(4).randint(0, 250, (1, 12))


def talker(width):
    """Rows `[1, 9, width]` and positions float32 `[3, 1, 9]` whose axes differ."""
    positions = np.tile(np.arange(9, dtype=np.float32), (3, 1, 1))
    positions[0, 0, 3:] += 2.5
    return np.random.RandomState(5).standard_normal((1, 9, width)).astype(np.float32), positions


def predictor(width):
    """The talker's hidden state `[1, 1, width]` and a first code `[1, 1]`."""
    random = np.random.RandomState(6)
    return random.standard_normal((1, 1, width)).astype(np.float32), random.randint(0, 200, (1, 1))


def codes():
    """Codes `[1, 16, 20]`."""
    return np.random.RandomState(7).randint(0, 256, (1, 16, 20))


def kept(values):
    """At most `KEPT` values spread evenly over an array."""
    flat = np.asarray(values, np.float64).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(KEPT, flat.size)).round().astype(int)]
