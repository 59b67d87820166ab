"""`ms-omni plan` says what the real run counts, and nothing that it cannot know."""

import json
from dataclasses import replace

import pytest

from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.config import config_folder, load_named_config
from ms_omni.engine import blocks
from ms_omni.errors import ConfigError, InputError
from ms_omni.generation import request
from ms_omni.parallel.hardware import FORMS, GRAPH, load_hardware
from ms_omni.parallel.predict import CHUNK_TOKENS, FIRST_FRAMES, LATER_FRAMES, predict
from tests.parallel.launching import ROOT, STRATEGIES, msrun

FRAME_S = 0.08


@pytest.fixture(scope="module")
def instruct():
    config = load_named_config("instruct")
    return config, parameter_shapes(config)


@pytest.mark.parametrize(
    "geometry, workers, operators",
    [
        ("tiny", 2, "cpu"),
        pytest.param("tiny", 2, "ascend-emulated", marks=pytest.mark.slow),  # which packs the weights
        pytest.param("odd", 3, "cpu", marks=pytest.mark.slow),
    ],
)
def test_bytes_and_collectives_of_a_token_are_those_that_a_run_counts(geometry, workers, operators, checkpoint_of, tmp_path):
    folder = checkpoint_of(geometry)
    worker, environment = ROOT / "tests/parallel/traffic_worker.py", {"MS_OMNI_OPS": operators}
    job = msrun(workers, tmp_path, worker, folder, tmp_path, *STRATEGIES, environment=environment)
    assert job.code == 0, job.explain()
    counted = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(workers)]
    config = load_named_config(geometry)
    for strategy in STRATEGIES:
        expected = predict(config, parameter_shapes(config), strategy, workers, 256, 4)
        for rank in counted:
            assert rank[strategy]["calls"] == expected.token.traffic.calls
            assert rank[strategy]["nbytes"] == expected.token.traffic.nbytes
        assert max(rank[strategy]["held"] for rank in counted) == expected.held


def test_the_published_model_in_bytes(instruct):
    """35,259,818,545 parameters, the vocoder's in float32; every card holds the encoders and what speaks, and a share of the rest."""
    alone = predict(*instruct, "ep", 1, 8192, 2)
    assert alone.held == 2 * 35_259_818_545 + alone.weights["code2wav"] // 2 and alone.token.traffic.total_calls == 0
    for cards in (2, 4, 8):
        split, sharded = (predict(*instruct, strategy, cards, 8192, 2) for strategy in ("ep", "zero3"))
        assert sum(alone.weights[part] for part in ("thinker head", "audio encoder")) > split.weights["thinker head"]
        assert split.weights["thinker head"] == alone.weights["thinker head"] // cards
        assert sharded.held == pytest.approx(alone.held / cards, rel=0.001)
        assert sharded.token.traffic.total_bytes > 100_000 * split.token.traffic.total_bytes
        times = [item.bound((item.token,), load_hardware("910b"), GRAPH) for item in (split, sharded)]
        assert times[0].bandwidth < times[1].bandwidth / 30 and times[1].holds == "bandwidth holds"
        assert split.peak < 64e9


def test_the_steps_of_an_answer_have_two_bounds(instruct):
    """The launches are those that MindSpore's kernel selection counts, with the choice of a token and the collectives."""
    hardware, found = load_hardware("910b"), predict(*instruct, "ep", 2, 8192, 2)
    alone = predict(*instruct, "ep", 1, 8192, 2)
    for form, layer in zip(FORMS, (22, 20), strict=True):
        launches = [item.bound((item.token,), hardware, form).launches for item in (alone, found)]
        assert launches == [48 * layer + 2 + 8, 48 * (layer + 3) + 2 + 8 + 2 * 48 + 2]
        assert alone.bound(alone.frame, hardware, form).launches == 20 * (layer + 6) + 2 + 14 + 1189
        text, frame = (found.bound(steps, hardware, form) for steps in ((found.token,), found.frame))
        assert text.least == text.launching > text.bandwidth and text.holds == frame.holds == "launches hold"
    slow = replace(hardware, memory_gb_per_s=10)
    assert found.bound((found.token,), slow, GRAPH).holds == "bandwidth holds"
    assert not predict(*instruct, "zero3", 2, 8192, 2).frame  # counted for text alone


