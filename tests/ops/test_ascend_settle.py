"""What the comparing process does to itself is a result; from the results forms are chosen, by kind and type, and said."""

import json
import os
import sys
import warnings
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from ms_omni.errors import DeviceError
from ms_omni.modeling.ops import ascend_settle as settle
from ms_omni.modeling.ops.ascend import Ascend
from ms_omni.modeling.ops.ascend_cases import KINDS
from ms_omni.modeling.ops.ascend_check import EAGER, GRAPH, Row, compare, examine, prepared, rows_of, tensor
from ms_omni.modeling.ops.ascend_step_cases import STEPS
from ms_omni.modeling.ops.fused import FrameWeights, StackWeights
from ms_omni.modeling.ops.reference import Reference

ROOT = str(Path(__file__).resolve().parents[2])
CLIP, ARGMAX = Row("clip", "any", 0, EAGER), Row("argmax", "any", 0, EAGER)
FAKE = """
import json, os, signal, sys, time
known = [row for row, _ in json.load(sys.stdin)["known"]]
def say(*items):
    for item in items:
        print(json.dumps(item), flush=True)
for row in {rows}:
    if row in known:
        continue
    say([row, None])
    if row[0] == "clip":
        {fault}
    say([row, 0.0])
say("done")
"""


@pytest.fixture
def child(monkeypatch, tmp_path):
    """`child(fault)`: results of a process that compares two operators and does this at the first one."""

    def ask(fault, script=FAKE):
        path = tmp_path / "child.py"
        path.write_text(script.format(rows=[list(CLIP), list(ARGMAX)], fault=fault))
        monkeypatch.setattr(settle, "COMMAND", [sys.executable, str(path)])
        return settle.run_comparison(ms.float32, full=False)

    return ask


@pytest.mark.parametrize(
    "fault, said",
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with SIGSEGV"),
        ("os._exit(7)", "ended with exit code 7"),
        ("sys.exit()", "ended with exit code 0"),
        ("time.sleep(60)", "did not get on within 1 s"),
        ("print('all is well', flush=True)", "said what is no result: b'all is well'"),
        ("say('done ')", "said what is no result"),
        ("say([row, {}])", "said what is no result"),
        ("say([row, None])", "said what is no result"),
        ("say([['clip', 'any', 0, 'compiled'], 0.0])", "said what is no result"),
        ("say([['luck', 'any', 0, 'called'], 0.0])", "said what is no result"),
        ("say([row[:2], 0.0])", "said what is no result"),
        ("say([row, 'the device is gone']); os._exit(1)", "the device is gone"),
    ],
)
def test_a_fault_is_a_result_and_the_rest_goes_on(child, monkeypatch, fault, said):
    monkeypatch.setattr(settle, "ROW_LIMIT_S", 1)
    found = child(fault)
    assert found[CLIP].startswith(said) and found[ARGMAX] == 0.0 and len(found) == 2


def test_rows_that_are_told_twice_end_in_the_same_way(child):
    assert child("say([row, 0.5], [row, None], [row, 0.0])") == {CLIP: 0.5, ARGMAX: 0.0}


@pytest.mark.parametrize(
    "script, said", [("1/0  # {rows}{fault}", "ZeroDivisionError"), ("import time; time.sleep(60)", "did not get on")]
)
def test_a_process_that_does_not_begin_is_an_error(child, monkeypatch, script, said):
    monkeypatch.setattr(settle, "START_LIMIT_S", 1)
    with pytest.raises(DeviceError, match=f"the operators cannot be compared on this device: .*{said}"):
        child("", script)


