"""The fused kernels of Ascend, one function per kernel of MindSpore 2.7.1, with the arguments that we give it.

We could run none of this on an NPU. The docstrings follow MindSpore 2.7.1's documentation
(`DOCS`/<api>.html, the installed docstring has the same text) and in CANN's page of the underlying kernel
(`CANN`/<aclnn name>.md); "unverified": what they leave open or contradict each other in. `tests/ascend_emulation`
has the primitives below these functions in numpy, as strict as these pages, and `ascend_check.py` compares the forms that
call them on the device before they are used.

Axes: B batch, S new tokens, T cached tokens, N tokens or rows, H query heads, K kv heads (topk: experts per token),
D channels, E experts.
"""

import mindspore as ms
from mindspore import Parameter, Tensor, mint, ops
from mindspore.ops.auto_generate import (
    AddcdivExt,
    AddRmsNorm,
    ApplyRotaryPosEmb,
    Clone,
    ConstantPadND,
    IndexAddExt,
    InplaceIndexCopy,
    MoeInitRoutingV2,
    PagedAttention,
    ReshapeAndCache,
    SplitWithSize,
    WeightQuantBatchMatmul,
    grouped_matmul_v4,
)

from .stored import Pair

DOCS = "https://www.mindspore.cn/docs/en/r2.7.1/api_python"
CANN = "https://www.hiascend.com/document/detail/zh/canncommercial/83RC1/API/aolapi/context"

ATTENTION_TYPES = (ms.float16, ms.bfloat16)
"""What both attention kernels are documented for."""
_addcdiv, _clone, _index_add, _index_copy = AddcdivExt(), Clone(), IndexAddExt(), InplaceIndexCopy()
_init_routing, _pad, _split, _add_rms_norm = MoeInitRoutingV2(), ConstantPadND(), SplitWithSize(), AddRmsNorm()
_reshape_and_cache, _rotary_by_halves = ReshapeAndCache(), ApplyRotaryPosEmb(2)
VARLEN_SEGMENTS = 1024
"""`flash_attention_score`, layout TND: "batch is less than or equal to 1024"."""


def fused_infer_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_heads: int, scale: float, layout: str, heads: int | None = None
) -> Tensor:
    """Attention of prompts and of single tokens, grouped kv heads, on caches: `ops.fused_infer_attention_score`.

    layout "BNSD": q `[B, H, S, D]`, k and v `[B, K, T, D]` -> as q. "BNSD_BSND" (S > 1 only): the same inputs, result
    `[B, S, H, D]`. "BSND": `[B, S, H, D]` throughout; "BSH": `[B, S, H * D]`, heads: H. mask None or bool
    `[B, 1, S, T]` or `[1, S, T]`, True discards (sparse_mode 0).

    DOCS/ops/mindspore.ops.fused_infer_attention_score.html, CANN/aclnnFusedInferAttentionScoreV2.md: float16 and bfloat16;
    inputs must be contiguous; D a multiple of 16 and at most 512; H / K at most 64; no row of the mask may discard
    everything (inner_precise 2 would mend it for S > 1). S = 1 takes another kernel (IncreFlashAttention) than S > 1.
    Softmax runs in float32: bfloat16 has no other mode (inner_precise 0 selects it in float16).
    Unverified: support on Atlas A3, for which CANN documents V3 of this kernel and MindSpore calls V2.
    """
    if heads is None:
        heads = q.shape[2] if layout == "BSND" else q.shape[1]
    return ops.fused_infer_attention_score(
        q,
        k,
        v,
        atten_mask=mask,
        num_heads=heads,
        scale=scale,
        input_layout=layout,
        num_key_value_heads=kv_heads,
        sparse_mode=0,
        inner_precise=0,
    )[0]


