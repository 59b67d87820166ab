"""Rotary position tables, computed on the host in float32 (Su et al. 2021, "RoFormer").

A table is a pair (cos, sin) of angles for half the head dimension; `ops.rotary` rotates the pairs (i, i + D/2).
Positions are float32 because video times may be fractional.
"""

import numpy as np
from mindspore import Tensor


def inverse_frequencies(theta, dim):
    """`theta ** (-2 i / dim)` for i in `[0, dim / 2)` -> float32 `[dim / 2]`."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)


def rope_tables(positions, inv_freq):
    """One position per token: positions `[B, T]` -> cos, sin tensors `[B, T, D/2]`."""
    return tuple(Tensor(table) for table in rope_angles(positions, inv_freq))


def rope_angles(positions, inv_freq):
    """The same on the host: cos, sin float32 `[..., D/2]` for positions `[...]`."""
    angles = np.asarray(positions, np.float32)[..., None] * inv_freq
    return np.cos(angles), np.sin(angles)


def mrope_tables(positions, inv_freq, section):
    """Time, height and width positions `[3, B, T]` -> cos, sin tensors `[B, T, D/2]`.

    The three axes are interleaved over the frequencies (t, h, w, t, h, w, ...); `section` says how many frequencies
    belong to each, and those left over belong to time (Qwen3-VL report, "interleaved MRoPE").
    """
    angles = np.asarray(positions, np.float32)[..., None] * inv_freq  # [3, B, T, D/2]
    merged = angles[0].copy()
    for axis in (1, 2):
        columns = slice(axis, 3 * section[axis], 3)
        merged[..., columns] = angles[axis][..., columns]
    return _tables(merged)


def axial_tables(rows, columns, inv_freq):
    """Two-dimensional positions `[N]` each; the first half of the frequencies turns with the row, the second with the
    column -> cos, sin tensors `[N, 2 * len(inv_freq)]`.
    """
    parts = [np.asarray(axis, np.float32)[:, None] * inv_freq for axis in (rows, columns)]
    return _tables(np.concatenate(parts, axis=-1))


def _tables(angles):
    return Tensor.from_numpy(np.cos(angles)), Tensor.from_numpy(np.sin(angles))
