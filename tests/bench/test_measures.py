"""Every scenario once, on the tiny model with tiny sizes: what it gives, not how long it takes; and what a token reads."""

import ast
from pathlib import Path

import numpy as np
import pytest

from ms_omni.bench.measures import storage, token_bytes
from ms_omni.bench.report import METRICS
from ms_omni.bench.scenarios import GROUPS, Sizes, chosen, scenarios, serving, sizes_of, write_inputs
from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.errors import InputError
from ms_omni.parallel.predict import predict

SIZES = Sizes(
    image_pixels=96,
    video_pixels=64,
    video_frames=4,
    audio_s=1.0,
    prefill=(8, 90),
    batches=(1, 2),
    decode_tokens=4,
    cached=(40,),
    speech_frames=3,
    wave_frames=6,
    answer_tokens=3,
    answer_frames=5,
    requests=2,
)
ALL = scenarios(SIZES)
REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "benchmark.py"


@pytest.fixture(scope="module")
def measures(tiny_model, tiny_checkpoint, tmp_path_factory):
    from ms_omni.bench.measures import Measures

    path = tmp_path_factory.mktemp("bench") / "inputs.npz"
    write_inputs(tiny_checkpoint, SIZES, 0, path)
    return Measures(tiny_model, dict(np.load(path)))


@pytest.mark.parametrize("scenario", ALL, ids=[item.name for item in ALL])
def test_a_scenario_gives_positive_numbers_that_have_units(measures, scenario):
    numbers = measures.run(scenario.kind, scenario.settings)
    compiled = numbers.pop("compiled")
    assert compiled == 0  # the model of the tests does not compile
    if scenario.counted:
        assert numbers and not numbers.keys() & METRICS.keys()
    else:
        assert numbers and numbers.keys() <= METRICS.keys() and all(value > 0 for value in numbers.values())


@pytest.mark.parametrize("fused", [True, False])
def test_reads_and_launches_of_a_text_token(fused, measures, monkeypatch):
    from ms_omni.modeling import ops

    if fused and not hasattr(ops.implementation(), "decoder_step"):
        pytest.skip("no C++ compiler, so no fused steps")
    if not fused:
        monkeypatch.setattr(ops, "prepare", lambda weights, kept=None: None)
        for part in (measures.model, measures.model.thinker):  # an engine of its own for this test
            monkeypatch.setattr(part, "own_engine", None)
    numbers = measures.run("count_text", {})
    assert numbers["reads_per_token"] == 1  # the logits
    assert numbers["graphs_per_token"] == 0
    launches = numbers["launches_per_token"]
    assert launches == numbers["kernels_per_token"]
    assert launches == 2 if fused else launches > 10  # the embedding and the step; or one by one without a graph


def test_reads_of_a_frame(measures):
    assert measures.run("count_speech", {})["reads_per_frame"] == 2  # the talker's logits, the frame's codes


def test_collectives_of_a_step_are_counted():
    from ms_omni.bench.counts import COUNTED_STEPS, per_step
    from ms_omni.parallel.mesh import Traffic

    traffic = Traffic()

    def steps():
        while True:
            traffic.add("all_reduce", 100, calls=2)
            yield None

    numbers = per_step(steps(), "token", traffic)
    assert numbers["collectives_per_token"] == 2 and numbers["collective_bytes_per_token"] == 100
    assert numbers["reads_per_token"] == 0 and COUNTED_STEPS > 1


def test_inputs_depend_on_the_seed_alone(tiny_checkpoint, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_inputs(tiny_checkpoint, SIZES, seed, tmp_path / f"{name}.npz")
    a, b, c = (dict(np.load(tmp_path / f"{name}.npz")) for name in "abc")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["ids"], c["ids"]) and not np.array_equal(a["codes"], c["codes"])


def test_the_meter_leaves_no_trace():
    from mindspore import Tensor
    from mindspore.common import api

    from ms_omni.bench.counts import READS, Meter

    before = [getattr(Tensor, name) for name in READS], api._JitExecutor.__call__
    x = Tensor(np.ones(3, np.float32))
    with Meter() as meter:
        x.asnumpy(), np.asarray(x), float(x[0]), bool(x[0] > 0), x.tolist(), x + x
    assert meter.reads == 5
    assert before == ([getattr(Tensor, name) for name in READS], api._JitExecutor.__call__)


def test_choosing():
    assert chosen(ALL, None) == (ALL, True)
    some, load = chosen(ALL, ["decode", "prefill/8"])
    assert [item.name for item in some] == ["prefill/8", "decode/1", "decode/2"] and not load
    assert chosen(ALL, ["load"]) == ([], True)
    with pytest.raises(InputError, match="no scenario 'talking'.*expected some of load, memory, image"):
        chosen(ALL, ["talking"])
    with pytest.raises(InputError, match="no scenario 'speech' for this checkpoint"):
        chosen(scenarios(SIZES, speaks=False), ["speech"])
    served = serving(SIZES, (1,), {})
    assert {item.group for item in [*ALL, *served]} | {"load"} == set(GROUPS)


def test_sizes():
    assert sizes_of("mini") != sizes_of("mid") == sizes_of("/some/folder")
    assert 512 in sizes_of("mid").prefill and sizes_of("mid").cached == (100, 1000) and sizes_of("mid").answer_tokens == 64


def test_the_reference_knows_every_scenario_that_is_timed():
    tree = ast.parse(REFERENCE.read_text(encoding="utf-8"))
    reference = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Reference")
    known = {
        node.name: {argument.arg for argument in node.args.args}
        for node in reference.body
        if isinstance(node, ast.FunctionDef)
    }
    for scenario in ALL:
        if not scenario.counted and not scenario.alone:
            assert scenario.settings.keys() <= known[scenario.kind], scenario.name


@pytest.mark.parametrize("rows", [1, 4])
def test_bytes_of_a_token(tiny_model, rows):
    found = predict(tiny_model.config, parameter_shapes(tiny_model.config), "ep", 1, 256, 4, rows=rows)
    assert token_bytes(tiny_model, rows) == pytest.approx(found.token.reads - found.cached, rel=1e-6)
    assert storage(tiny_model) == f"float32 {found.held / 1e9:.2f} GB"