def paged_infer_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    heads: int,
    kv_heads: int,
    block: int,
    scale: float,
    layout: str,
) -> Tensor:
    """`fused_infer_attention` of single tokens on keys in blocks of P positions, with block_table and actual_seq_lengths_kv.

    layout "BNSD": q `[B, H, 1, D]`, keys and values `[blocks, K, P, D]`; "BSH": q `[B, 1, H * D]`, `[blocks, P, K * D]`. tables int32
    `[B, n]`, lengths int64 `[B]` (positions that count, 1 or more) -> as q.

    The same pages: P a multiple of 16, at most 512; which blocks go with which layout; the lengths are read on the host.
    Unverified: that nothing behind a length is read, which may be NaN (the cases of the comparison have it).
    """
    return ops.fused_infer_attention_score(
        q,
        keys,
        values,
        actual_seq_lengths_kv=lengths,
        block_table=tables,
        num_heads=heads,
        scale=scale,
        input_layout=layout,
        num_key_value_heads=kv_heads,
        sparse_mode=0,
        inner_precise=0,
        block_size=block,
    )[0]


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, ends: tuple[int, ...], scale: float) -> Tensor:
    """Attention inside each segment of a packed sequence: `ops.flash_attention_score` with layout TND, no mask.

    q, k, v `[N, H, D]`, ends: tuple of python ints, the cumulative lengths, the last one N -> `[N, H, D]`.

    DOCS/ops/mindspore.ops.flash_attention_score.html, CANN/aclnnFlashAttentionVarLenScore.md: float16 and bfloat16; the
    lengths are cumulative; at most 1024 segments, none empty; D a multiple of 16, at most 512. "Without a mask
    sparse_mode is without effect: everything is computed" (CANN).
    Unverified: MindSpore's page requires a triangular mask for TND, CANN's does not; CANN lists training cards of Atlas
    A2 only. Where it is not to be had, `fused_infer_attention` does the same with one launch per run of equal lengths.
    """
    return ops.flash_attention_score(
        q, k, v, q.shape[1], actual_seq_qlen=ends, actual_seq_kvlen=ends, scalar_value=scale, input_layout="TND"
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`ops.rms_norm`: x `[..., D]`, weight `[D]` of the same type -> `[..., D]`.

    DOCS/ops/mindspore.ops.rms_norm.html, CANN/aclnnRmsNorm.md: float16, bfloat16, float32; 0 < eps <= 1. The second
    result, the reciprocal deviation, is float32 for every type.
    Unverified: that the mean is taken in float32, which that second result suggests.
    """
    return ops.rms_norm(x, weight, eps)[0]


def add_rms_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> Pair:
    """The primitive `AddRmsNorm`: `rms_norm` of x + added, and that sum, both `[..., D]`.

    DOCS/ops/mindspore.ops.add_rms_norm.html, CANN/aclnnAddRmsNorm.md: float16, bfloat16, float32; its second result of three is the
    reciprocal deviation.
    Unverified: whether the sum is rounded before it is normalised.
    """
    normalised, _, total = _add_rms_norm(x, added, weight, eps)
    return normalised, total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`mint.nn.functional.layer_norm` over the last axis. DOCS/mint/mindspore.mint.nn.functional.layer_norm.html,
    CANN/aclnnLayerNorm.md: float16, bfloat16, float32, statistics in float32. Unverified: nothing that matters here.
    """
    return mint.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def add_layer_norm(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Pair:
    """`ops.add_layer_norm` with additional_output: `layer_norm` of x + added over the last axis, and that sum, both `[..., D]`.

    DOCS/ops/mindspore.ops.add_layer_norm.html (experimental), CANN/aclnnAddLayerNorm.md: float16, bfloat16, float32; of its four
    results the second and third are mean and reciprocal deviation.
    Unverified: whether the sum is rounded before it is normalised.
    """
    normalised, _, _, total = ops.add_layer_norm(x, added, weight, bias, eps, True)
    return normalised, total


def gelu(x: Tensor, approximate: str) -> Tensor:
    """`mint.nn.functional.gelu`, approximate "none" or "tanh". DOCS/mint/mindspore.mint.nn.functional.gelu.html,
    CANN/aclnnGeluV2.md: float16, bfloat16, float32. Unverified: how close its erf is.
    """
    return mint.nn.functional.gelu(x, approximate=approximate)


def swiglu(x: Tensor) -> Tensor:
    """`ops.swiglu` along the last axis: `silu(first half) * second half`.

    DOCS/ops/mindspore.ops.swiglu.html, CANN/aclnnSwiGlu.md: float16, bfloat16, float32; an even number of channels.
    Unverified: nothing beyond the numbers.
    """
    return ops.swiglu(x, -1)


def rotary_position_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`ops.rotary_position_embedding` in mode 0, pairs (i, i + D/2): `x * cos + [-x2, x1] * sin`.

    x `[1, N, H, D]` (BSND), cos and sin `[1, N, 1, D]` (1S1D), both halves filled, all of one type.

    DOCS/ops/mindspore.ops.rotary_position_embedding.html, CANN/aclnnRotaryPositionEmbedding.md: float16, bfloat16,
    float32; D even and below 896; B and H below 1000.
    Unverified: how the kernel distinguishes BSND from BNSD when H or N is 1 (both readings then agree).
    """
    return ops.rotary_position_embedding(x, cos, sin, 0)


def topk(x: Tensor, k: int) -> Pair:
    """`mint.topk` over the last axis, in descending order -> values and int64 indices.

    DOCS/mint/mindspore.mint.topk.html, CANN/aclnnTopk.md. Unverified: which of two equal elements comes first.
    """
    return mint.topk(x, k, -1)


def largest(x: Tensor) -> Pair:
    """`mint.max` over the last axis -> values and int64 indices `[..., 1]`.

    DOCS/mint/mindspore.mint.max.html, CANN/aclnnMaxDim.md. Unverified: that of equal elements the first is returned (the cases of
    the comparison have it), and that NaN is larger than any number.
    """
    return mint.max(x, -1, True)


def softmax(x: Tensor) -> Tensor:
    """`mint.nn.functional.softmax` over the last axis, in the type of x. DOCS/mint/mindspore.mint.nn.functional.softmax.html,
    CANN/aclnnSoftmax.md: float16, bfloat16, float32. Unverified: that it computes in float32 whatever the type.
    """
    return mint.nn.functional.softmax(x, -1)


def moe_init_routing(x: Tensor, indices: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows sorted by expert: the primitive `MoeInitRoutingV2`, dropless (active_num 0, drop_pad_mode 0).

    x `[N, D]`, indices int32 `[N, K]` in `[0, experts)` -> rows `[N * K, D]`; row_index int32 `[N * K]`, the sorted row of
    pair n * K + j; counts int32 `[experts]`, rows of each (flag 2). MindSpore's function around it omits the
    fourth result, which is for other modes.

    DOCS/ops/mindspore.ops.moe_init_routing_v2.html, CANN/aclnnMoeInitRoutingV2.md: float16, bfloat16, float32.
    Unverified: older pages of CANN give `rows[i] = x[order[i] % N]`, as if pairs were numbered by columns; MindSpore's
    example and newer pages number them by rows, as here.
    """
    rows, row_index, counts, _ = _init_routing(x, indices, 0, 0, experts, 0, 2, False)
    return rows, row_index, counts


def grouped_matmul(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """`x[start:end] @ weight[e]` for each group of rows: `grouped_matmul_v4`, split_item 3, group_type 0.

    x `[N, C]`, weight `[E, C, M]`, counts int64 `[E]`: rows of each group (group_list_type 1) -> `[N, M]`, undefined in the
    rows past the last group.

    DOCS/ops/mindspore.ops.auto_generate.grouped_matmul_v4.html, CANN/aclnnGroupedMatmulV4.md: float16, bfloat16, float32;
    at most 1024 groups, C and M below 65536; a group may be empty (CANN).
    Unverified: rows past the last group, which MindSpore allows and CANN does not.
    """
    return grouped_matmul_v4([x], [weight], group_list=counts, split_item=3, group_type=0, group_list_type=1)[0]


def grouped_matmul_of_codes(x: Tensor, codes: Tensor, scales: Tensor, offsets: Tensor, counts: Tensor) -> Tensor:
    """`grouped_matmul` by `(codes + offsets) * scales`: `grouped_matmul_v4` with antiquant_scale and antiquant_offset.

    codes int8 `[E, C, M]`, or qint4x2 `[E, C, M / 2]`, two's complement, the even output in the low half; scales and offsets of the
    type of x `[E, M]`, of 4 bits also `[E, C / g, M]`, then with offsets of zeros.

    The same pages; 4 bits are documented by CANN alone; Golden Stick (mindspore_gs/ptq/ptq/hal.py) shows how MindSpore passes them.
    Unverified: everything that a run would show.
    """
    return grouped_matmul_v4(
        [x],
        [codes],
        antiquant_scale=[scales],
        antiquant_offset=[offsets],
        group_list=counts,
        split_item=3,
        group_type=0,
        group_list_type=1,
    )[0]


def moe_token_unpermute(rows: Tensor, row_index: Tensor, probs: Tensor) -> Tensor:
    """`sum_j probs[n, j] * rows[row_index[n * K + j]]`: `ops.moe_token_unpermute`, padded_mode off.

    rows `[N * K, D]`, row_index int32 `[N * K]` without duplicates, probs `[N, K]` -> `[N, D]` of the type of rows.

    DOCS/ops/mindspore.ops.moe_token_unpermute.html, CANN/aclnnMoeTokenUnpermute.md: float16, bfloat16, float32; K at most
    512.
    Unverified: everything that a run would show. On CPU MindSpore raises before it checks the arguments.
    """
    return ops.moe_token_unpermute(rows, row_index, probs)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`mint.nn.functional.linear`: x `[..., C]`, weight `[M, C]`, bias `[M]` or None -> `[..., M]`.

    DOCS/mint/mindspore.mint.nn.functional.linear.html, CANN/aclnnMatmul.md, CANN/aclnnAddmm.md: sums in float32.
    Unverified: nothing beyond the numbers.
    """
    return mint.nn.functional.linear(x, weight, bias)


def dense_of_codes(
    x: Tensor, codes: Tensor, scales: Tensor, offsets: Tensor | None, outputs_first: bool, group: int
) -> Tensor:
    """`x @ ((codes + offsets) * scales)`: the primitive `WeightQuantBatchMatmul`, x `[N, C]` -> `[N, M]`.

    codes int8 `[M, C]` (outputs_first) or `[C, M]`, or qint4x2 `[C, M / 2]` as in `grouped_matmul_of_codes`; scales and offsets, or None,
    of the type of x: `[M]` (group 0), or `[C / group, M]`, group a multiple of 32, less than C.

    DOCS/ops/mindspore.ops.auto_generate.WeightQuantBatchMatmul.html, CANN/aclnnWeightQuantBatchMatmulV2.md: float16 and bfloat16; C and
    M at most 65535 and whole lines of 32 bytes. A bias would have to be float32 beside bfloat16 for CANN, and bfloat16 for MindSpore.
    Unverified: everything that a run would show.
    """
    return WeightQuantBatchMatmul(False, outputs_first, group)(x, codes, scales, offsets, None, None, None)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """`mint.nn.functional.embedding`: rows of weight `[V, D]` at ids `[...]`, int32 or int64 -> `[..., D]`.

    DOCS/mint/mindspore.mint.nn.functional.embedding.html, CANN/aclnnEmbedding.md. Unverified: nothing that matters here.
    """
    return mint.nn.functional.embedding(ids, weight)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """`mint.nn.functional.conv2d`: x `[B, C, h, w]`, weight `[M, C / groups, kh, kw]`; pairs for the other arguments.

    DOCS/mint/mindspore.mint.nn.functional.conv2d.html, CANN/aclnnConvolution.md: float16, bfloat16, float32.
    Unverified: "due to the limitation of the L1 cache size of different NPU chip, if input size or kernel size is too
    large, it may trigger an error"; float32 may be rounded to HF32 (1e-3) before the product.
    """
    return mint.nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def index_copy(buffer: Parameter, index: Tensor, rows: Tensor) -> Parameter:
    """Writes rows `[M, D]` into the Parameter buffer `[N, D]` at index int32 `[M]`, in place: what `Tensor.index_copy_` calls.

    DOCS/mindspore/Tensor/mindspore.Tensor.index_copy_.html, CANN/aclnnInplaceIndexCopy.md.
    Unverified: that it writes into a Parameter inside a graph.
    """
    return _index_copy(buffer, 0, index, rows)


def index_add(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """A copy of x `[N, ...]` with rows `[M, ...]` added at index `[M]`: what `mint.index_add` calls.

    DOCS/mint/mindspore.mint.index_add.html, CANN/aclnnIndexAdd.md: float16, bfloat16, float32.
    """
    return _index_add(x, 0, index, rows)


def addcdiv(x: Tensor, dividend: Tensor, divisor: Tensor) -> Tensor:
    """`x + dividend / divisor`: what `mint.addcdiv` calls. CANN/aclnnAddcdiv.md: float16, bfloat16, float32."""
    return _addcdiv(x, dividend, divisor)


def clone(x: Tensor) -> Tensor:
    """A copy: what `mint.clone` calls. CANN/aclnnInplaceCopy.md."""
    return _clone(x)


# ---- kernels that come with MindSpore: in graphs with infer_boost alone -----------------------------------------------
#
# CANN does not document them: sources are MindSpore's documentation of the primitives, its code, and how others call them.


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, lengths: Tensor) -> Pair:
    """The primitive `ApplyRotaryPosEmb`, cos_format 2, pairs (i, i + D/2): q `[N, H * D]`, k `[N, K * D]`, cos and sin `[N, D]`, both
    halves filled, all of one type; lengths int32 `[N]` -> rotated q and k.

    DOCS/ops/mindspore.ops.ApplyRotaryPosEmb.html. Unverified: what the lengths are for (every token has its own row of the tables).
    """
    return _rotary_by_halves(q, k, cos, sin, lengths)


def reshape_and_cache(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """The primitive `ReshapeAndCache`: writes k and v `[N, K * D]` into keys and values `[blocks, P, K, D]`, in place, at row
    `block * P + offset` of slots int32 `[N]` -> a value that later reads of them must depend on.

    Unverified: that it writes into a Parameter that was reshaped.
    """
    return _reshape_and_cache(k, v, keys, values, slots)


def paged_attention(
    q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, heads: int, kv_heads: int, scale: float
) -> Tensor:
    """The primitive `PagedAttention`: single tokens q `[N, H, D]` on keys and values `[blocks, P, K, D]`; tables int32 `[N, n]`, lengths
    int32 `[N]` -> as q.

    MindSpore's sources (kernel/ascend/internal/paged_attention.cc): where its own kernel is switched off for that of ATB, lengths are
    read on the host, from the graph's input that is called `batch_valid_length`. The kernel itself takes the second axis
    of q for the heads (dry run: "group_num = 1024" for `[1, 4096]`).
    Unverified: whether a graph that is run again has the lengths of that call.
    """
    return PagedAttention(heads, scale, kv_heads)(q, keys, values, tables, lengths)


# ---- layout: at most one launch each in a graph ------------------------------------------------------------------------
#
# Outside graphs, MindSpore slices and transposes with views, which are no launch. In a graph its views are kernels on the host (2.10),
# and copies of every weight that is read more than once; so graphs use the functions below.


def split(x: Tensor, sizes: tuple[int, ...], axis: int) -> tuple[Tensor, ...]:
    """x cut along an axis into pieces of these sizes: a tuple. A view outside graphs, one kernel inside. CANN/aclnnSplitWithSize.md."""
    return _split(x, sizes, axis)


def contiguous(x: Tensor) -> Tensor:
    """x without strides: a copy outside graphs where it is a view, free inside, where there are no views."""
    return x.reshape(-1).reshape(x.shape)


def transpose(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The axes permuted into contiguous memory, one copy; free where only axes of length 1 move. CANN/aclnnPermute.md."""
    shape = tuple(x.shape[axis] for axis in axes)
    moving = [axis for axis in axes if x.shape[axis] != 1]
    return x.reshape(shape) if moving == sorted(moving) else contiguous(ops.transpose(x, axes))


def pad(x: Tensor, before: int, after: int) -> Tensor:
    """Zeros in front of and behind the last axis: what `mint.nn.functional.pad` calls. CANN/aclnnConstantPadNd.md."""
    return _pad(x, (before, after), 0.0)