def test_the_process_is_no_member_of_a_job(child, monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    found = child("say([row, os.environ.get('MS_ROLE', 'nobody') + os.environ['MS_OMNI_OPS']]); continue")
    assert found[CLIP] == "nobodyascend-emulated"


REAL = """
import os, signal, sys
sys.path.insert(0, {root!r})
from ms_omni.modeling.ops import ascend_check, ascend_kernels, ascend_step_cases
for name in set(ascend_check.KINDS) - {{"swiglu", "write_rows", "rms_norm"}}:
    del ascend_check.KINDS[name]
for name in set(ascend_step_cases.STEPS) - {{"decoder_chunk"}}:
    del ascend_step_cases.STEPS[name]
ascend_kernels.swiglu = lambda x: os.kill(os.getpid(), signal.SIGSEGV)
ascend_check.main()
"""


def test_forms_are_compared_in_a_process_that_one_of_them_ends(monkeypatch, tmp_path):
    (tmp_path / "child.py").write_text(REAL.format(root=ROOT))
    monkeypatch.setattr(settle, "COMMAND", [sys.executable, str(tmp_path / "child.py")])
    found = settle.run_comparison(ms.float32, full=False)
    assert (
        found.pop(Row("swiglu", "any", 0, EAGER)) == found.pop(Row("decoder_chunk", "any", 0, EAGER)) == "ended with SIGSEGV"
    )
    assert set(found) == {
        Row("swiglu", "any", 1, EAGER),
        Row("write_rows", "any", 0, EAGER),
        Row("rms_norm", "any", 0, EAGER),
    }
    assert max(found.values()) < 1e-5


# ---- choosing --------------------------------------------------------------------------------------------------------


def right(full=True):
    """Results of a device on which every first form is right."""
    every = {**KINDS, **STEPS}.items()
    return {row: 1e-6 for operator, kinds in every for kind in kinds for row in rows_of(operator, kind, 0, full)[0]}


def wrong(operator, kind, form, mode=EAGER, result="RuntimeError: EZ9999", then=1e-6):
    """A form that fails; those behind it are right."""
    rows = {Row(operator, kind, number, way): then for number in range(form + 1, 4) for way in (EAGER, GRAPH)}
    return {Row(operator, kind, form, EAGER): 1e-6, **rows, Row(operator, kind, form, mode): result}


@pytest.fixture
def settled(monkeypatch):
    """`settled(results, ...)`: the class that comes of these results, for float32 (the first) and bfloat16, and the warnings."""

    def choose(*found):
        known = dict(zip((ms.float32, ms.bfloat16), found))
        monkeypatch.setattr(settle, "load_results", lambda dtype: (known[dtype], "FILE"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chosen = settle.settled(Ascend, frozenset(known))
        return chosen, [str(item.message) for item in caught]

    return choose


def test_the_preferred_forms_are_taken_where_all_is_right(settled):
    chosen, said = settled(right(), right())
    assert not said and {ms.float32, ms.bfloat16} == chosen.SETTLED
    for operator in KINDS:
        assert getattr(chosen, operator) is getattr(Ascend, operator)
        assert "agrees with its formula, largest difference 1.0e-06 in bfloat16" in chosen.OUTCOMES[operator]
    assert chosen.GRAPH_EXPERT_ROWS == Ascend.GRAPH_EXPERT_ROWS


def test_a_form_that_fails_for_one_kind_is_replaced_for_that_kind_alone(settled):
    chosen, said = settled(right() | wrong("experts", "many tokens", 0))
    assert len(said) == 1 and said[0].startswith(
        "operator experts, many tokens: experts_of_all_pairs is used instead of experts"
    )
    assert "experts called: RuntimeError: EZ9999" in said[0] and "known from FILE" in said[0]
    used = []
    names = ("experts", "experts_of_all_pairs")
    candidates = [lambda *args, name=name: used.append(name) for name in names]
    rules = [(ms.float32, kind, int(kind.name == "many tokens")) for kind in KINDS["experts"]]
    method = settle._method("experts", rules, candidates)
    few, many = (Tensor(np.zeros((rows, 8), np.int32)) for rows in (1, 33))
    for indices, first in ((few, None), (many, None), (few, 3), (many, 3)):
        method(Tensor([1.0]), None, None, None, indices, first)
    assert used == ["experts", "experts_of_all_pairs", "experts", "experts"]
    assert chosen.experts is not Ascend.experts and chosen.attention is Ascend.attention


def plus(x, weight):
    return x + weight


def minus(x, weight):
    return x - weight


@pytest.mark.parametrize("operator", [operator for operator, kinds in KINDS.items() if len(kinds) > 1])
def test_what_kind_arguments_are_of_is_known_inside_graphs(operator):
    first, second = KINDS[operator][:2]

    class Graph(nn.Cell):
        @ms.jit
        def construct(self, *args):
            return first.fits(*args)

    for kind in (first, second):
        case = next(kind.cases(np.random.default_rng(5), False))
        assert Graph()(*(tensor(value, ms.float32) for value in case)) is (kind is first)


def test_graphs_hold_the_choice(settled, normal):
    """By kind, and by the type of the arguments, which are known when a graph is compiled."""
    chosen, said = settled(right(), right() | wrong("linear", "one row", 0))
    assert chosen.linear is not Ascend.linear and "in bfloat16" in said[0]
    rules = [(dtype, kind, int(kind.fits is None)) for dtype in (ms.float16, ms.float32) for kind in KINDS["linear"]]
    rules[1] = (ms.float16, KINDS["linear"][1], 1)
    method = settle._method("linear", rules, (plus, minus))

    class Graph(nn.Cell):
        @ms.jit
        def construct(self, x):
            return method(x, x), method(x[:1], x[:1]), method(x[:1].astype(ms.float16), x[:1].astype(ms.float16))

    x = normal(2, 3)
    several, one, half = (part.asnumpy() for part in Graph()(Tensor(x)))
    assert not several.any() and np.allclose(one, 2 * x[:1]) and not half.any()


def test_what_fails_in_a_graph_is_replaced_if_graphs_need_it(settled):
    failing = wrong("attention", "one query", 0, GRAPH) | wrong("attention", "several queries", 0, GRAPH)
    chosen, said = settled(right() | failing)
    assert [text.partition(":")[0] for text in said] == ["operator attention, one query"]
    assert "(not as part of a graph, which the model does not need: attention compiled" in chosen.OUTCOMES["attention"]


def test_an_operator_without_a_form_that_works_is_an_error(settled):
    only = wrong("clip", "any", 0, result=0.5) | wrong("gelu", "any", 0, then="hung")
    with pytest.raises(
        DeviceError, match="operator gelu: no form .* in float32 .*gelu called: RuntimeError.*reference called: hung"
    ):
        settled(right() | only)
    with pytest.raises(DeviceError, match="operator clip: no form of it works.*off by 0.5 of its scale, allowed 0.002"):
        settled(right() | wrong("clip", "any", 0, result=0.5))


@pytest.mark.parametrize("result", [float("nan"), float("inf"), -1.0, True, 0, None, "0.0"])
def test_what_is_no_small_number_is_not_right(settled, result):
    _, said = settled(right() | wrong("gelu", "any", 0, result=result))
    assert len(said) == 1 and "reference is used instead" in said[0]


def test_strict_allows_no_replacement(settled, monkeypatch):
    monkeypatch.setenv("MS_OMNI_STRICT", "1")
    assert settled(right())[0].gelu is Ascend.gelu
    with pytest.raises(
        DeviceError, match="MS_OMNI_STRICT=1 allows no replacement.*operator gelu: reference is used instead of"
    ):
        settled(right() | wrong("gelu", "any", 0))


# ---- whole steps -----------------------------------------------------------------------------------------------------


def packs(chosen, dtype=ms.bfloat16):
    """Whether stacks, and whether frames, are packed."""
    stack = StackWeights((), Tensor([1.0], dtype), 1e-6, 128)
    return chosen.packs(stack), chosen.packs(FrameWeights(stack, None, (), (np.zeros((64, 8)),), None, None))


@pytest.mark.parametrize(
    "step, mode, expected",
    [
        ("decoder_step", GRAPH, (False, True)),
        ("decoder_step", EAGER, (False, True)),
        ("decoder_chunk", EAGER, (False, True)),
        ("code_frame", GRAPH, (True, False)),
    ],
)
def test_cells_run_where_a_step_is_wrong(settled, step, mode, expected):
    chosen, (said,) = settled(right(), right() | {Row(step, "any", 0, mode): 0.5})
    form = {"decoder_step": "packed_step", "decoder_chunk": "packed_chunk", "code_frame": "packed_frame"}[step]
    assert said.startswith(f"operator {step}: cells is used instead of {form} ({form} {mode}: off by 0.5 of its scale")
    assert packs(chosen) == expected and packs(Ascend) == (True, True)
    assert said.partition(" [")[0].removeprefix("operator ") in chosen.OUTCOMES[step]


def test_strict_allows_no_cells_either(settled, monkeypatch):
    monkeypatch.setenv("MS_OMNI_STRICT", "1")
    assert packs(settled(right(), right())[0]) == (True, True)
    with pytest.raises(DeviceError, match="MS_OMNI_STRICT=1 allows no replacement.*cells is used instead of packed_frame"):
        settled(right(), right() | {Row("code_frame", "any", 0, EAGER): "hung"})


@pytest.mark.parametrize("result, boosted", [(1e-6, True), (0.5, False), ("hung", False), (None, False)])
def test_boosted_layers_that_are_wrong_as_a_graph_are_left(settled, monkeypatch, result, boosted):
    wrong = {Row("boosted_step", "any", 0, GRAPH): result}
    assert "boosted_step" not in settled(right(), right() | wrong)[0].steps(ms.bfloat16)
    monkeypatch.setenv("MS_OMNI_BOOST", "1")
    chosen, said = settled(right(), right() | wrong)
    assert packs(chosen) == (True, True) and ("boosted_step" in chosen.steps(ms.bfloat16)) is boosted
    assert (
        [text.partition(" (")[0] for text in said] == []
        if boosted
        else ["operator boosted_step: packed_step is used instead of boosted_step"]
    )


def test_boosted_layers_are_never_called_one_by_one_on_a_card(monkeypatch):
    monkeypatch.setenv("MS_OMNI_BOOST", "1")
    assert {row.mode for row in right() if row.operator == "boosted_step"} == {GRAPH}
    monkeypatch.setattr(ms, "get_context", lambda name: "Ascend")
    known = {row: 1e-6 for row in right(full=False) if row.operator != "boosted_step"}
    assert "boosted_step" in Ascend.steps(ms.bfloat16) and not list(examine(Ascend, ms.bfloat16, False, known))


def test_experts_of_reference_limit_the_graphs(settled):
    chosen, _ = settled(
        right()
        | wrong("experts", "few tokens", 0, then="fails")
        | {Row("experts", "few tokens", 2, way): 0.0 for way in (EAGER, GRAPH)}
    )
    assert chosen.GRAPH_EXPERT_ROWS == Reference.GRAPH_EXPERT_ROWS < Ascend.GRAPH_EXPERT_ROWS


def test_a_dry_run_has_nothing_to_compare(monkeypatch):
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "1")
    assert settle.settled(Ascend, frozenset([ms.bfloat16])) is Ascend


def test_what_is_written_in_place_is_looked_at():
    """A result that is right, and a buffer that is as it was."""
    (kind,) = KINDS["write_rows"]
    cases = prepared("write_rows", kind, ms.float32, False)
    assert compare(Reference.write_rows, cases, ms.float32, EAGER) == 0.0
    assert compare(Reference.write_rows, cases, ms.float32, GRAPH) == 0.0
    assert compare(lambda buffer, index, rows: Reference.scatter_rows(buffer, index, rows), cases, ms.float32, EAGER) > 0.1


def test_every_kind_is_what_its_cases_are():
    """Arguments are of the first kind that they fit."""
    for operator, kinds in KINDS.items():
        assert kinds[-1].fits is None and all(kind.fits for kind in kinds[:-1]), operator
        for kind in kinds:
            for case in kind.cases(
                np.random.default_rng(5), operator not in ("experts", "embedding", "conv1d", "write_rows")
            ):
                found = next(other for other in kinds if other.fits is None or other.fits(*case))
                assert found is kind, (operator, kind.name)


# ---- what is kept ----------------------------------------------------------------------------------------------------


@pytest.fixture
def compared_dtypes(monkeypatch, tmp_path):
    """The types that were compared in; everything is kept in a folder of this test."""
    found = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        settle, "run_comparison", lambda dtype, full: found.append((str(dtype), full)) or {CLIP: 0.25, ARGMAX: "hung"}
    )
    return found


def test_results_are_computed_once_and_cached(compared_dtypes, monkeypatch):
    first, path = settle.load_results(ms.float32)
    assert (
        settle.load_results(ms.float32) == (first, path)
        and first == {CLIP: 0.25, ARGMAX: "hung"}
        and len(compared_dtypes) == 1
    )
    with open(path, "r+b") as file:
        file.write(b"x")  # damaged, it is found again
    assert settle.load_results(ms.float32) == (first, path) and len(compared_dtypes) == 2


@pytest.mark.parametrize(
    "name, value",
    [
        ("versions", lambda: {"cann": "9.9", "driver": "25.0"}),
        ("_digest", lambda: "other forms"),
        ("boost_wanted", lambda: True),
    ],
)
def test_results_hold_for_the_versions_they_were_computed_with(compared_dtypes, monkeypatch, name, value):
    settle.load_results(ms.float32)
    monkeypatch.setattr(settle, name, value)
    settle.load_results(ms.float32)
    settle.load_results(ms.bfloat16)
    assert len(compared_dtypes) == 3


def test_a_card_is_compared_in_full_and_unknown_software_is_not_believed_for_long(compared_dtypes, monkeypatch, capsys):
    monkeypatch.setattr(ms, "get_context", lambda name: "Ascend")
    monkeypatch.setattr(ms.hal, "get_device_name", lambda index: "Ascend910B2")
    for parent in (1, 1, 2):
        monkeypatch.setattr(os, "getppid", lambda parent=parent: parent)
        settle.load_results(ms.bfloat16)
    assert compared_dtypes == [("BFloat16", True)] * 2 and "compares its operators on Ascend910B2" in capsys.readouterr().err
    monkeypatch.setattr(settle, "versions", lambda: {"cann": "8.3.RC1", "driver": "25.0"})
    for parent in (1, 2):
        monkeypatch.setattr(os, "getppid", lambda parent=parent: parent)
        path = settle.load_results(ms.bfloat16)[1]
    assert len(compared_dtypes) == 3 and json.loads(Path(path).read_bytes()[:-32])["of"]["driver"] == "25.0"
