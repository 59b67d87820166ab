"""Inputs that were observed: scaling leaves what is computed as it is, and what is rounded with them errs less."""

import numpy as np
import pytest

from ms_omni.checkpoint import CheckpointReader, quantise
from ms_omni.checkpoint.quantise import Inputs, Observed, Quantising, Scaled, groups
from ms_omni.checkpoint.rounding import rounded
from ms_omni.quantised import Storage, dequantised

RNG = np.random.default_rng(0)


def correlated(rows, inputs):
    """Inputs neighbours of which go together, some of them larger than others."""
    mixed = RNG.standard_normal((rows, inputs // 8)).repeat(8, axis=1) + 0.3 * RNG.standard_normal((rows, inputs))
    return (mixed * np.where(np.arange(inputs) % 64 < 8, 5.0, 1.0)).astype(np.float32)


@pytest.mark.parametrize("storage", [Storage(4, 32), Storage(4, 128), Storage(8)], ids=str)
def test_what_neighbours_make_up_for_errs_less(storage):
    matrix, x = RNG.standard_normal((48, 256)).astype(np.float32), correlated(600, 256)
    seen, fresh = Inputs.of(x[:300]), x[300:]

    def error(stored):
        return float(np.square(fresh @ (dequantised(stored) - matrix).T).sum())

    plain = error(rounded(matrix, storage))
    weighted = error(rounded(matrix, storage, seen.importance))
    assert error(rounded(matrix, storage, seen.importance, seen.products / seen.rows)) < 0.6 * min(plain, weighted)


def test_inputs_add_up():
    x = correlated(50, 64)
    parts = Inputs.of(x[:20])
    parts.add(Inputs.of(x[20:]))
    whole = Inputs.of(x)
    for one, other in zip(
        (parts.magnitudes, parts.squares, parts.products), (whole.magnitudes, whole.squares, whole.products)
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3)
    assert parts.rows == 50 and Inputs.of(x[:, :40]).products is None


@pytest.fixture
def scaled(sharded, monkeypatch):
    """A `Scaled` that scales whatever it can by the root of what was seen."""
    monkeypatch.setattr(quantise, "EXPONENTS", (0.5,))
    reader = CheckpointReader(sharded)
    inputs = {}
    for group in groups(reader.entries):
        for name in group.columns:
            inputs[name] = Inputs.of(correlated(16, reader.entries[name].shape[1]))
    quantising = Quantising(reader, "int4", 32, observed=Observed(inputs, {}))
    assert isinstance(quantising.scaled, Scaled)
    return reader, quantising.scaled


def test_scaling_is_made_up_for_where_the_inputs_come_from(scaled):
    reader, found = scaled
    layer = "thinker.model.layers.1"

    def of(name):
        return np.array(reader.array(f"{layer}.{name}.weight"), np.float32), found.array(f"{layer}.{name}.weight").astype(
            np.float32
        )

    norm, norm_now = of("input_layernorm")
    for part in "qkv":
        before, now = of(f"self_attn.{part}_proj")
        rows = found.rows.get(f"{layer}.self_attn.{part}_proj.weight", np.ones(len(now)))
        np.testing.assert_allclose(now * rows[:, None] * norm_now, before * norm, rtol=1e-5)
        assert not np.allclose(now, before)
    norm, norm_now = of("post_attention_layernorm")
    for part, tolerance in (("mlp.gate", 8e-3), ("mlp.experts.3.gate_proj", 1e-5)):  # the router stays in bfloat16
        before, now = of(part)
        np.testing.assert_allclose(now * norm_now, before * norm, rtol=tolerance)
    up, up_now = of("mlp.experts.3.up_proj")
    down, down_now = of("mlp.experts.3.down_proj")
    factors = (up * (norm / norm_now) / up_now)[:, :1]
    np.testing.assert_allclose(factors[:, 0] * down, down_now, rtol=1e-4)
    v, v_now = of("self_attn.v_proj")
    o, o_now = of("self_attn.o_proj")  # 4 query heads of 32 read 2 heads
    norm, norm_now = of("input_layernorm")
    heads = (v * (norm / norm_now) / v_now)[:, 0].reshape(2, 1, 32).repeat(2, axis=1).reshape(-1)
    np.testing.assert_allclose(o * heads, o_now, rtol=1e-4)


def test_what_scaling_would_not_pay_for_stays(sharded):
    reader = CheckpointReader(sharded)
    inputs = {
        name: Inputs.of(RNG.standard_normal((64, reader.entries[name].shape[1])).astype(np.float32))
        for group in groups(reader.entries)
        for name in group.columns
    }
    found = Quantising(reader, "int4", 32, observed=Observed(inputs, {})).scaled
    assert found is not None and not any(found.exponents) and not found.columns
