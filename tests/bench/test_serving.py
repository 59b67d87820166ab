"""Callers on an engine of the tiny model: what is counted, and that nothing is left behind."""

from dataclasses import asdict

import numpy as np
import pytest

from ms_omni.bench.callers import Load, callers, summary
from ms_omni.bench.report import METRICS, Outcome, combine, served_table, write_reports
from ms_omni.bench.scenarios import Sizes, serving, write_inputs
from ms_omni.errors import InputError

from .test_report import HEAD

SIZES = Sizes(
    image_pixels=96,
    video_pixels=64,
    video_frames=4,
    audio_s=1.0,
    prefill=(8, 90),
    batches=(1, 2),
    decode_tokens=4,
    speech_frames=3,
    wave_frames=6,
    answer_tokens=3,
    callers=Load((12, 20), (3, 5), (5, 9)),
    burst_prompt=16,
    clip_s=2.0,
    clip_pixels=(64, 64),
)
ALL = serving(SIZES, (1, 2), {"count": 2, "rate": None, "spoken": 0.5, "seed": 0})


@pytest.fixture(scope="module")
def measures(tiny_model, tiny_checkpoint, tmp_path_factory):
    from ms_omni.bench.measures import Measures

    path = tmp_path_factory.mktemp("serving") / "inputs.npz"
    write_inputs(tiny_checkpoint, SIZES, 0, path, clip=True)
    return Measures(tiny_model, dict(np.load(path)))


@pytest.mark.parametrize("scenario", [item for item in ALL if item.alone], ids=lambda item: item.name)
def test_a_scenario_gives_numbers_that_have_units(measures, scenario):
    numbers = measures.run(scenario.kind, scenario.settings)
    assert numbers.pop("compiled") == 0
    assert numbers and numbers.keys() <= METRICS.keys() and all(np.isfinite(value) for value in numbers.values())


def test_callers_on_an_engine_with_keys_and_values_in_8_bits(measures, monkeypatch):
    made, engine = [], measures.model.engine
    monkeypatch.setattr(measures.model, "engine", lambda *rows, **options: made.append(engine(*rows, **options)) or made[-1])
    found = measures.serving.serve(1, asdict(SIZES.callers), count=1, rate=None, spoken=0.0, seed=0, kv_cache_dtype="int8")
    assert found["failed"] == 0 and [item.kv_cache_dtype for item in made] == ["int8"]


def test_two_callers_get_what_they_asked_for(measures):
    """One in text and one in speech, both at once; the counts are what they want."""
    from ms_omni.bench.serving import timed_ticks

    wanted = callers(2, None, 0.5, 0, SIZES.callers)
    engine = measures.model.engine(2)
    with timed_ticks(engine) as seconds:
        answers = measures.serving._run(engine, wanted)
    assert [len(answer.tokens) for answer in answers] == [caller.tokens for caller in wanted]
    assert [round(answer.sound_s / 0.08) for answer in answers] == [caller.frames for caller in wanted]
    assert all(answer.ended is not None for answer in answers) and not engine.rows
    assert 0 < seconds["scheduling"] < seconds["ticks"]
    assert "step" not in vars(engine) and "plan" not in vars(engine.scheduler)  # nothing is left of the clocks
    engine.close()


def test_whoever_comes_later_is_answered_too(measures):

    engine = measures.model.engine(1)
    answers = measures.serving._run(engine, callers(3, 1000.0, 0.0, 1, SIZES.callers))
    assert all(answer.tokens[0] > answer.called for answer in answers)
    assert [answer.called for answer in answers] == sorted(answer.called for answer in answers)
    engine.close()


def test_an_answer_that_fails_is_counted(measures, monkeypatch):
    engine = measures.model.engine(2)
    monkeypatch.setattr(engine.thinker, "decode", broken(InputError("out of luck")))
    found = summary(measures.serving._run(engine, callers(2, None, 0.0, 1, SIZES.callers)))
    assert found == {"failed": 2}
    engine.close()


def broken(error):
    def call(*_):
        raise error

    return call


def test_the_second_question_is_the_same_with_and_without_the_first(measures):
    assert measures.run("again", {"tokens": 3})["same_ids"] == 1


def served(rows, **numbers):
    return combine(
        f"serve/{rows}", "engine", [{"first_token_p50_s": 0.25, "tokens_per_s": 10.0 * rows, "under_runs": 0, **numbers}]
    )


def test_the_report_of_callers(tmp_path):
    outcome = Outcome(results=served(4, failed=1) + served(1, failed=0))
    assert outcome.served[4]["tokens_per_s"] == 40.0 and list(outcome.served) == [1, 4]
    lines = served_table(outcome)
    assert lines[0] == "| rows | first token, median ms | under-runs | tokens/s | failed |"
    assert lines[2:] == ["| 1 | 250 | 0 | 10.0 | 0 |", "| 4 | 250 | 0 | 40.0 | 1 |"]
    paths = write_reports(tmp_path, {**HEAD, "asked": "2 callers"}, outcome, "serve")
    assert {path.name for path in paths} == {"serve.json", "serve.md", "serve.png"} == {p.name for p in tmp_path.iterdir()}
    assert "## Serving 2 callers" in (tmp_path / "serve.md").read_text()
    assert served_table(Outcome()) == []


def test_the_curves(tmp_path):
    from PIL import Image

    outcome = Outcome(results=served(1) + served(16))
    *_, path = write_reports(tmp_path, {**HEAD, "asked": "2 callers"}, outcome, "serve")
    picture = Image.open(path).convert("RGB")
    assert picture.width == 1200 and (0x2F, 0x6F, 0xDE) in {colour for _, colour in picture.getcolors(1 << 16)}
