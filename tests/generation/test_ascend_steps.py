"""Whole steps of Ascend over packed weights, on emulated kernels: kernel by kernel, and as graphs made before anybody waits."""

import numpy as np
import pytest
from mindspore.common import api

from ms_omni.engine.engine import Engine
from tests.generation import small
from tests.generation.small import CALLERS, GREEDY, SURE, check_sound, check_sure
from tests.parallel.answers import inputs_of
from tests.parallel.engine_worker import asked_by_threads, engine_of, run, same

LENGTHS = (10, 600, 2000)
"""Of answers, in tokens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.write(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="module")
def model(folder):
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, compile_steps=False, progress=False)


@pytest.fixture(scope="module")
def requests(folder):
    return small.requests_of(folder)


@pytest.fixture(scope="module")
def expected(model, requests):
    """What CPU answers."""
    return run(engine_of(model, max_rows=4), requests)


@pytest.fixture(scope="module")
def said(model, folder):
    """What `generate` says on CPU to one and to several."""
    return {name: model.generate(**inputs_of(folder, name), **GREEDY) for name in ("text", "batch")}


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A thinker alone, of one layer; a question, and a long answer to it on CPU."""
    from ms_omni import Qwen3OmniMoeThinkerForConditionalGeneration

    folder = small.write(tmp_path_factory.mktemp("writer") / "checkpoint", layers=1, talker=False)
    thinker = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(folder, compile_steps=False, progress=False)
    inputs = inputs_of(folder, "text")
    return thinker, inputs, thinker.generate(**inputs, max_new_tokens=LENGTHS[-1], eos_token_id=[])[0]


@pytest.fixture
def compilations():
    """`compilations()`: how many graphs MindSpore has compiled since the test began."""
    before = len(api.ms_compile_cache)
    return lambda: len(api.ms_compile_cache) - before


@pytest.fixture
def as_graphs(model, monkeypatch):
    """Steps are graphs, of engines that are made while a test runs."""
    monkeypatch.setattr(model, "compile_after", 0)
    monkeypatch.setattr(model, "own_engine", None)


@pytest.mark.parametrize("bits, group", [("int8", None), ("int4", 32)])
def test_codes_answer_as_on_cpu(folder, use_operators, bits, group):
    """Layers of the thinker are codes for the kernels; the talker's sizes are none that they take, and become numbers."""
    from ms_omni import Qwen3OmniMoeForConditionalGeneration
    from ms_omni.modeling.ops.ascend import Ascend
    from tests import ascend_emulation

    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        folder, compile_steps=False, progress=False, quantize=bits, quantize_group=group
    )
    said = {"text": model.generate(**inputs_of(folder, "text"), **GREEDY)}
    undo = ascend_emulation.install()
    try:
        use_operators(Ascend)
        check_generate(model, folder, said, said)
        stacks = [stage.pool.stack for stage in (model.own_engine.thinker, model.own_engine.speech)]
        coded, numbers = ({name: type(product).__name__ for name, product in s.layers[0].stored.items()} for s in stacks)
        assert {name for name, kind in coded.items() if kind.startswith("Coded")} == coded.keys() - {"router"}
        assert numbers["qkv"] == "Dense" and numbers["experts_down"] == "CodedGrouped"
        assert not model.own_engine._weights.changed()
    finally:
        undo()


def check_packed(engine):
    for stage in (engine.thinker, engine.speech):
        assert stage.step.fused is stage.pool.stack is not None
    assert engine.speech.mixed(None)


def check_generate(model, folder, said, names):
    for name in names:
        (ids, sound), (own, heard) = model.generate(**inputs_of(folder, name), **GREEDY), said[name]
        assert np.array_equal(ids, own), name
        for wave, other in zip(
            *(waves if isinstance(waves, (list, tuple)) else [waves] for waves in (sound, heard)), strict=True
        ):
            check_sound(wave, other)
    check_packed(model.own_engine)


def test_generate_answers_as_on_cpu(said, model, folder, ascend):
    check_generate(model, folder, said, said)


def test_rows_beside_each_other_answer_as_on_cpu(expected, model, requests, ascend, compilations):
    """Rows join one tick after another, one leaves; those that draw have what they draw alone."""
    engine = engine_of(model, max_rows=4)
    check_packed(engine)
    found = run(engine, requests)
    check_sure(found, expected)
    drawn = [number for number in range(len(CALLERS)) if number not in SURE]
    assert all(same([found[number] for number in drawn], run(engine_of(model, max_rows=1), [requests[n] for n in drawn])))
    left = run(engine_of(model, max_rows=4), requests, cancel=2)
    assert all(same(left, [*found[:2], *found[3:]]))
    assert compilations() == 0


@pytest.mark.slow
def test_graphs_are_made_when_an_engine_starts_and_never_later(expected, model, requests, ascend, as_graphs, compilations):
    """For launches of 1, 2 and 4 rows, of thinker, talker and frames each; while rows come and go, from other threads too."""
    engine = engine_of(model, max_rows=4)
    made = compilations()
    check_packed(engine)
    assert made >= 9 and engine.thinker.step.sizes == engine.speech.step.sizes == [1, 2, 4]
    found = run(engine, requests)
    check_sure(found, expected)
    assert all(same(asked_by_threads(engine, requests[:4]), found[:4]))
    assert compilations() == made


@pytest.mark.slow
def test_generate_makes_its_graphs_before_the_first_answer(said, model, folder, ascend, as_graphs, compilations):
    check_generate(model, folder, said, ["text"])
    made = compilations()
    assert made >= 3
    check_generate(model, folder, said, ["text"])
    assert compilations() == made and model.own_engine.thinker.step.sizes == [1]


@pytest.mark.slow
def test_answers_of_any_length_compile_nothing(writer, ascend, compilations, monkeypatch):
    """Past several blocks, of which tables hold 1, 2, 4 .. on other devices."""
    thinker, inputs, written = writer
    monkeypatch.setattr(thinker, "compile_after", 0)
    engine = Engine(thinker, max_rows=1, tokens=len(written))
    made = compilations()
    assert engine.thinker.step.fused is engine.thinker.pool.stack is not None and engine.thinker.step.sizes == [1] and made
    for length in LENGTHS:
        *_, end = engine.events(engine.add(**inputs, max_new_tokens=length, eos_token_id=[]))
        assert end.text_tokens[0] == length and np.array_equal(end.sequences[0], written[: len(end.sequences[0])])
        assert compilations() == made
