"""The attention kernels."""

from typing import ClassVar

import mindspore as ms
import numpy as np

from .kernel import FLOATS, Kernel, require, same_type


def _softmax_product(scores, values, rounded):
    """`softmax(scores) @ values`, no row all -inf. The product's unit takes rounded exponentials; their sum is exact."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return rounded(weights) @ values / weights.sum(-1, keepdims=True)


def _heads_first(x, heads, layout):
    """An array of a layout as [B, heads, tokens, D]."""
    if layout == "BSH":
        x = x.reshape(*x.shape[:2], heads, -1)
    return x.transpose(0, 2, 1, 3) if layout in ("BSH", "BSND") else x


def _sizes(shape, heads, layout):
    """B, heads, tokens and D of a shape in a layout."""
    if layout == "BSH":
        require(len(shape) == 3 and shape[2] % heads == 0, f"{shape}: three axes, {heads} heads")
        return shape[0], heads, shape[1], shape[2] // heads
    require(len(shape) == 4, f"{shape}: four axes")
    return (shape[0], shape[2], shape[1], shape[3]) if layout == "BSND" else tuple(shape)


class _InferAttention:
    """`FusedInferAttentionScore`: sparse_mode 0, keys in one piece or in blocks (`[blocks, block_size, K * D]` or
    `[blocks, K, block_size, D]`) -> as the queries, or `[B, S, H, D]` for BNSD_BSND; `[1]` zeros.
    """

    TYPES: ClassVar = {
        "attn_mask": (ms.bool_, ms.int8, ms.uint8),
        "actual_seq_lengths_kv": (ms.int64,),
        "block_table": (ms.int32,),
    }

    def __init__(self, tensors, num_heads, num_key_value_heads, scale_value, input_layout, block_size):
        require(tensors[:3] == ("query", "key[0]", "value[0]"), f"tensors {tensors}")
        require(set(tensors[3:]) <= set(self.TYPES), f"tensors {tensors} of which not all are emulated")
        require(isinstance(scale_value, float), f"scale {scale_value!r}")
        require(input_layout in ("BNSD", "BSND", "BSH", "BNSD_BSND"), f"layout {input_layout}")
        self.others, self.paged = tensors[3:], "block_table" in tensors
        self.heads, self.kv_heads = num_heads, num_key_value_heads or num_heads
        self.scale, self.layout, self.block_size = np.float32(scale_value), input_layout, block_size

    def sizes(self, q, k, table):
        """B, H, S, T and D of these shapes, checked."""
        b, h, s, d = _sizes(q, self.heads, self.layout)
        kv_b, groups, t, kv_d = _sizes(k, self.kv_heads, "BSH" if len(k) == 3 else self.layout)
        if self.paged:
            require(s == 1 and t == self.block_size and t % 16 == 0 and 0 < t <= 512, f"{s} queries on blocks of {t}")
            require(len(table) == 2 and "actual_seq_lengths_kv" in self.others, f"block table {table}, lengths with it")
            kv_b, t = table[0], table[1] * t
        require(h == self.heads and groups == self.kv_heads, f"{h} and {groups} heads, not {self.heads}, {self.kv_heads}")
        require(h % groups == 0 and h // groups <= 64 and h <= 256, f"{h} heads for {groups} kv heads")
        require(b == kv_b and d == kv_d, f"batch and channels of q {q} and k {k}")
        require(d % 16 == 0 and d <= 512, f"{d} channels: a multiple of 16, at most 512")
        require(self.layout != "BNSD_BSND" or s > 1, "BNSD_BSND is for more than one query")
        return b, h, s, t, d

    def shape(self, q, k, v, *others):
        given = dict(zip(self.others, others))
        require(k == v, f"k {k}, v {v}: alike")
        b, h, s, t, d = self.sizes(q, k, given.get("block_table"))
        masks = [[b, 1, s, t], *([[b, t], [b, 1, t]] if s == 1 else [[s, t], [b, s, t], [1, s, t], [1, 1, s, t]])]
        require(given.get("attn_mask", masks[0]) in masks, f"mask {given.get('attn_mask')}, expected one of {masks}")
        require(given.get("actual_seq_lengths_kv", [b]) == [b], f"lengths {given.get('actual_seq_lengths_kv')}, not {b}")
        return [b, s, h, d] if self.layout == "BNSD_BSND" else q, [1]

    def dtype(self, q, k, v, *others):
        for name, found in zip(self.others, others):
            require(found in self.TYPES[name], f"{name} of type {found}, expected one of {self.TYPES[name]}")
        return same_type(FLOATS, q, k, v), ms.float32

    def discarded(self, b, s, t, mask=None, ends=None):
        """bool `[b or 1, 1, s, t]`, True where a key does not count."""
        mask = np.zeros((1, 1, s, t), bool) if mask is None else mask.astype(bool).reshape(-1, 1, s, t)
        if ends is not None:
            require((ends > 0).all() and (ends <= t).all(), f"lengths {ends.tolist()} for {t} keys")
            mask = mask | (np.arange(t) >= ends.reshape(b, 1, 1, 1))
        require(not mask.all(-1).any(), "a query that may look at nothing")
        return mask

    def compute(self, q, k, v, *others, rounded=lambda x: x):
        given = dict(zip(self.others, others))
        table = given.get("block_table")
        b, h, s, t, d = self.sizes(q.shape, k.shape, None if table is None else table.shape)
        ends = given.get("actual_seq_lengths_kv")
        mask = self.discarded(b, s, t, given.get("attn_mask"), ends)
        k, v = (_heads_first(x, self.kv_heads, "BSH" if x.ndim == 3 else self.layout) for x in (k, v))
        if self.paged:
            require((table >= 0).all() and (table < len(k)).all(), f"block tables {table.tolist()} for {len(k)} blocks")
            k, v = (x[table].transpose(0, 2, 1, 3, 4).reshape(b, self.kv_heads, t, d) for x in (k, v))
        if ends is not None:  # what is behind the lengths is not read
            k, v = (np.where(np.arange(t)[:, None] < ends.reshape(b, 1, 1, 1), x, np.float32(0)) for x in (k, v))
        q = _heads_first(q, self.heads, self.layout).reshape(b, self.kv_heads, -1, s, d)
        scores = q @ k[:, :, None].swapaxes(-1, -2) * self.scale
        scores = np.where(mask[:, :, None], np.float32(-np.inf), scores)
        out = _softmax_product(scores, v[:, :, None], rounded).reshape(b, h, s, d)
        out = out if self.layout == "BNSD" else out.transpose(0, 2, 1, 3)
        return out.reshape(b, s, h * d) if self.layout == "BSH" else out, np.zeros(1, np.float32)


def fused_infer_attention_score(tensors, *, sparse_mode, inner_precise, softmax_lse_flag, **settings):
    require(sparse_mode == 0 and inner_precise in (0, 1) and not softmax_lse_flag, "a mode that is not emulated")
    unused = ("pre_tokens", "next_tokens", "antiquant_mode", "key_antiquant_mode", "value_antiquant_mode")
    kernel = _InferAttention(tensors, **{name: value for name, value in settings.items() if name not in unused})
    return Kernel(len(tensors), kernel.compute, kernel.shape, kernel.dtype)


def paged_attention(tensors, *, head_num, scale_value, kv_head_num, kv_cache_quant_mode, mask_mode, mla_v_dim):
    """`PagedAttention`: query `[N, H, D]`, caches `[blocks, P, K, D]`, block_tables int32 `[N, n]`, context_lens int32 `[N]` -> as query."""
    require(tensors == ("query", "key_cache", "value_cache", "block_tables", "context_lens"), f"tensors {tensors}")
    require((kv_cache_quant_mode, mask_mode, mla_v_dim) == ("DEFAULT", "MASK_DEFAULT", 0), "a mode that is not emulated")
    require(isinstance(scale_value, float), f"scale {scale_value!r}")

    def shape(q, keys, values, tables, lengths):
        require(len(q) == 3 and q[1] == head_num, f"q {q}: three axes, the second of {head_num} heads")
        require(keys == values and len(keys) == 4 and keys[2:] == [kv_head_num, q[2]], f"q {q}, k {keys}, v {values}")
        require(keys[1] % 16 == 0 and q[2] % 16 == 0 and head_num % kv_head_num == 0, f"q {q}, blocks {keys}")
        require(len(tables) == 2 and [tables[0]] == lengths == q[:1], f"tables {tables} and lengths {lengths} for {q}")
        return q

    def dtype(q, keys, values, tables, lengths):
        require(tables == lengths == ms.int32, f"tables {tables}, lengths {lengths}")
        return same_type(FLOATS, q, keys, values)

    def compute(q, keys, values, tables, lengths, rounded=lambda x: x):
        require((tables >= 0).all() and (tables < len(keys)).all(), f"block tables {tables.tolist()} for {len(keys)} blocks")
        require((lengths > 0).all() and (lengths <= tables.shape[1] * keys.shape[1]).all(), f"lengths {lengths.tolist()}")
        out = np.empty_like(q)
        for row, (table, length) in enumerate(zip(tables, lengths)):
            k, v = (x[table].reshape(-1, *x.shape[2:])[:length].swapaxes(0, 1) for x in (keys, values))  # [K, T, D]
            scores = q[row].reshape(kv_head_num, -1, q.shape[2]) @ k.swapaxes(1, 2) * np.float32(scale_value)
            out[row] = _softmax_product(scores, v, rounded).reshape(q.shape[1:])
        return out

    return Kernel(5, compute, shape, dtype)


def flash_attention_score(
    tensors, *, head_num, scale_value, input_layout, sparse_mode, keep_prob, actual_seq_qlen, actual_seq_kvlen, **unused
):
    """`FlashAttentionScore` inside segments of packed tokens `[N, H, D]`, no mask -> three results for a gradient, `[N, H, D]`."""
    require(tensors == ("query", "key", "value"), f"tensors {tensors}: not emulated")
    require(input_layout == "TND" and sparse_mode == 0 and keep_prob == 1.0, "a mode that is not emulated")
    require(set(unused) <= {"pre_tokens", "next_tokens", "inner_precise"}, f"arguments {set(unused)}: not emulated")
    require(isinstance(scale_value, float), f"scale {scale_value!r}")
    require(actual_seq_qlen == actual_seq_kvlen, "queries and keys are the same tokens")
    ends = [int(end) for end in actual_seq_qlen]
    require(len(ends) <= 1024 and (np.diff([0, *ends]) > 0).all(), f"{len(ends)} cumulative lengths {ends}")

    def shape(q, k, v):
        require(len(q) == 3 and q == k == v, f"q {q}, k {k}, v {v}: three axes, all alike")
        require(q[1] == head_num and q[1] <= 256 and q[2] % 16 == 0 and q[2] <= 512, f"{q[1]} heads of {q[2]} channels")
        require(ends[-1] == q[0], f"cumulative lengths {ends} for {q[0]} tokens")
        return [q[0], q[1], 8], [q[0], q[1], 8], [1], q

    def dtype(*types):
        found = same_type(FLOATS, *types)
        return ms.float32, ms.float32, found, found

    def compute(q, k, v, rounded=lambda x: x):
        out, start = np.empty_like(q), 0
        for stop in ends:
            queries, keys, values = (x[start:stop].swapaxes(0, 1) for x in (q, k, v))  # [H, n, D]
            scores = queries @ keys.swapaxes(1, 2) * np.float32(scale_value)
            out[start:stop] = _softmax_product(scores, values, rounded).swapaxes(0, 1)
            start = stop
        statistics = np.full((*q.shape[:2], 8), np.nan, np.float32)  # nobody here reads them
        return statistics, statistics, np.full(1, np.nan, np.float32), out

    return Kernel(len(tensors), compute, shape, dtype)
