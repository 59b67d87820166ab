"""A decoder layer on Ascend, over weights that are packed for it: 22 kernels for a token of any number of rows, with experts.

AddRmsNorm | Dense (q, k, v), SplitWithSize, RmsNorm 2, RotaryPositionEmbedding 2, InplaceIndexCopy 2, FusedInferAttentionScore, Dense
AddRmsNorm | Dense (router), TopkExt, Softmax, Cast, MoeInitRoutingV2, Cast, GroupedMatmulV4, Swiglu, GroupedMatmulV4, MoeTokenUnpermute

The output of a layer is passed on beside the sum of those before it, so that a norm adds and normalises in one kernel. Written for
MindSpore's compiler: no view and no slice, which in a graph would be kernels on the host and copies of the weights.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn, ops

from . import ascend_kernels as kernels
from . import ascend_products as products
from .fused import LayerWeights
from .stored import Pair


class Layer(nn.Cell):
    """weights: a `LayerWeights`; eps: of its norms; head_dim: D of a head; like: a layer that has packed the same weights; bits: of codes
    that kernels multiply with, see `ascend_products.py`. Subclasses define `attend`.
    """

    def __init__(
        self,
        weights: LayerWeights,
        eps: float,
        head_dim: int,
        like: "Layer | None" = None,
        bits: frozenset[int] = products.BITS,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.eps, self.head_dim, self.scale = eps, head_dim, head_dim**-0.5
        self.input_norm, self.post_norm = weights.input_norm, weights.post_norm
        self.q_norm, self.k_norm = weights.q_norm, weights.k_norm
        self.heads, self.kv_heads = weights.q.shape[0] // head_dim, weights.k.shape[0] // head_dim
        self.width, self.kv_width = self.heads * head_dim, self.kv_heads * head_dim
        self.sums_heads, self.sums_experts = weights.sum_heads is not None, weights.sum_experts is not None
        self.sum_heads: Any = weights.sum_heads
        self.sum_experts: Any = weights.sum_experts
        self.sparse, self.dense = weights.router is not None, weights.gate is not None
        self.stored = like.stored if like else _stored(weights, bits)
        for name, product in self.stored.items():
            setattr(self, name, product)
        router, down = weights.router, weights.experts_down
        if router is not None and down is not None:
            self.top_k, self.normalise, self.local_experts = weights.top_k, weights.normalise, down.shape[0]
            self.is_sharded = weights.first is not None
            if self.is_sharded:
                self.local_index = Tensor(_local_numbers(router.shape[0], weights.first, self.local_experts))

    def __call__(self, *inputs: Any) -> Any:
        return self.construct(*inputs)  # no graph of its own, whatever mode MindSpore is in

    def construct(self, x: Tensor, total: Tensor | None, rope: Pair, context: Any) -> Pair:
        """x and total `[N, D]`: the output of the layer before, and the sum that it is added to (None: at the first layer); rope: cos and sin
        `[1, S, 1, D]` of S tokens in each of N / S rows; context: see `attend` -> the same of this layer.
        """
        x, total = self.added(x, total, self.input_norm)
        qkv = self.qkv(x)
        q, k, v = kernels.split(qkv, (self.width, self.kv_width, self.kv_width), -1)
        q, k = self.rotated(q, k, rope, context)
        y = self.o(self.attend(q, k, v, context))
        if self.sums_heads:
            y = self.sum_heads(y)
        x, total = self.added(y, total, self.post_norm)
        return self.mlp(x), total

    def added(self, x: Tensor, total: Tensor | None, weight: Tensor) -> Pair:
        """The norm of x + total, and that sum."""
        if total is None:
            return kernels.rms_norm(x, weight, self.eps), x
        return kernels.add_rms_norm(x, total, weight, self.eps)

    def rotated(self, q: Tensor, k: Tensor, rope: Pair, context: Any) -> Pair:
        """Queries `[N, H * D]` and keys `[N, K * D]`, normalised and rotated."""
        size, d = rope[0].shape[1], self.head_dim
        q = self.normalised(q.reshape(-1, size, self.heads, d), self.q_norm)
        k = self.normalised(k.reshape(-1, size, self.kv_heads, d), self.k_norm)
        q = kernels.rotary_position_embedding(q, rope[0], rope[1])
        k = kernels.rotary_position_embedding(k, rope[0], rope[1])
        return q.reshape(-1, self.width), k.reshape(-1, self.kv_width)

    def normalised(self, x: Tensor, norm: Tensor | None) -> Tensor:
        return x if norm is None else kernels.rms_norm(x, norm, self.eps)

    def mlp(self, x: Tensor) -> Tensor:
        """x `[N, D]` -> `[N, D]`."""
        if not self.sparse:
            return self.dense_mlp(x)
        y = self.mixture(x)
        if self.sums_experts:
            y = self.sum_experts(y)
        if self.dense:
            y = mint.addcmul(y, self.dense_mlp(x), mint.sigmoid(self.shared_gate(x)))
        return y

    def dense_mlp(self, x: Tensor) -> Tensor:
        return self.down(kernels.swiglu(self.gates(x)))

    def mixture(self, x: Tensor) -> Tensor:
        """The experts of this rank. Weights that are divided by their sum are the softmax of the chosen logits alone."""
        logits = self.router(x)
        if self.normalise:
            weights, index = kernels.topk(logits, self.top_k)
            weights = kernels.softmax(weights)
        else:
            weights, index = kernels.topk(kernels.softmax(logits), self.top_k)
        if not self.is_sharded:
            rows, row_index, counts = kernels.moe_init_routing(x, index.astype(ms.int32), self.local_experts)
            return kernels.moe_token_unpermute(self.products(rows, counts), row_index, weights)
        index = mint.index_select(self.local_index, 0, index.reshape(-1)).reshape(index.shape)
        rows, row_index, counts = kernels.moe_init_routing(x, index, self.local_experts + 1)
        counts, others = kernels.split(counts, (self.local_experts, 1), 0)
        # The products leave the rows behind the groups, which are for experts of other ranks, as they are.
        to_end = mint.arange(rows.shape[0], 0, -1, dtype=ms.int32).reshape(-1, 1)
        out = mint.where(mint.greater(to_end, others), self.products(rows, counts), 0.0)
        return kernels.moe_token_unpermute(out, row_index, weights)

    def products(self, rows: Tensor, counts: Tensor) -> Tensor:
        counts = counts.astype(ms.int64)
        hidden = kernels.swiglu(self.experts_gate_up(rows, counts))
        return self.experts_down(hidden, counts)


def _stored(w, bits):
    """The products of a layer, by name."""
    dtype = w.input_norm.dtype

    def dense(*weights, biases=None):
        return products.dense(weights, biases or (None,) * len(weights), dtype, bits)

    products_by_name = {
        "qkv": dense(w.q, w.k, w.v, biases=(w.q_bias, w.k_bias, w.v_bias)),
        "o": dense(w.o, biases=(w.o_bias,)),
    }
    gate, up, down, shared_gate = w[w._fields.index("gate") :][:4]
    if gate is not None:
        products_by_name |= {"gates": dense(gate, up), "down": dense(down)}
    if w.router is not None:
        experts = (products.grouped(part, dtype, bits) for part in (w.experts_gate_up, w.experts_down))
        products_by_name |= {"router": dense(w.router), **dict(zip(("experts_gate_up", "experts_down"), experts))}
        products_by_name |= {} if gate is None else {"shared_gate": dense(shared_gate)}
    return products_by_name


def _local_numbers(experts, first, count):
    """For each expert its index among those of this rank, `count` for the others: int32 `[E]`."""
    numbers = np.arange(experts) - first
    return np.where((numbers >= 0) & (numbers < count), numbers, count).astype(np.int32)


class CachedLayer(Layer):
    """Attends to keys and values in blocks, buffers `[blocks * P, K * D]`, row `block * P + offset`. block: P."""

    block = 0
    lengths = np.int64

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Any, ...]) -> Tensor:
        """q `[N, H * D]`, k and v `[N, K * D]` -> `[N, H * D]`. context: (keys, values, slots, first, second): buffers, and rows int32
        `[N]` of them to write; then tables int32 `[N, n]` and lengths int64 `[N]` of one token in each of N rows; or rows int32
        `[T]` and a mask bool `[1, N, T]`, True discards, of N tokens in one row which attends to T positions.
        """
        keys, values, slots, first, second = context
        kernels.index_copy(keys, slots, k)
        kernels.index_copy(values, slots, v)
        if second.ndim == 1:
            shape = (-1, self.block, self.kv_width)
            out = kernels.paged_infer_attention(
                q.reshape(-1, 1, self.width), keys.reshape(shape), values.reshape(shape), first, second,
                self.heads, self.kv_heads, self.block, self.scale, "BSH",
            )  # fmt: skip
        else:
            k = mint.index_select(keys, 0, first).reshape(1, -1, self.kv_width)
            v = mint.index_select(values, 0, first).reshape(1, -1, self.kv_width)
            q = q.reshape(1, -1, self.width)
            out = kernels.fused_infer_attention(q, k, v, second, self.kv_heads, self.scale, "BSH", self.heads)
        return out.reshape(-1, self.width)


class BoostedLayer(CachedLayer):
    """The same on the same buffers, in kernels that come with MindSpore (see `dispatch.BOOST`): 20 with experts. For tokens alone, and
    lengths are int32.

    Of the list above these go: RotaryPositionEmbedding 2 for ApplyRotaryPosEmb, InplaceIndexCopy 2 for ReshapeAndCache, and
    FusedInferAttentionScore for PagedAttention.
    """

    lengths = np.int32

    def rotated(self, q: Tensor, k: Tensor, rope: Pair, context: Any) -> Pair:
        d = self.head_dim
        q = self.normalised(q.reshape(-1, self.heads, d), self.q_norm).reshape(-1, self.width)
        k = self.normalised(k.reshape(-1, self.kv_heads, d), self.k_norm).reshape(-1, self.kv_width)
        return kernels.apply_rotary_pos_emb(q, k, rope[0].reshape(-1, d), rope[1].reshape(-1, d), context[4])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Any, ...]) -> Tensor:
        keys, values, slots, tables, lengths = context
        shape = (-1, self.block, self.kv_heads, self.head_dim)
        keys, values = keys.reshape(shape), values.reshape(shape)
        q = ops.depend(q, kernels.reshape_and_cache(k, v, keys, values, slots)).reshape(-1, self.heads, self.head_dim)
        out = kernels.paged_attention(q, keys, values, tables, lengths, self.heads, self.kv_heads, self.scale)
        return out.reshape(-1, self.width)


class FrameLayer(Layer):
    """Attends to the keys of the same pass. context: a mask bool `[1, S, S]`, True discards."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Tensor) -> Tensor:
        s = context.shape[-1]
        q, k, v = q.reshape(-1, s, self.width), k.reshape(-1, s, self.kv_width), v.reshape(-1, s, self.kv_width)
        out = kernels.fused_infer_attention(q, k, v, context, self.kv_heads, self.scale, "BSH", self.heads)
        return out.reshape(-1, self.width)
