"""`ms-omni plan` says what the real run counts, and nothing that it cannot know."""

import json

import pytest

from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.config.named import config_folder, load_named_config
from ms_omni.errors import ConfigError, InputError
from ms_omni.parallel.hardware import load_hardware
from ms_omni.parallel.predict import predict
from tests.parallel.launching import ROOT, STRATEGIES, msrun


@pytest.fixture(scope="module")
def instruct():
    config = load_named_config("instruct")
    return config, parameter_shapes(config)


@pytest.mark.parametrize("geometry, workers", [("tiny", 2), pytest.param("odd", 3, marks=pytest.mark.slow)])
def test_bytes_and_collectives_of_a_token_are_those_that_a_run_counts(geometry, workers, checkpoint_of, tmp_path):
    folder = checkpoint_of(geometry)
    job = msrun(workers, tmp_path, ROOT / "tests/parallel/traffic_worker.py", folder, tmp_path, *STRATEGIES)
    assert job.code == 0, job.explain()
    counted = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(workers)]
    config = load_named_config(geometry)
    for strategy in STRATEGIES:
        expected = predict(config, parameter_shapes(config), strategy, workers, 256, 4)
        for rank in counted:
            assert rank[strategy]["calls"] == expected.traffic.calls
            assert rank[strategy]["nbytes"] == expected.traffic.nbytes
        assert max(rank[strategy]["held"] for rank in counted) == expected.held


def test_the_published_model_in_bytes(instruct):
    """35,259,818,545 parameters, of which every card holds the encoders and what speaks, and a share of the rest."""
    alone = predict(*instruct, "ep", 1, 8192, 2)
    assert alone.held == 2 * 35_259_818_545 and alone.traffic.total_calls == 0
    for cards in (2, 4, 8):
        split, sharded = (predict(*instruct, strategy, cards, 8192, 2) for strategy in ("ep", "zero3"))
        assert sum(alone.weights[part] for part in ("thinker head", "audio encoder")) > split.weights["thinker head"]
        assert split.weights["thinker head"] == alone.weights["thinker head"] // cards
        assert sharded.held == pytest.approx(alone.held / cards, rel=0.001)
        assert sharded.traffic.total_bytes > 100_000 * split.traffic.total_bytes
        hardware = load_hardware("910b")
        assert split.seconds(hardware)[2] < sharded.seconds(hardware)[2] / 3
        assert split.peak < 64e9


def test_a_longer_context_costs_what_its_keys_and_values_take(instruct):
    short, long = (predict(*instruct, "ep", 2, context, 2) for context in (1024, 2048))
    thinker, talker = 48 * 2 * 128, 20 * 2 * 128  # layers, kv heads on this card, head dim
    assert long.kv_cache - short.kv_cache == 1024 * 2 * 2 * (thinker + talker)
    assert long.reads - short.reads == 1024 * 2 * 2 * thinker


@pytest.mark.parametrize(
    "strategy, cards, context, said",
    [
        ("ep", 0, 8192, "cards is 0, expected at least 1"),
        ("ep", 2, 0, "the context is 0, expected at least 1"),
        ("ep", 2, 10**9, "the context is 1000000000 tokens, and the model has"),
        ("tp", 2, 8192, "the strategy is 'tp', expected one of ep, zero3"),
        ("ep", 129, 8192, "128 experts cannot be shared by 129 ranks"),
    ],
)
def test_what_cannot_be(instruct, strategy, cards, context, said):
    with pytest.raises(InputError, match=said):
        predict(*instruct, strategy, cards, context, 2)


@pytest.mark.parametrize("name", ["910b", "910c"])
def test_hardware_names_the_source_of_every_number(name):
    hardware = load_hardware(name)
    entries = json.loads((config_folder() / "hardware" / f"{name}.json").read_text())
    assert all(len(entry["source"]) > 20 for key, entry in entries.items() if key != "name")
    assert "collective_us" in hardware.estimates and "memory_gb" not in hardware.estimates
    assert hardware.bandwidth("all_reduce", 6) == hardware.bandwidth("all_reduce", 4) <= hardware.bandwidth("all_gather", 16)


def test_hardware_files_of_ones_own_are_checked(tmp_path):
    entries = json.loads((config_folder() / "hardware/910b.json").read_text())
    path = tmp_path / "mine.json"
    for broken, said in (
        ({**entries, "memory_gb": 64}, "memory_gb needs a value, its source"),
        ({**entries, "memory_gb": {**entries["memory_gb"], "value": -1}}, "expected positive numbers"),
        ({**entries, "all_gather_gb_per_s": {**entries["memory_gb"]}}, "expected bandwidths by number of"),
        ({"name": "x"}, "expected .'all_gather"),
        ([], "holds list"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(ConfigError, match=said):
            load_hardware(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        load_hardware(path)
    with pytest.raises(ConfigError, match="hardware is 'none', expected a file, or one of 910b, 910c"):
        load_hardware("none")
