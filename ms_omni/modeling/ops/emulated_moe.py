"""Routing and grouped products of `ascend_kernels` in numpy (see `emulation.py`)."""

import functools

import mindspore as ms
import numpy as np

from .emulation_rules import FLOATS, primitive, require, same_type


@functools.cache
def _topk(k):
    def shape(x):
        require(0 < k <= x[-1], f"the {k} largest of {x[-1]}")
        return [*x[:-1], k], [*x[:-1], k]

    def compute(x):
        order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
        return np.take_along_axis(x, order, -1), order.astype(np.int64)

    return primitive(compute, shape, lambda x: (same_type(FLOATS, x), ms.int64))


def topk(x, k):
    return _topk(k)(x)


@functools.cache
def _moe_init_routing(experts):
    def shape(x, indices):
        require(len(x) == len(indices) == 2 and x[0] == indices[0], f"x {x}, indices {indices}")
        pairs = indices[0] * indices[1]
        return [pairs, x[1]], [pairs], [experts]

    def dtype(x, indices):
        require(indices == ms.int32, f"indices of type {indices}, expected int32")
        return same_type(FLOATS, x), ms.int32, ms.int32

    def compute(x, indices):
        flat = indices.reshape(-1)
        require(flat.min() >= 0 and flat.max() < experts, f"expert {flat.min()} or {flat.max()} of {experts}")
        order = np.argsort(flat, kind="stable")
        places = np.empty_like(flat)
        places[order] = np.arange(flat.size, dtype=np.int32)
        counts = np.bincount(flat, minlength=experts)
        return x[order // indices.shape[1]], places, np.cumsum(counts).astype(np.int32)

    return primitive(compute, shape, dtype)


def moe_init_routing(x, indices, experts):
    return _moe_init_routing(experts)(x, indices)


def _grouped_shape(x, weight, ends):
    require(len(x) == 2 and len(weight) == 3 and x[1] == weight[1], f"x {x}, weight {weight}")
    require(ends == weight[:1] and ends[0] <= 1024, f"{ends} ends for {weight[0]} groups, at most 1024")
    require(x[1] < 65536 and weight[2] < 65536, f"x {x}, weight {weight}: rows below 65536")
    return [x[0], weight[2]]


def _grouped_dtype(x, weight, ends):
    require(ends == ms.int64, f"ends of type {ends}, expected int64")
    return same_type(FLOATS, x, weight)


def _grouped_compute(x, weight, ends):
    starts = np.concatenate([[0], ends[:-1]])
    require((starts <= ends).all() and ends[-1] <= len(x), f"cumulative counts {ends.tolist()} for {len(x)} rows")
    out = np.full((len(x), weight.shape[2]), np.nan, x.dtype)  # nobody says what becomes of rows past the last group
    for expert in np.flatnonzero(ends > starts):
        rows = slice(starts[expert], ends[expert])
        out[rows] = x[rows] @ weight[expert]
    return out


_grouped = primitive(_grouped_compute, _grouped_shape, _grouped_dtype)


def grouped_matmul(x, weight, ends):
    return _grouped(x, weight, ends)


def _unpermute_shape(rows, places, probs):
    require(len(rows) == len(probs) == 2, f"rows {rows}, probs {probs}")
    require(places == rows[:1] and rows[0] == probs[0] * probs[1], f"{rows[0]} rows, {places} places, probs {probs}")
    require(probs[1] <= 512, f"{probs[1]} experts per token, at most 512")
    return [probs[0], rows[1]]


def _unpermute_dtype(rows, places, probs):
    require(places == ms.int32, f"places of type {places}, expected int32")
    return same_type(FLOATS, rows, probs)


def _unpermute_compute(rows, places, probs):
    require((np.sort(places) == np.arange(len(rows))).all(), "places are not a permutation")
    return np.einsum("nk,nkd->nd", probs, rows[places].reshape(*probs.shape, -1))


_unpermute = primitive(_unpermute_compute, _unpermute_shape, _unpermute_dtype)


def moe_token_unpermute(rows, places, probs):
    return _unpermute(rows, places, probs)
