"""Operators that do not mean what their documentation says are found on the device, named, and replaced."""

import inspect
import warnings
from unittest import mock

import mindspore as ms
import numpy as np
import pytest
from mindspore.common import api

from ms_omni.errors import DeviceError
from ms_omni.modeling import ops
from ms_omni.modeling.ops import ascend_kernels, ascend_settle, dispatch
from ms_omni.modeling.ops.ascend_cases import CASES, KINDS
from ms_omni.modeling.ops.ascend_check import EAGER, GRAPH, compare, examine, is_right, prepared, tensor
from ms_omni.modeling.ops.ascend_step_cases import STEP_FORMS, STEPS
from ms_omni.modeling.ops.cpu import Cpu
from ms_omni.modeling.ops.fused import FrameWeights, StackWeights
from ms_omni.modeling.ops.reference import Reference

KERNELS = {}
"""The kernels in numpy, while they are installed."""


def compared(implementation, full=False):
    """The results of the comparison, made in this process."""
    return {row: result for row, result in examine(implementation, ms.float32, full, {}) if result is not None}


@pytest.fixture
def settled(ascend, monkeypatch):
    """`settled(kernel=function, ...)`: what `ops.describe` says of each operator with these kernels exchanged, as a dict
    operator -> (implementation, reason), and the warnings."""
    KERNELS.update({name: value for name, value in vars(ascend_kernels).items() if inspect.isfunction(value)})

    def settle(**kernels):
        for name, function in kernels.items():
            assert name in KERNELS
            monkeypatch.setattr(ascend_kernels, name, function)
        monkeypatch.setattr(ascend_settle, "load_results", lambda dtype: (compared(ascend), "FILE"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ops.settle(ms.float32)
        rows = {operator: (implementation, reason) for operator, implementation, reason in ops.describe()}
        return rows, [str(item.message) for item in caught if "operator " in str(item.message)]

    return settle


def test_kernels_that_do_as_documented_are_used(settled, ascend):
    rows, complaints = settled()
    assert not complaints
    for operator in KINDS:
        implementation, reason = rows[operator]
        assert implementation == ("ascend" if operator in vars(ascend) else "reference")
        assert "agrees with its formula, largest difference" in reason
    assert ops.graph_expert_rows() > 10**6


@pytest.mark.parametrize("implementation", [Reference, Cpu])
def test_every_implementation_agrees_with_the_formulas(implementation):
    actual = compared(implementation)
    assert {row.operator for row in actual} == set(KINDS) and all(is_right(result, ms.float32) for result in actual.values())


@pytest.mark.parametrize("operator", CASES)
def test_results_have_the_types_and_values_of_the_reference(operator, ascend, close):
    """Closer than a device is asked to be: the two forms of GELU differ here."""
    for arguments in CASES[operator](np.random.default_rng(5)):
        theirs, *ours = (
            results(form(*[tensor(value, ms.float32) for value in arguments]))
            for form in (getattr(Reference, operator), getattr(ascend, operator), *ascend.OTHER_FORMS.get(operator, ()))
        )
        for actual in ours:
            assert [x.dtype for x in actual] == [x.dtype for x in theirs]
            for x, expected in zip(actual, theirs):
                close(x, expected.asnumpy(), 2e-5)


def results(value):
    return value if isinstance(value, tuple) else (value,)


def test_forms_are_compared_as_part_of_graphs_too(ascend):
    few = {operator: KINDS[operator] for operator in ("rotary", "write_rows", "route_topk")}
    with mock.patch.dict(KINDS, few, clear=True), mock.patch.dict(STEPS, clear=True):
        actual = compared(ascend, full=True)
    assert {row.mode for row in actual} == {EAGER, GRAPH} and all(is_right(result, ms.float32) for result in actual.values())


def test_every_operator_but_those_that_consist_of_others_is_compared(ascend):
    methods = {name: vars(Reference)[name] for name in dispatch.OPERATORS if name in vars(Reference)}
    single = {name for name, method in methods.items() if isinstance(method, staticmethod)}
    assert KINDS.keys() == single
    for name, forms in ascend.OTHER_FORMS.items():
        for function in forms:
            assert inspect.signature(function) == inspect.signature(getattr(Reference, name)), name


def keeps_what_it_should_discard(q, k, v, mask, *others):
    return KERNELS["fused_infer_attention"](q, k, v, None if mask is None else ~mask, *others)


def ignores_the_mask(q, k, v, mask, *others):
    return KERNELS["fused_infer_attention"](q, k, v, None, *others)


def other_heads(q, k, v, mask, *others):
    """Query head h reads kv head h mod K instead of h // (H / K)."""
    flipped = ms.mint.flip(q, (1,)) if others[-1] != "BSND" else q
    return KERNELS["fused_infer_attention"](flipped, k, v, mask, *others)


def the_blocks_of_another_row(q, keys, values, tables, lengths, *others):
    return KERNELS["paged_infer_attention"](q, keys, values, ms.mint.flip(tables, (0,)), lengths, *others)


def reads_behind_the_end(q, keys, values, tables, lengths, heads, kv_heads, block, *others):
    lengths = lengths * 0 + tables.shape[1] * block
    return KERNELS["paged_infer_attention"](q, keys, values, tables, lengths, heads, kv_heads, block, *others)


def one_segment(q, k, v, ends, scale):
    return KERNELS["varlen_attention"](q, k, v, (ends[-1],), scale)


class RemembersTheFirstLengths:
    """What a graph might do with what is read on the host."""

    def __init__(self):
        self.first = {}

    def __str__(self):
        return "It remembers_the_first_lengths"

    def __call__(self, q, keys, values, tables, lengths, *others):
        if others[-1] == "BSH":
            lengths = self.first.setdefault((q.shape, keys.shape), lengths)
        return KERNELS["paged_infer_attention"](q, keys, values, tables, lengths, *others)


def neighbours(x, cos, sin):
    """Pairs (2 i, 2 i + 1), the kernel's mode 1."""
    d = x.shape[-1]
    order = np.arange(d).reshape(2, d // 2).T.reshape(-1)
    out = KERNELS["rotary_position_embedding"](x[..., ms.Tensor(np.argsort(order))], cos, sin)
    return out[..., ms.Tensor(order)]


def pairs_by_columns(x, indices, experts):
    n, k = indices.shape
    rows, row_index, counts = KERNELS["moe_init_routing"](x, indices, experts)
    return rows, row_index.reshape(n, k).T.reshape(-1), counts


def other_counts(x, weight, counts):
    return KERNELS["grouped_matmul"](x, weight, ms.Tensor(np.sort(counts.asnumpy()), ms.int64))


def up_first(x):
    up, gate = ms.mint.chunk(x, 2, -1)
    return KERNELS["swiglu"](ms.mint.cat((gate, up), -1))


def smallest_first(x, k):
    values, indices = KERNELS["topk"](-x, k)
    return -values, indices


def not_dilated(x, weight, bias, stride, padding, dilation, groups):
    out = KERNELS["conv2d"](x, weight, bias, stride, padding, (1, 1), groups)
    missing = (weight.shape[3] - 1) * (dilation[1] - 1)
    return out[..., : out.shape[3] - missing]


def without_eps(x, weight, eps):
    return KERNELS["rms_norm"](x, weight, 1e-12)


def the_divisor_first(x, dividend, divisor):
    return KERNELS["addcdiv"](x, divisor, dividend)


def adds_nothing(x, added, weight, eps):
    return KERNELS["rms_norm"](x, weight, eps), x


def without_offsets(x, codes, scales, offsets, *others):
    return KERNELS["dense_of_codes"](x, codes, scales, None, *others)


def scaled_by_the_neighbour(x, codes, scales, *others):
    return KERNELS["dense_of_codes"](x, codes, ms.Tensor(np.roll(scales.asnumpy(), 1, -1)), *others)


def experts_scaled_alike(x, codes, scales, offsets, counts):
    return KERNELS["grouped_matmul_of_codes"](
        x, codes, scales[:1].tile((len(scales), *[1] * (scales.ndim - 1))), offsets, counts
    )


def writes_in_front(buffer, index, rows):
    return KERNELS["index_copy"](buffer, index - (index > 0).astype(index.dtype), rows)


def packed():
    """Whether stacks, and whether frames, are packed in float32, which stands for bfloat16."""
    norm = ms.Parameter(np.ones(64, np.float32))
    stack = StackWeights((), norm, 1e-6, 16)
    return ops.packs(stack), ops.packs(FrameWeights(stack, None, (), (np.zeros((64, 64)),), None, None))


CHUNKS = {"decoder_chunk"}
DECODER = {"decoder_step", *CHUNKS}
ALL_STEPS = {*DECODER, "code_frame"}
OF_CODES = {"int8_step", "int4_step"}
MEANINGS = [
    ("fused_infer_attention", keeps_what_it_should_discard, {"attention", "paged_attention"}, {*CHUNKS, "code_frame"}),
    ("fused_infer_attention", ignores_the_mask, {"attention", "paged_attention"}, {*CHUNKS, "code_frame"}),
    ("fused_infer_attention", other_heads, {"attention", "paged_attention"}, {*CHUNKS, "code_frame"}),
    ("paged_infer_attention", the_blocks_of_another_row, {"paged_attention"}, {"decoder_step"}),
    ("paged_infer_attention", reads_behind_the_end, {"paged_attention"}, {"decoder_step"}),
    ("paged_infer_attention", RemembersTheFirstLengths(), set(), {"decoder_step"}),
    ("rotary_position_embedding", neighbours, {"rotary", "rotary_wide"}, ALL_STEPS),
    ("moe_init_routing", pairs_by_columns, {"experts"}, DECODER),
    ("grouped_matmul", other_counts, {"experts"}, DECODER),
    ("swiglu", up_first, {"swiglu", "experts"}, ALL_STEPS),
    ("topk", smallest_first, {"route_topk", "draw", "expert_load", "likeliest"}, ALL_STEPS),
    ("conv2d", not_dilated, {"conv1d"}, set()),
    ("rms_norm", without_eps, {"rms_norm"}, set()),
    ("add_rms_norm", adds_nothing, set(), ALL_STEPS),
    ("index_copy", writes_in_front, {"scatter_rows", "write_rows"}, DECODER),
    ("dense_of_codes", without_offsets, {"linear"}, set()),
    ("dense_of_codes", scaled_by_the_neighbour, {"linear"}, OF_CODES),
    ("grouped_matmul_of_codes", experts_scaled_alike, {"experts"}, OF_CODES),
]


@pytest.mark.parametrize("kernel, function, operators, steps", MEANINGS, ids=[str(row[1]).split()[1] for row in MEANINGS])
def test_a_kernel_of_another_meaning_is_found_and_replaced(kernel, function, operators, steps, settled, ascend):
    rows, complaints = settled(**{kernel: function})
    if "decoder_step" in steps and kernel != "grouped_matmul":
        steps = steps | OF_CODES
    assert {text.split()[1].strip(",:") for text in complaints} == operators | steps
    for text in complaints:
        name = text.split()[1].strip(",:")
        instead = (
            "numbers_of_codes is used instead of packed_step" if name in OF_CODES else "cells is used instead of packed_"
        )
        assert name in operators or instead in text
    known = ops.implementation().steps(ms.float32).keys()
    assert known & OF_CODES == OF_CODES - steps
    assert packed() == (not steps & DECODER, "code_frame" not in steps)
    for operator in operators:
        assert getattr(ops.implementation(), operator) is not getattr(ascend, operator)
        assert "is used instead of" in rows[operator][1]
        assert "off by" in rows[operator][1] or "Error" in rows[operator][1]


def test_packed_attention_has_a_second_form(settled, ascend):
    rows, complaints = settled(varlen_attention=one_segment)
    implementation, reason = rows["packed_attention"]
    assert implementation == "ascend" and len(complaints) == 2
    assert "packed_attention_by_runs is used instead of packed_attention (packed_attention called: off by" in reason
    assert ops.implementation().packed_attention.__name__ == "packed_attention_by_runs"


def test_experts_have_a_form_that_gives_every_row_a_group(settled, ascend):
    def insists(x, weight, counts):
        if counts.asnumpy().sum() != len(x):
            raise RuntimeError("aclnnGroupedMatmulV4GetWorkspaceSize failed\nstack")
        return KERNELS["grouped_matmul"](x, weight, counts)

    rows, complaints = settled(grouped_matmul=insists)
    assert {text.partition(":")[0] for text in complaints} == {
        *(f"operator experts, {size} tokens on a rank" for size in ("few", "many")),
        *(f"operator {step}" for step in DECODER),
    }
    assert (
        "experts_of_all_pairs is used instead of experts (experts called: RuntimeError: aclnnGrouped" in rows["experts"][1]
    )


def test_an_operator_that_nothing_computes_is_an_error(settled, ascend, monkeypatch):
    def no_kernel(*_):
        raise TypeError("ScatterUpdate: Unsupported data type")

    monkeypatch.setattr(ascend, "write_rows", staticmethod(no_kernel), raising=False)
    rows, complaints = settled()
    assert rows["write_rows"][0] == "reference" and "called: TypeError: ScatterUpdate" in complaints[0]
    monkeypatch.setattr(Reference, "clip", staticmethod(no_kernel))
    with pytest.raises(DeviceError, match="operator clip: no form of it works on this device in float32 .*TypeError"):
        ascend.settled(ms.float32)


def test_experts_on_the_host_limit_the_graphs(settled):
    settled(moe_init_routing=pairs_by_columns)
    assert ops.graph_expert_rows() == Reference.GRAPH_EXPERT_ROWS


def test_rubbish_is_not_taken_for_a_result(settled):
    rows, _ = settled(rms_norm=lambda x, weight, eps: x * float("nan"), gelu=lambda x, approximate: x[:1])
    assert "off by inf" in rows["rms_norm"][1] and "result of shape" in rows["gelu"][1]


def test_what_is_settled_stays_settled(settled, ascend):
    settled(gelu=lambda x, approximate: x)
    before = ops.implementation()
    assert before.gelu is Reference.gelu
    rows, complaints = settled(gelu=KERNELS["gelu"], swiglu=up_first)
    assert ops.implementation() is before and not complaints and rows["swiglu"][0] == "ascend"


def test_without_any_kernel_everything_falls_back_and_computes(settled, ascend, tiny_model):
    """What happens when this is forced on a machine without an NPU."""

    def missing(*_):
        raise RuntimeError("The kernel unregistered.")

    rows, complaints = settled(**dict.fromkeys(KERNELS, missing))
    own = {operator for operator, row in rows.items() if row[0] == "ascend"}
    assert own == {
        "argmax",
        "gather_rows",
        "snake_beta",
        "scale_channels",
        "encoder_states",
        *(ALL_STEPS & rows.keys()),  # which cells are used instead of
    }  # these need no kernel of their own
    assert {text.split()[1].strip(",:") for text in complaints} == vars(
        ascend
    ).keys() & KINDS.keys() - own | ALL_STEPS | OF_CODES
    assert packed() == (False, False)
    ids = tiny_model.thinker.generate(input_ids=np.array([[5, 6, 7]]), max_new_tokens=2, eos_token_id=[])
    assert ids.shape == (1, 5)


def test_models_are_built_after_the_comparison(ascend, tiny_checkpoint, monkeypatch):
    from ms_omni import Qwen3OmniMoeThinkerForConditionalGeneration as Thinker

    dtypes = []
    monkeypatch.setattr(ascend, "settled", classmethod(lambda cls, dtype: dtypes.append(dtype) or cls))
    Thinker.from_pretrained(tiny_checkpoint, progress=False)
    assert dtypes == [ms.float32]


# ---- boosted layers --------------------------------------------------------------------------------------------------


def not_rotated(q, k, cos, sin, lengths):
    return KERNELS["apply_rotary_pos_emb"](q, k, cos, sin * 0, lengths)


def values_for_keys(k, v, keys, values, slots):
    return KERNELS["reshape_and_cache"](v, k, keys, values, slots)


def first_tables(q, keys, values, tables, lengths, *others, first=[]):  # noqa: B006
    first.append(tables)
    same = next(table for table in first if table.shape == tables.shape)
    return KERNELS["paged_attention"](q, keys, values, same, lengths, *others)


@pytest.fixture
def boost(monkeypatch):
    monkeypatch.setenv("MS_OMNI_BOOST", "1")


def boosted():
    return "boosted_step" in ops.implementation().steps(ms.float32)


def test_boosted_layers_are_compared_and_taken(boost, settled):
    rows, complaints = settled()
    assert not complaints and boosted() and packed() == (True, True)
    assert "boosted_step: agrees with its formula" in rows["decoder_step"][1]


@pytest.mark.parametrize(
    "kernel, function",
    [("apply_rotary_pos_emb", not_rotated), ("reshape_and_cache", values_for_keys), ("paged_attention", first_tables)],
)
def test_boosted_layers_that_are_wrong_are_left_for_the_others(kernel, function, boost, settled):
    _, (said,) = settled(**{kernel: function})
    assert said.startswith("operator boosted_step: packed_step is used instead of boosted_step (boosted_step called: off by")
    assert not boosted() and packed() == (True, True)


def test_without_the_switch_there_are_none(settled):
    rows, _ = settled(apply_rotary_pos_emb=not_rotated)
    assert not boosted() and "boosted" not in rows["decoder_step"][1]


# ---- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("step, case", [("decoder_step", 2), ("code_frame", 0)])
def test_steps_are_compared_as_graphs_that_are_compiled_once(step, case, ascend):
    (kind,), before = STEPS[step], len(api.ms_compile_cache)
    cases = prepared(step, kind, ms.float32, False)[case : case + 1]
    assert compare(STEP_FORMS[step][0], cases, ms.float32, GRAPH) < 1e-5
    assert len(api.ms_compile_cache) == before + 1
