"""Choosing, sorting and weighing the rows of a mixture of experts, and products in groups."""

import mindspore as ms
import numpy as np

from . import codes
from .kernel import FLOATS, Kernel, require, same_type

INT_RUBBISH = -(2**31) + 7


def topk_ext(tensors, *, k, dim, largest, sorted):
    """-> the k largest of the last axis in descending order, their int64 indices."""
    require(
        tensors == ("input",) and dim == -1 and largest and sorted, f"tensors {tensors}, axis {dim}, {largest}, {sorted}"
    )

    def shape(x):
        require(0 < k <= x[-1], f"the {k} largest of {x[-1]}")
        return [*x[:-1], k], [*x[:-1], k]

    def compute(x):
        order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
        return np.take_along_axis(x, order, -1), order.astype(np.int64)

    return Kernel(1, compute, shape, lambda x: (same_type(FLOATS, x), ms.int64))


def moe_init_routing_v2(
    tensors,
    *,
    active_num,
    expert_capacity,
    expert_num,
    drop_pad_mode,
    expert_tokens_count_or_cumsum_flag,
    expert_tokens_before_capacity_flag,
):
    """x `[N, D]`, expert_idx int32 `[N, K]` -> rows sorted by expert `[N * K, D]`; where the row of each pair has gone
    int32 `[N * K]`; the experts' cumulative counts (flag 1) or counts (flag 2) int32 `[expert_num]`; rubbish of that shape.
    """
    require(tensors == ("x", "expert_idx"), f"tensors {tensors}")
    require(active_num == expert_capacity == drop_pad_mode == 0 and expert_num > 0, "a mode that is not emulated")
    require(expert_tokens_count_or_cumsum_flag in (0, 1, 2), f"flag {expert_tokens_count_or_cumsum_flag}")

    def shape(x, indices):
        require(len(x) == len(indices) == 2 and x[0] == indices[0], f"x {x}, indices {indices}")
        pairs = indices[0] * indices[1]
        return [pairs, x[1]], [pairs], [expert_num], [expert_num]

    def dtype(x, indices):
        require(indices == ms.int32, f"indices of type {indices}, expected int32")
        return same_type(FLOATS, x), ms.int32, ms.int32, ms.int32

    def compute(x, indices):
        flat = indices.reshape(-1)
        require(flat.min() >= 0 and flat.max() < expert_num, f"expert {flat.min()} or {flat.max()} of {expert_num}")
        order = np.argsort(flat, kind="stable")
        places = np.empty_like(flat)
        places[order] = np.arange(flat.size, dtype=np.int32)
        counts = np.bincount(flat, minlength=expert_num).astype(np.int32)
        rubbish = np.full(expert_num, INT_RUBBISH, np.int32)
        kinds = (rubbish, np.cumsum(counts, dtype=np.int32), counts)
        return x[order // indices.shape[1]], places, kinds[expert_tokens_count_or_cumsum_flag], rubbish

    return Kernel(2, compute, shape, dtype)


def grouped_matmul_v4(tensors, *, split_item, group_type, group_list_type, act_type):
    """[x `[N, C]`], [weight `[E, C, M]`], group_list int64 `[E]`: cumulative counts (type 0) or counts (type 1) -> ([N, M],),
    rubbish in the rows past the last group.

    With antiquant_scale and antiquant_offset the weight is codes, times scales `[E, M]`: int8, or qint4x2 `[E, C, M / 2]`, of which
    scales may be `[E, G, M]` as well, then with offsets of zeros.
    """
    plain, with_codes = ("x[0]", "weight[0]", "group_list"), ("antiquant_scale[0]", "antiquant_offset[0]")
    require(tensors in (plain, (*plain[:2], *with_codes, plain[2])), f"tensors {tensors}: not emulated")
    require(split_item == 3 and group_type == 0 and act_type == 0, "a mode that is not emulated")
    require(group_list_type in (0, 1), f"group_list_type {group_list_type}")

    def shape(x, weight, *others):
        *coded, groups = others
        require(len(x) == 2 and len(weight) == 3 and x[1] == weight[1], f"x {x}, weight {weight}")
        outputs = coded[0][-1] if coded else weight[2]
        require(groups == weight[:1] and groups[0] <= 1024, f"{groups} for {weight[0]} groups, at most 1024")
        require(x[1] < 65536 and outputs < 65536, f"x {x}, weight {weight}: rows below 65536")
        for found in coded:
            require(found == coded[0] and found[0] == weight[0], f"scales or offsets {found} for codes {weight}")
            halves = 2 * weight[2] == outputs
            require(halves or weight[2] == outputs, f"scales {found} for codes {weight}")
            require(len(found) == 2 or (len(found) == 3 and halves and x[1] % found[1] == 0), f"groups {found} of {weight}")
        return ([x[0], outputs],)

    def dtype(x, weight, *others):
        *coded, groups = others
        require(groups == ms.int64, f"a list of groups of type {groups}, expected int64")
        if not coded:
            return (same_type(FLOATS, x, weight),)
        require(weight in codes.TYPES, f"codes of type {weight}")
        return (same_type(FLOATS, x, *coded),)

    def check(shapes, types):
        if len(shapes) > 3:
            codes.require_halves(types[1], shapes[1][2], shapes[2][-1])

    def compute(x, weight, *others):
        *coded, groups = others
        if coded:
            scales, offsets = (part if part.ndim == 3 else part[:, None] for part in coded)
            require(scales.shape[1] == 1 or not offsets.any(), "offsets of groups")
            weight = codes.numbers(weight, scales, offsets)
        counts = np.diff(groups, prepend=0) if group_list_type == 0 else groups
        require((counts >= 0).all() and counts.sum() <= len(x), f"groups of {counts.tolist()} for {len(x)} rows")
        out, start = np.full((len(x), weight.shape[2]), np.nan, x.dtype), 0
        for expert, count in enumerate(counts):
            out[start : start + count] = x[start : start + count] @ weight[expert]
            start += count
        return (out,)

    return Kernel(len(tensors), compute, shape, dtype, check)


def moe_token_unpermute(tensors, *, padded_mode):
    """`sum_j probs[n, j] * permuted_tokens[sorted_indices[n * K + j]]`: `[N * K, D]`, int32 `[N * K]`, `[N, K]` -> `[N, D]`."""
    require(tensors == ("permuted_tokens", "sorted_indices", "probs") and not padded_mode, f"tensors {tensors}")

    def shape(rows, places, probs):
        require(len(rows) == len(probs) == 2, f"rows {rows}, probs {probs}")
        require(places == rows[:1] and rows[0] == probs[0] * probs[1], f"{rows[0]} rows, {places} places, probs {probs}")
        require(probs[1] <= 512, f"{probs[1]} experts per token, at most 512")
        return [probs[0], rows[1]]

    def dtype(rows, places, probs):
        require(places == ms.int32, f"places of type {places}, expected int32")
        return same_type(FLOATS, rows, probs)

    def compute(rows, places, probs):
        require((np.sort(places) == np.arange(len(rows))).all(), "places are not a permutation")
        return np.einsum("nk,nkd->nd", probs, rows[places].reshape(*probs.shape, -1))

    return Kernel(3, compute, shape, dtype)