def test_more_rows_read_more_and_launch_no_more(instruct):
    """Of 128 experts, 8 per row, B rows read 128 * (1 - (1 - 8 / 128) ** B), and each its own keys and values."""
    hardware = load_hardware("910b")
    one, four, many = (predict(*instruct, "ep", 1, 8192, 2, rows=rows) for rows in (1, 4, 16))
    expert = 3 * 2048 * 768 * 2 * 48
    for item, rows in ((four, 4), (many, 16)):
        distinct = 128 * (1 - (1 - 8 / 128) ** rows)
        cache = 2 * 48 * 4 * 128 * 8192 * 2 * (rows - 1)
        assert item.token.reads == pytest.approx(one.token.reads + (distinct - 8) * expert + cache)
        assert item.token.operations == pytest.approx(rows * one.token.operations)
        assert item.kv_cache == rows * one.kv_cache
        for steps in (lambda each: (each.token,), lambda each: each.frame):
            first, other = (each.bound(steps(each), hardware, GRAPH) for each in (one, item))
            assert first.launches == other.launches and first.launching == other.launching
            assert first.bandwidth < other.bandwidth and first.least <= other.least < rows * first.least
    assert [item.bound((item.token,), hardware, GRAPH).holds[:4] for item in (one, many)] == ["laun", "band"]


def test_the_first_sound_is_what_generation_waits_for(instruct):
    """A prompt in chunks, for both decoders; the first frame follows at once, the others each a token of text."""
    assert (blocks.CHUNK, request.CHUNK_FRAMES[0], request.CHUNK_FRAMES[-1]) == (CHUNK_TOKENS, FIRST_FRAMES, LATER_FRAMES)
    short, long = (predict(*instruct, "ep", 2, 8192, 2, prompt) for prompt in (512, 1300))
    assert [len(item.reading) for item in (short, long)] == [len(item.hearing) for item in (short, long)] == [1, 3]
    one, many = (sum(step.operations for step in item.reading) for item in (short, long))
    assert many == pytest.approx(one * 1300 / 512)
    experts = 128 * 3 * 2048 * 768 * 2 * 48 // 2  # a chunk reads all experts of the card
    assert experts < short.reading[0].reads < short.weights["thinker decoder"] + short.weights["thinker head"]
    hardware = load_hardware("910b")
    token, frame, sound, prompt = (
        short.bound(steps, hardware, GRAPH).least
        for steps in ((short.token,), short.frame, (short.sound,), short.reading + short.hearing)
    )
    times = short.times(hardware, GRAPH, FRAME_S)
    assert times.first == pytest.approx(prompt + frame + 3 * (token + frame) + sound)
    assert times.factor == pytest.approx((token + frame + sound / LATER_FRAMES) / FRAME_S)


def test_speech_on_a_card_of_its_own_neither_waits_nor_is_waited_for(instruct):
    hardware = load_hardware("910b")
    for rows in (1, 16):
        turns, apart = (predict(*instruct, "ep", 2, 8192, 2, rows=rows, speech_card=own) for own in (False, True))
        assert turns.held == apart.held + apart.speaker.held and turns.kv_cache == apart.kv_cache + apart.speaker.kv_cache
        assert set(apart.speaker.weights) == {name for name in turns.weights if name.startswith(("talker", "code"))}
        assert apart.token == replace(turns.token, kernels=apart.token.kernels)
        one, other = (item.times(hardware, GRAPH, FRAME_S) for item in (turns, apart))
        assert one.factor == pytest.approx((one.token + one.frame) / FRAME_S)
        assert other.factor == pytest.approx(max(other.token, other.frame) / FRAME_S)
        assert other.first < one.first and other.token == one.token
        assert sum(step.traffic.total_calls for step in apart.frame) == 0 < turns.frame[0].traffic.total_calls
    alone = predict(*instruct, "ep", 1, 8192, 2, speech_card=True)
    assert alone.speaker.peak < 10e9 < 64e9 < alone.peak  # in bfloat16 the thinker and its cache fill more than a card


def test_a_longer_context_costs_what_its_keys_and_values_take(instruct):
    short, long = (predict(*instruct, "ep", 2, context, 2) for context in (1024, 2048))
    thinker, talker = 48 * 2 * 128, 20 * 2 * 128  # layers, kv heads on this card, head dim
    assert long.kv_cache - short.kv_cache == 1024 * 2 * 2 * (thinker + talker)
    assert long.token.reads - short.token.reads == 1024 * 2 * 2 * thinker


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


def test_a_card_for_speech_that_cannot_be(instruct):
    with pytest.raises(InputError, match="zero3 spreads what speaks"):
        predict(*instruct, "zero3", 2, 8192, 2, speech_card=True)
    with pytest.raises(InputError, match="callers is 0, expected at least 1"):
        predict(*instruct, "ep", 2, 8192, 2, rows=0)
    config = load_named_config("thinking")
    with pytest.raises(InputError, match="this model has no talker"):
        predict(config, parameter_shapes(config), "ep", 2, 8192, 2, speech_card=True)


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
        (
            {**entries, "launch_us": {**entries["launch_us"], "value": {"eager": 3}}},
            "expected microseconds for eager, graph",
        ),
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
