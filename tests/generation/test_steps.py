"""The steps of generation: compiled and not, lent and given back."""

import numpy as np
import pytest

from ms_omni.modeling.steps import KEPT_STEPS, StepPool

FRAMES = 6


@pytest.fixture
def cells_only(monkeypatch):
    """No fused operators, as where there is no compiler, on other devices and under a parallel plan."""
    from ms_omni.modeling import ops

    monkeypatch.setattr(ops, "prepare", lambda weights, kept=None: None)


@pytest.fixture(scope="module")
def eager_and_compiled(tiny_checkpoint):
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    eager = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tiny_checkpoint, compile_steps=False)
    compiled = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tiny_checkpoint)
    compiled.steps.compile_after = compiled.thinker.steps.compile_after = 2  # in the middle of the first request
    return eager, compiled


def speaking(greedy):
    return dict(
        max_new_tokens=6,
        talker_max_new_tokens=FRAMES,
        eos_token_id=[],
        talker_eos_token_id=[],
        seed=5,
        talker_do_sample=not greedy,
        do_sample=not greedy,
        top_k=20,
    )


@pytest.mark.parametrize("greedy", [pytest.param(True, marks=pytest.mark.slow), False])
def test_compiled_steps_give_the_same_answer(greedy, cells_only, eager_and_compiled, ask):
    inputs, options = ask("hello"), speaking(greedy)
    results = [model.generate(**inputs, **options) for model in eager_and_compiled]
    (ids, wave), (same_ids, same_wave) = results
    assert (ids == same_ids).all()
    assert np.abs(wave - same_wave).max() < 1e-5
    compiled = eager_and_compiled[1]
    assert {key[0] for key, _ in compiled.steps.free} == {"talker", "frame"} and compiled.thinker.steps.free
    assert not eager_and_compiled[0].steps.free and not eager_and_compiled[0].thinker.steps.free
    again_ids, again_wave = compiled.generate(**inputs, **options)  # on kept steps, whose buffers are full of the last
    assert (again_ids == ids).all() and np.abs(again_wave - same_wave).max() < 1e-5


@pytest.mark.parametrize("greedy", [True, False])
def test_fused_steps_give_the_same_answer_and_need_no_graph(greedy, eager_and_compiled, ask, request):
    eager, _ = eager_and_compiled
    inputs, options = ask("hello"), speaking(greedy)
    ids, wave = eager.generate(**inputs, **options)
    assert not eager.steps.free and not eager.thinker.steps.free
    request.getfixturevalue("cells_only")
    same_ids, same_wave = eager.generate(**inputs, **options)
    assert (ids == same_ids).all()
    assert np.abs(wave - same_wave).max() < 1e-5


def test_two_streams_at_once_do_not_share_a_step(cells_only, eager_and_compiled, ask):
    _, compiled = eager_and_compiled
    inputs, options = ask("hello"), dict(max_new_tokens=5, eos_token_id=[], return_audio=False)
    alone = [event.token.tolist() for event in compiled.stream(**inputs, **options) if hasattr(event, "token")]
    first, second = (compiled.stream(**inputs, **options) for _ in range(2))
    pairs = [(a.token.tolist(), b.token.tolist()) for a, b in zip(first, second) if hasattr(a, "token")]
    assert pairs == [(token, token) for token in alone]


class FakeStep:
    def __init__(self, compiled=True):
        self.is_compiled, self.calls, self.compile_from = compiled, 0, None


def test_a_pool_keeps_compiled_steps_and_counts_calls_over_requests():
    pool = StepPool(compile_after=10)
    with pool.lend("a", lambda: FakeStep(compiled=False)) as step:
        assert step.compile_from == 10
        step.calls = 7
    with pool.lend("a", FakeStep) as later:
        assert later is not step and later.compile_from == 3  # without a graph nothing is worth keeping
    with pool.lend("a", FakeStep) as kept:
        assert kept is later
        with pool.lend("a", FakeStep) as other:
            assert other is not kept
    with pool.lend("b", FakeStep) as different:
        assert different is not kept and different.compile_from == 10
    for key in range(2 * KEPT_STEPS):
        with pool.lend(key, FakeStep):
            pass
    assert len(pool.free) == KEPT_STEPS
    pool.clear()
    assert not pool.free


def test_a_step_comes_back_after_an_error():
    pool, step = StepPool(compile_after=None), FakeStep()
    with pytest.raises(RuntimeError), pool.lend("a", lambda: step):
        assert step.compile_from is None
        raise RuntimeError
    with pool.lend("a", FakeStep) as again:
        assert again is step
