"""How others call the same kernels: a second opinion on what our arguments mean.

vllm-mindspore and mindformers serve models on Ascend with the primitives that we use. Each row says what they pass, where that
was read (repository, commit, file, lines), and what must therefore hold of our calls, which are recorded while the operators
run on their cases in bfloat16. `unlike`: why we do otherwise; what must hold is then ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
import pytest

from ms_omni.modeling.ops import ascend_cases, ascend_check
from ms_omni.modeling.ops.ascend_step_cases import STEP_FORMS, STEPS
from tests.ascend_emulation import bfloat16
from tests.ascend_emulation.kernel import Kernel

VMS = "mindspore-ai/vllm-mindspore a7b56a42 vllm_mindspore/"
MF = "mindspore-ai/mindformers 167a50de mindformers/"
FUSED_MOE = f"{VMS}model_executor/layers/fused_moe/fused_moe.py"
DISPATCHER = f"{MF}parallel_core/inference/transformer/moe/token_dispatcher.py"
GROUPED = f"{MF}parallel_core/inference/tensor_parallel/grouped_layers.py"
GOLDEN_STICK = "mindspore-ai/golden-stick a50ddc9 mindspore_gs/ptq/"
QUANTISED = f"{GOLDEN_STICK}ptq/hal.py"
VISION = f"{VMS}model_executor/models/qwen2_5_vl.py"
FUSED_ATTENTION = f"{VMS}model_executor/layers/quantization/attention.py"
PAGED_ATTENTION = f"{VMS}v1/attention/layer.py"
ROTARY = f"{VMS}model_executor/layers/rotary_embedding.py"


@dataclass(frozen=True)
class Call:
    """One call of a primitive by our wrappers: its tensors by name (`x[0]` in a list), its other arguments, its results."""

    operator: str
    tensors: dict[str, ms.Tensor]
    others: dict
    results: tuple


@dataclass(frozen=True)
class Convention:
    """primitive and argument(s): what they pass; `holds` of each of our calls."""

    primitive: str
    about: str
    theirs: str
    cited: tuple[str, ...]
    holds: Callable[[Call], bool]
    unlike: str = ""


def dtype(call, name):
    return call.tensors[name].dtype


def dtype_or(call, name, otherwise):
    return dtype(call, name) if name in call.tensors else otherwise


def shape(call, name):
    return tuple(call.tensors[name].shape)


CONVENTIONS = [
    Convention(
        "MoeInitRoutingV2",
        "expert_idx",
        "int32 [N, K], cast from the choice's int64",
        (f"{FUSED_MOE}:334", f"{DISPATCHER}:122"),
        lambda call: dtype(call, "expert_idx") == ms.int32 and len(shape(call, "expert_idx")) == 2,
    ),
    Convention(
        "MoeInitRoutingV2",
        "active_num, expert_capacity, drop_pad_mode",
        "0, 0, 0: no token is dropped",
        (f"{FUSED_MOE}:340-343", f"{DISPATCHER}:128-131"),
        lambda call: call.others["active_num"] == call.others["expert_capacity"] == call.others["drop_pad_mode"] == 0,
    ),
    Convention(
        "MoeInitRoutingV2",
        "results of the primitive",
        "four, the second goes to MoeTokenUnpermute as it is",
        (f"{FUSED_MOE}:336-354", f"{DISPATCHER}:124-150"),
        lambda call: len(call.results) == 4 and call.results[1].dtype == ms.int32,
    ),
    Convention(
        "MoeInitRoutingV2",
        "expert_tokens_count_or_cumsum_flag",
        "2: counts",
        (f"{FUSED_MOE}:344,386", f"{DISPATCHER}:132"),
        lambda call: call.others["expert_tokens_count_or_cumsum_flag"] == 2,
    ),
    Convention(
        "GroupedMatmulV4",
        "group_list, group_list_type",
        "int64 counts (type 1), cast from the int32 that the routing gives",
        (f"{FUSED_MOE}:307-318,347", f"{GROUPED}:109-110", f"{DISPATCHER}:139"),
        lambda call: dtype(call, "group_list") == ms.int64 and call.others["group_list_type"] == 1,
    ),
    Convention(
        "GroupedMatmulV4",
        "x, weight, split_item, group_type",
        "lists of one tensor each, [N, in] and [E, in, out]; one result tensor (3), groups of rows (0)",
        (f"{FUSED_MOE}:307-318", f"{GROUPED}:91,109-110"),
        lambda call: (
            len(shape(call, "x[0]")) == 2
            and len(shape(call, "weight[0]")) == 3
            and shape(call, "x[0]")[1] == shape(call, "weight[0]")[1]
            and (call.others["split_item"], call.others["group_type"]) == (3, 0)
        ),
    ),
    Convention(
        "GroupedMatmulV4",
        "antiquant_scale, antiquant_offset",
        "both or neither, in lists of one tensor, of the type that is computed in",
        (f"{QUANTISED}:945-947,1009-1010",),
        lambda call: (
            ("antiquant_scale[0]" in call.tensors) == ("antiquant_offset[0]" in call.tensors)
            and all(
                dtype_or(call, f"antiquant_{name}[0]", ms.bfloat16) == dtype(call, "x[0]") for name in ("scale", "offset")
            )
        ),
    ),
    Convention(
        "GroupedMatmulV4",
        "weight of 4 bits",
        "qint4x2 [E, in, out / 2]: two's complement, the even output in the low half of a byte",
        (f"{QUANTISED}:1062-1071", f"{GOLDEN_STICK}basic_quant_func.py:40-46"),
        lambda call: dtype(call, "weight[0]") != ms.qint4x2 or 2 * shape(call, "weight[0]")[2] == _outputs(call),
    ),
    Convention(
        "WeightQuantBatchMatmul",
        "x, weight, antiquant_scale, antiquant_offset, and no more",
        "[N, in]; int8, transposed where it is [out, in]; scales and offsets of the type that is computed in; no bias",
        (f"{QUANTISED}:945-947,956,1012",),
        lambda call: (
            set(call.tensors) <= {"x", "weight", "antiquant_scale", "antiquant_offset"}
            and len(shape(call, "x")) == 2
            and dtype(call, "antiquant_scale") == dtype_or(call, "antiquant_offset", dtype(call, "x")) == dtype(call, "x")
        ),
    ),
    Convention(
        "WeightQuantBatchMatmul",
        "antiquant_offset",
        "zero points times -1: it is added to the codes before they are scaled",
        (f"{QUANTISED}:947",),
        lambda call: _sign_of_offsets(call),
    ),
    Convention(
        "WeightQuantBatchMatmul",
        "weight of 4 bits",
        "qint4x2 [in, out / 2], packed along the outputs",
        (f"{QUANTISED}:1046,1060-1073", f"{GOLDEN_STICK}basic_quant_func.py:30-37"),
        lambda call: (
            dtype(call, "weight") != ms.qint4x2
            or (
                not call.others["transpose_weight"]
                and 2 * shape(call, "weight")[1] == shape(call, "antiquant_scale")[-1]
                and shape(call, "weight")[0] == shape(call, "x")[1]
            )
        ),
    ),
    Convention(
        "MoeTokenUnpermute",
        "probs",
        "[N, K] of the rows' type",
        (f"{FUSED_MOE}:333,352-356", f"{DISPATCHER}:147-154"),
        lambda call: dtype(call, "probs") == dtype(call, "permuted_tokens") and len(shape(call, "probs")) == 2,
    ),
    Convention(
        "MoeTokenUnpermute",
        "permuted_tokens",
        "rows of experts that are elsewhere are made finite before (nan_to_num); their weights are 0",
        (f"{FUSED_MOE}:328,375-376", f"{DISPATCHER}:115-117,146"),
        lambda call: np.isfinite(call.tensors["permuted_tokens"].astype(ms.float32).asnumpy()).all(),
    ),
    Convention(
        "MoeTokenUnpermute",
        "sorted_indices, padded_mode",
        "int32 [N * K], False",
        (f"{FUSED_MOE}:352-356", f"{DISPATCHER}:148-154"),
        lambda call: dtype(call, "sorted_indices") == ms.int32 and not call.others["padded_mode"],
    ),
    Convention(
        "TopkExt",
        "input, dim",
        "softmax in float32 first, then the k largest of the last axis",
        (f"{FUSED_MOE}:100-101", f"{MF}parallel_core/inference/transformer/moe/moe_utils.py:30,147"),
        lambda call: call.operator != "route_topk" or (dtype(call, "input") == ms.float32 and call.others["dim"] == -1),
    ),
    Convention(
        "FusedInferAttentionScore",
        "key, value, result",
        "in lists of one tensor; the first of two results",
        (f"{FUSED_ATTENTION}:161-167",),
        lambda call: {"key[0]", "value[0]"} <= call.tensors.keys() and len(call.results) == 2,
    ),
    Convention(
        "FusedInferAttentionScore",
        "attn_mask",
        "1 discards: ones above the diagonal",
        (
            f"{VMS}model_executor/models/attention_mask.py:56-60",
            f"{MF}parallel_core/training_graph/transformer/flash_attention.py:68-69",
        ),
        lambda call: (
            "attn_mask" not in call.tensors or (dtype(call, "attn_mask") == ms.bool_ and not _all_but_the_last(call))
        ),
    ),
    Convention(
        "FusedInferAttentionScore",
        "num_heads, num_key_value_heads, scale_value",
        "both numbers of heads, grouped without repeating keys; a Python float",
        (f"{FUSED_ATTENTION}:86,95-101",),
        lambda call: call.others["num_key_value_heads"] > 0 and isinstance(call.others["scale_value"], float),
    ),
    Convention(
        "FusedInferAttentionScore",
        "inner_precise",
        "1 (high performance)",
        (f"{FUSED_ATTENTION}:103",),
        lambda call: call.others["inner_precise"] == 0,
        unlike="0 asks for high precision in float16; the documentation says that bfloat16 knows no difference",
    ),
    Convention(
        "FusedInferAttentionScore",
        "actual_seq_lengths_kv, block_table",
        "a tensor of lengths (not ends), read on the host, and int32 blocks, together, for one query per row; theirs is int32",
        (f"{FUSED_ATTENTION}:158-166", f"{VMS}model_executor/models/model_base.py:515-517"),
        lambda call: (
            dtype_or(call, "actual_seq_lengths_kv", ms.int64) == ms.int64
            and dtype_or(call, "block_table", ms.int32) == ms.int32
        ),
        unlike="MindSpore documents int64 for the lengths",
    ),
    Convention(
        "FlashAttentionScore",
        "input_layout, actual_seq_qlen, actual_seq_kvlen",
        "TND: cumulative ends, the same for queries and keys, without a mask; TH: lengths, so the layout decides",
        (f"{VISION}:765-773,1017-1022", f"{VMS}model_executor/models/qwen3_vl.py:131-134,201-211,1359-1360"),
        lambda call: (
            call.others["input_layout"] == "TND"
            and call.others["actual_seq_qlen"] == call.others["actual_seq_kvlen"]
            and call.others["actual_seq_qlen"][-1] == shape(call, "query")[0]
            and "attn_mask" not in call.tensors
        ),
    ),
    Convention(
        "FlashAttentionScore",
        "actual_seq_qlen as they make it",
        "an int32 tensor with a leading 0",
        (f"{VISION}:1017-1022",),
        lambda call: isinstance(call.others["actual_seq_qlen"], tuple) and call.others["actual_seq_qlen"][0] > 0,
        unlike="the lengths are on the host already; a leading 0 is a segment of no tokens, of which the page says nothing",
    ),
    Convention(
        "FlashAttentionScore",
        "results",
        "four, of which the last is the attention",
        (f"{VMS}model_executor/models/qwen3_vl.py:201", f"{MF}parallel_core/inference/transformer/flash_attention.py:140"),
        lambda call: len(call.results) == 4 and tuple(call.results[3].shape) == shape(call, "query"),
    ),
    Convention(
        "RotaryPositionEmbedding",
        "x, cos, sin, mode",
        "float32 [1, N, H, D]; both halves of the tables filled, [1, N, 1, D]; mode 0, the default: halves, not pairs (whole steps: in "
        "the type of the model, as their ApplyRotaryPosEmb, and the rows of a frame one behind the other)",
        (f"{VISION}:659-660,759,1010-1012",),
        lambda call: (
            {dtype(call, name) for name in ("x", "cos", "sin")} == {ms.bfloat16 if call.operator in STEPS else ms.float32}
            and (shape(call, "x")[0] == 1 or call.operator in STEPS)
            and shape(call, "cos") == shape(call, "sin") == (1, shape(call, "x")[1], 1, shape(call, "x")[3])
            and _halves_alike(call.tensors["cos"].astype(ms.float32))
            and call.others["mode"] == 0
        ),
    ),
    Convention(
        "RmsNorm",
        "gamma, result",
        "of x's type; the first of two results",
        (f"{VMS}model_executor/layers/layernorm.py:46-63", f"{MF}parallel_core/inference/transformer/norm.py:104-113"),
        lambda call: dtype(call, "gamma") == dtype(call, "x") and len(call.results) == 2,
    ),
    Convention(
        "Swiglu",
        "dim",
        "-1; the gate is the first half",
        (f"{MF}modules/transformer/moev3.py:520", f"{MF}pynative/layers/activation.py:32,68", f"{FUSED_MOE}:322-325"),
        lambda call: call.others["dim"] == -1 and _gate_first(call),
    ),
    Convention(
        "FusedInferAttentionScore",
        "query, key, value, block_table, block_size as a step has them",
        "BSH: queries [B, 1, H * D], caches reshaped to [blocks, P, K * D], no mask; queries depend on what was written",
        (f"{FUSED_ATTENTION}:95-104,145-166",),
        lambda call: (
            call.operator != "decoder_step"
            or (
                call.others["input_layout"] == "BSH"
                and shape(call, "query")[1] == 1
                and shape(call, "key[0]") == shape(call, "value[0]")
                and shape(call, "key[0]")[1] == call.others["block_size"]
                and shape(call, "query")[2] * call.others["num_key_value_heads"]
                == shape(call, "key[0]")[2] * call.others["num_heads"]
                and {"block_table", "actual_seq_lengths_kv"} <= call.tensors.keys()
                and "attn_mask" not in call.tensors
            )
        ),
    ),
    Convention(
        "AddRmsNorm",
        "result of the norm, of the sum",
        "they add and normalise in two kernels, since one would be in the way of their quantisation; what is carried on is the sum",
        (f"{VMS}model_executor/layers/layernorm.py:56-66",),
        lambda call: len(call.results) == 3 and _normalised_sum(call),
        unlike="one kernel fewer; MindSpore's infer_boost fuses the two into it as well",
    ),
    Convention(
        "InplaceIndexCopy",
        "input, index",
        "nobody: they write with ReshapeAndCache, to rows `block * P + offset` of int32 slots",
        (f"{PAGED_ATTENTION}:101,110-112", f"{VMS}model_executor/models/model_base.py:514-523"),
        lambda call: dtype(call, "index") == ms.int32 and call.others["dim"] == 0,
        unlike="CANN has no aclnnReshapeAndCache; it is for graphs with infer_boost alone",
    ),
    Convention(
        "ReshapeAndCache",
        "key, value, key_cache, value_cache, slot_mapping",
        "rows of all heads, caches [blocks, P, K, D], int32 slots of rows",
        (f"{PAGED_ATTENTION}:101,110-112,152-155", f"{MF}parallel_core/inference/transformer/flash_attention.py:133"),
        lambda call: (
            len(call.others["key_cache"]) == 4
            and len(shape(call, "key")) == 2
            and dtype(call, "slot_mapping") == ms.int32
            and shape(call, "slot_mapping") == shape(call, "key")[:1]
        ),
    ),
    Convention(
        "PagedAttention",
        "head_num, scale_value, kv_head_num, key_cache, value_cache, block_tables, context_lens",
        "both numbers of heads, caches [blocks, P, K, D], int32 blocks and int32 lengths, the new token included",
        (
            f"{PAGED_ATTENTION}:84-86,150-161",
            f"{MF}parallel_core/inference/transformer/flash_attention.py:109-110,151-153",
            f"{VMS}model_executor/models/model_base.py:515-517",
        ),
        lambda call: (
            shape(call, "key_cache")[2] == call.others["kv_head_num"]
            and isinstance(call.others["scale_value"], float)
            and dtype(call, "block_tables") == dtype(call, "context_lens") == ms.int32
            and bool((call.tensors["context_lens"].asnumpy() > 0).all())
        ),
    ),
    Convention(
        "PagedAttention",
        "query, q_seq_lens",
        "[N, H * D] and a tensor of ones, on the kernel of ATB: MindSpore's own one is switched off",
        (f"{PAGED_ATTENTION}:151,159-161", f"{VMS}utils.py:347-348"),
        lambda call: shape(call, "query")[1] == call.others["head_num"] and "q_seq_lens" not in call.tensors,
        unlike="MindSpore's own kernel counts the heads along the second axis, and reads the lengths on the device",
    ),
    Convention(
        "ApplyRotaryPosEmb",
        "cos_format, query, key, cos, sin, position_ids",
        "2; rows of all heads, a row of both tables for each token, both halves filled, of the queries' type; int32 lengths",
        (f"{ROTARY}:176,198-207,224-227", f"{MF}modules/infer_attention.py:51-59"),
        lambda call: (
            call.others["cos_format"] == 2
            and {dtype(call, name) for name in ("query", "key", "cos", "sin")} == {ms.bfloat16}
            and shape(call, "cos") == shape(call, "sin")
            and shape(call, "cos")[0] == shape(call, "query")[0] == shape(call, "key")[0]
            and _halves_alike(call.tensors["cos"].astype(ms.float32))
            and dtype(call, "position_ids") == ms.int32
        ),
    ),
]


def _all_but_the_last(call):
    """Whether a mask has the wrong polarity: rows that attend to at most one of many keys."""
    mask = call.tensors["attn_mask"].asnumpy()
    return mask.shape[-1] > 2 and bool(((~mask).sum(-1) < 2).all())


def _normalised_sum(call):
    x, other, weight = (call.tensors[name].astype(ms.float32).asnumpy() for name in ("x1", "x2", "gamma"))
    normalised, _, total = (part.astype(ms.float32).asnumpy() for part in call.results)
    expected = (x + other) / np.sqrt(np.square(x + other).mean(-1, keepdims=True) + 1e-6) * weight
    return np.allclose(total, x + other, rtol=0.02, atol=0.02) and np.allclose(normalised, expected, rtol=0.05, atol=0.05)


def _outputs(call):
    return shape(call, "antiquant_scale[0]")[-1]


def _sign_of_offsets(call):
    """Of the cases that have offsets: what they are stored as, a whole number of scales, is what the kernel is given."""
    if "antiquant_offset" not in call.tensors:
        return True
    offsets = call.tensors["antiquant_offset"].astype(ms.float32).asnumpy()
    return np.array_equal(offsets, np.rint(offsets)) and np.abs(offsets).max() > 1


def _halves_alike(table):
    low, high = np.split(table.asnumpy(), 2, -1)
    return bool((low == high).all())


def _gate_first(call):
    gate, up = np.split(call.tensors["input"].astype(ms.float32).asnumpy(), 2, -1)
    expected = gate / (1 + np.exp(-gate)) * up
    return np.allclose(call.results[0].astype(ms.float32).asnumpy(), expected, atol=0.05, rtol=0.02, equal_nan=True)


@pytest.fixture(scope="module")
def calls():
    """{primitive: [Call, ...]} of all operators on all their cases, in bfloat16."""
    from ms_omni.modeling.ops.ascend import Ascend
    from tests import ascend_emulation

    found, run, patches = {}, Kernel.__call__, pytest.MonkeyPatch()
    operator = None

    def recording(kernel, *tensors):
        results = run(kernel, *tensors)
        primitive, names, others = kernel.called
        several = results if isinstance(results, tuple) else (results,)
        found.setdefault(primitive, []).append(Call(operator, dict(zip(names, tensors)), others, several))
        return results

    undo = [ascend_emulation.install(), bfloat16.install()]
    patches.setattr(Kernel, "__call__", recording)
    for operator, cases in ascend_cases.CASES.items():
        for form in (getattr(Ascend, operator), *Ascend.OTHER_FORMS.get(operator, ())):
            for case in cases(np.random.default_rng(5)):
                form(*[ascend_check.tensor(value, ms.bfloat16) for value in case])
    for operator, kinds in STEPS.items():
        for case in (case for kind in kinds for case in kind.cases(np.random.default_rng(5), False)):
            STEP_FORMS[operator][0](*[ascend_check.tensor(value, ms.bfloat16) for value in case])
    patches.undo()
    for step in reversed(undo):
        step()
    return found


@pytest.mark.parametrize("row", CONVENTIONS, ids=[f"{row.primitive}: {row.about}" for row in CONVENTIONS])
def test_we_call_it_as_they_do(row, calls):
    assert row.cited
    ours = calls[row.primitive]
    assert all(row.holds(call) for call in ours), f"they pass {row.theirs}; ours: {[call.others for call in ours][:2]}"


def test_no_kernel_that_they_use_as_well_is_without_a_row(calls):
    plain = {"LayerNormExt", "GeluExt", "Dense", "Conv2DExt", "IndexSelect", "Embedding", "ArgMaxExt", "CumsumExt"}
    plain |= {
        "Baddbmm",
        "SplitWithSize",
        "ConstantPadND",
        "IndexAddExt",
        "Clone",
        "AddLayerNormV2",
        "Addmm",
        "AddcmulExt",
        "AddcdivExt",
    }
    assert calls.keys() - plain == {row.primitive for row in CONVENTIONS}
