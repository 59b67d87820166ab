"""Who calls when, and what callers wait for: from invented moments, never timed."""

import numpy as np
import pytest

from ms_omni.bench.callers import MEDIA_EVERY, Caller, Load, Timings, callers, gaps, inputs_of, percentiles, summary
from ms_omni.bench.report import METRICS


def test_callers_depend_on_the_seed_alone():
    assert callers(20, 2.0, 0.5, 3) == callers(20, 2.0, 0.5, 3) != callers(20, 2.0, 0.5, 4)


def test_callers_of_a_poisson_process_come_one_after_the_other_at_their_rate():
    moments = [caller.at_s for caller in callers(2000, 4.0, 0.5, 0)]
    assert moments == sorted(moments) and moments[0] > 0
    assert np.mean(np.diff(moments)) == pytest.approx(0.25, rel=0.1)
    assert np.std(np.diff(moments)) == pytest.approx(0.25, rel=0.1)  # an exponential distribution


def test_callers_at_once_want_what_is_allowed():
    load = Load((8, 16), (3, 5), (4, 6))
    found = callers(16, None, 0.25, 0, load)
    assert {caller.at_s for caller in found} == {0.0}
    assert sum(caller.frames > 0 for caller in found) == 4
    assert all(8 <= caller.prompt <= 16 and 3 <= caller.tokens <= 5 for caller in found)
    assert {caller.frames for caller in found} <= {0, 4, 5, 6}
    assert sum(caller.media for caller in found) == 16 // MEDIA_EVERY
    # The same callers come, spoken to or not, in a hurry or not.
    assert [caller.prompt for caller in found] == [caller.prompt for caller in callers(16, 9.0, 0.25, 0, load)]


def test_questions_have_the_length_that_is_asked_for():
    class Config:
        im_start_token_id, user_token_id, im_end_token_id = 901, 902, 903

    turn = [901, 902, 10, 1, 2, 3, 903, 10, 901, 904, 10]
    arrays = {"question.input_ids": np.array([turn]), "question.pixel_values": np.zeros((2, 3), np.float32)}
    ids = inputs_of(Caller(0.0, 20, 1, 0, False, [1]), arrays, Config)["input_ids"]
    assert ids.shape == (1, 20) and ids[0, :3].tolist() == turn[:3] and ids[0, -5:].tolist() == turn[-5:]
    first, second = (inputs_of(Caller(0.0, 20, 1, 0, True, [n]), arrays, Config) for n in (1, 2))
    assert first["input_ids"].tolist() == [turn] and not np.array_equal(first["pixel_values"], second["pixel_values"])


def test_silences():
    assert gaps([]) == gaps([(3.0, 1.0)]) == []
    assert gaps([(0.0, 1.0), (1.0, 1.0), (1.5, 1.0)]) == []  # just in time, then early
    assert gaps([(0.0, 1.0), (1.5, 1.0), (2.5, 1.0)]) == [0.5]  # late once; it goes on from there
    assert gaps([(0.0, 1.0), (0.1, 1.0), (2.25, 1.0), (4.25, 1.0)]) == [0.25, 1.0]


def test_the_figures_of_a_run():
    spoken = Timings(1.0, [1.5, 2.0], [(2.0, 1.0), (3.5, 1.0)], 4.0)
    text = Timings(0.0, [0.25, 0.5, 1.0], [], 1.0)
    lost = Timings(0.0, error=ValueError())
    found = summary([spoken, text, lost])
    assert found["first_token_p50_s"] == 0.375 and found["first_token_max_s"] == 0.5
    assert found["first_sound_p50_s"] == found["first_sound_max_s"] == 1.0
    assert found["token_p50_s"] == 0.375  # of text alone
    assert found["real_time_factor"] == 1.25
    assert (found["under_runs"], found["silence_s"], found["failed"]) == (1, 0.5, 1)
    assert (found["requests_per_s"], found["tokens_per_s"], found["sound_per_s"]) == (0.5, 1.25, 0.5)
    assert found.keys() <= METRICS.keys()


def test_text_alone_says_nothing_of_sound():
    found = summary([Timings(0.0, [0.25, 0.5], [], 0.5)])
    assert not [name for name in found if "sound" in name or name in ("under_runs", "real_time_factor")]
    assert summary([Timings(0.0, error=ValueError())]) == {"failed": 1}


def test_percentiles():
    assert percentiles("token", [float(n) for n in range(1, 101)]) == {
        "token_p50_s": 50.5,
        "token_p95_s": 95.0,
        "token_max_s": 100.0,
    }
    assert percentiles("token", [2.0]) == {"token_p50_s": 2.0, "token_p95_s": 2.0, "token_max_s": 2.0}
    assert percentiles("token", []) == {}
