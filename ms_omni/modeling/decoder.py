"""The decoder stack that thinker, talker, code predictor and code2wav's transformer share."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from ..errors import InputError
from . import ops
from .cache import AttentionMetadata, KVCache, attend
from .forward import answer, given_embeddings, read_stack, visual_deepstack
from .layer import Cell, identity, is_coded
from .layers import Embedding, GatedMLP, Linear, RMSNorm
from .moe import SparseMoeBlock
from .packing import check_ids, host_array
from .positions import inverse_frequencies, mrope_tables, rope_tables


class Attention(Cell):
    """`[B, S, D]` -> `[B, S, D]`, reading and extending one layer of a cache. `stable`: see `ops`."""

    stable = False

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool = False,
        qk_norm_eps: float | None = None,
    ) -> None:
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
    def num_kv_heads(self) -> int:
        """Of this process: fewer under a plan that splits them."""
        return self.k_proj.size // self.head_dim

    def construct(self, x: Tensor, metadata: AttentionMetadata, store: Any, layer: int) -> Tensor:
        """x `[B, S, D]`; metadata and store: see `cache.py`; layer: the index of this layer there."""
        cos, sin, mask, slots = metadata
        b, s, _ = x.shape
        q = self.q_norm(self.q_proj(x).reshape(b, s, -1, self.head_dim))  # [B, S, H, D]
        k = self.k_norm(self.k_proj(x).reshape(b, s, -1, self.head_dim))  # [B, S, K, D]
        v = self.v_proj(x).reshape(b, s, -1, self.head_dim)
        q, k = ops.rotary(q, cos, sin), ops.rotary(k, cos, sin)
        return self.reduce(self.o_proj(attend(q, k, v, mask, slots, store, layer, self.scale, self.stable)))


class DecoderLayer(Cell):
    """Pre-norm attention and MLP with residuals, `[B, S, D]` -> `[B, S, D]`."""

    def __init__(self, hidden_size: int, eps: float, self_attn: Attention, mlp: Cell) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = RMSNorm(hidden_size, eps)
        self.post_attention_layernorm = RMSNorm(hidden_size, eps)
        self.self_attn_layer_scale = identity
        self.mlp_layer_scale = identity
        self.is_sparse = isinstance(mlp, SparseMoeBlock)

    def construct(
        self, x: Tensor, metadata: AttentionMetadata, store: Any, layer: int, router_logits: list[Tensor] | None = None
    ) -> Tensor:
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), metadata, store, layer))
        rows = self.post_attention_layernorm(x)
        return x + self.mlp_layer_scale(self.mlp(rows, router_logits) if self.is_sparse else self.mlp(rows))


def build_attention(config: Any, qk_norm: bool) -> Attention:
    """The attention cell of a decoder config; `qk_norm` says whether queries and keys are normalised per head."""
    return Attention(
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        bias=config.attention_bias,
        qk_norm_eps=config.rms_norm_eps if qk_norm else None,
    )


def build_dense_mlp(config: Any) -> GatedMLP:
    """The gated MLP of a layer without experts."""
    return GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act)


class Decoder(Cell):
    """A stack of decoder layers and the final norm.

    `run` returns the last hidden state `[B, S, D]` and calls `observe(i, x)`, if given, with the output of layer i - 1
    (i = 0: the input) before anything is added to it.
    window: how many positions a token attends to, itself included; None: all.
    """

    window = None

    def __init__(self, config: Any, layers: list[DecoderLayer]) -> None:
        super().__init__()
        self.config = config
        self.inv_freq = inverse_frequencies(config.rope_theta, config.head_dim)
        self.layers = nn.CellList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def construct(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        visual_pos_masks: Any = None,
        deepstack_visual_embeds: Any = None,
        output_hidden_states: Any = None,
        output_router_logits: bool | None = None,
        output_attentions: bool | None = None,
        cache_position: Any = None,
        return_dict: bool | None = None,
    ) -> Any:
        """The reference's forward: ids `[B, S]`, or inputs_embeds `[B, S, D]` -> `DecoderOutput` (return_dict=False: a tuple).

        attention_mask `[B, S]`, or over the cached tokens too; position_ids: see `forward.given_positions`, counted from 0
        without; past_key_values: a `KVCache`, created unless use_cache=False. visual_pos_masks `[B, S]` and
        deepstack_visual_embeds (`[M, D]` per layer): features that are added behind the first layers.
        output_hidden_states: True, or the indices to return. Raises `InputError`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("pass either input_ids or inputs_embeds, and not both")
        x = self.embed(host_array(input_ids)) if inputs_embeds is None else given_embeddings(self, inputs_embeds)
        output = read_stack(
            self,
            x,
            attention_mask,
            position_ids,
            past_key_values,
            use_cache,
            output_hidden_states,
            output_router_logits,
            visual_deepstack(visual_pos_masks, deepstack_visual_embeds, x.shape[:2], x.shape[2]),
            output_attentions,
            cache_position,
        )
        return answer(output, return_dict)

    @property
    def compilable(self) -> bool:
        """Whether a pass can be a graph: not where a plan gathers the weights layer by layer, nor with weights stored as codes."""
        return self.norm.in_place and not self.coded

    @cached_property
    def coded(self) -> bool:
        """Whether some weights are stored as codes."""
        return is_coded(self)

    @property
    def input_layer(self) -> Any:
        """The table that ids are looked up in, or None."""
        return None

    def embed(self, input_ids: np.ndarray) -> Tensor:
        """Embeddings `[B, S, D]` of ids `[B, S]` (numpy). Raises `InputError` for ids outside the table."""
        table = self.input_layer
        if not isinstance(table, Embedding):
            raise InputError(f"{type(self).__name__} has no table for input_ids; pass inputs_embeds")
        check_ids(input_ids, self.config.vocab_size)
        return table(Tensor(input_ids.astype(np.int32)))

    def rope(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """cos, sin `[B, S, head_dim / 2]` for positions float32 `[3, B, S]`, all three alike."""
        return rope_tables(positions[0], self.inv_freq)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for `capacity` positions of this process's kv heads."""
        config = self.config
        heads = self.layers[0].self_attn.num_kv_heads
        return KVCache(config.num_hidden_layers, batch_size, heads, config.head_dim, capacity, self.norm.dtype)

    def run(
        self,
        x: Tensor,
        metadata: AttentionMetadata,
        store: Any,
        inject: Callable[[int, Tensor], Tensor] | None = None,
        observe: Callable[[int, Tensor], None] | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> Tensor:
        """x `[B, S, D]`; metadata and store: see `cache.py`.

        inject: optional `inject(layer, x) -> x` applied to a layer's output (deepstack); router_logits: see `SparseMoeBlock`.
        """
        if observe is not None:
            observe(0, x)
        for index, layer in enumerate(self.layers):
            x = layer(x, metadata, store, index, router_logits)
            if observe is not None:
                observe(index + 1, x)
            if inject is not None:
                x = inject(index, x)
        return self.norm(x)


class MropeDecoder(Decoder):
    """A decoder of thinker or talker: three-dimensional positions, and mixtures of experts in the layers that the config names.

    sparse_block: the cell class of the mixtures of experts.
    """

    sparse_block: Any = None

    def __init__(self, config: Any) -> None:
        super().__init__(config, [self._layer(config, index) for index in range(config.num_hidden_layers)])

    def _layer(self, config, index):
        mlp = self.sparse_block(config) if config.is_sparse_layer(index) else build_dense_mlp(config)
        return DecoderLayer(config.hidden_size, config.rms_norm_eps, build_attention(config, qk_norm=True), mlp)

    def rope(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """cos, sin `[B, S, head_dim / 2]` for positions float32 `[3, B, S]`."""
        return mrope_tables(positions, self.inv_freq, self.config.mrope_section)
