"""Self-attention of the decoder stacks: grouped kv heads, optional norms of queries and keys, rotary positions."""

from . import ops
from .cache import attend
from .layer import Cell, identity
from .layers import Linear, RMSNorm


class Attention(Cell):
    """`[B, S, D]` -> `[B, S, D]`, reading and extending one layer of a cache. `stable`: see `ops`."""

    stable = False

    def __init__(self, hidden_size, num_heads, num_kv_heads, head_dim, bias=False, qk_norm_eps=None):
        super().__init__()
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.q_proj = Linear(hidden_size, num_heads * head_dim, bias)
        self.k_proj = Linear(hidden_size, num_kv_heads * head_dim, bias)
        self.v_proj = Linear(hidden_size, num_kv_heads * head_dim, bias)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias)
        self.q_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else identity
        self.k_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else identity
        self.reduce = identity  # sums the partial results of split heads under a tensor-parallel plan

    @property
    def num_kv_heads(self):
        """Of this process: fewer under a plan that splits them."""
        return self.k_proj.size // self.head_dim

    def construct(self, x, place, store, layer):
        """x `[B, S, D]`; place and store: see `cache.py`; layer: the index of this layer there."""
        cos, sin, mask, slots = place
        b, s, _ = x.shape
        q = self.q_norm(self.q_proj(x).reshape(b, s, -1, self.head_dim))  # [B, S, H, D]
        k = self.k_norm(self.k_proj(x).reshape(b, s, -1, self.head_dim))  # [B, S, K, D]
        v = self.v_proj(x).reshape(b, s, -1, self.head_dim)
        q, k = ops.rotary(q, cos, sin), ops.rotary(k, cos, sin)
        return self.reduce(self.o_proj(attend(q, k, v, mask, slots, store, layer, self.scale, self.stable)))
