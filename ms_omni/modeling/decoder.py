"""The decoder stack that thinker, talker, code predictor and code2wav's transformer share."""

from mindspore import nn

from .attention import Attention
from .cache import KVCache
from .layers import GatedMLP, RMSNorm, identity
from .rope import inverse_frequencies, mrope_tables


class DecoderLayer(nn.Cell):
    """Pre-norm attention and MLP with residuals, `[B, S, D]` -> `[B, S, D]`."""

    def __init__(self, hidden_size, eps, self_attn, mlp):
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = RMSNorm(hidden_size, eps)
        self.post_attention_layernorm = RMSNorm(hidden_size, eps)
        self.self_attn_layer_scale = identity
        self.mlp_layer_scale = identity

    def construct(self, x, place, store, layer):
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), place, store, layer))
        return x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))


def build_attention(config, qk_norm):
    """The attention cell of a decoder config; `qk_norm` says whether queries and keys are normalised per head."""
    return Attention(
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        bias=config.attention_bias,
        qk_norm_eps=config.rms_norm_eps if qk_norm else None,
    )


def build_dense_mlp(config):
    """The gated MLP of a layer without experts."""
    return GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act)


class Decoder(nn.Cell):
    """A stack of decoder layers and the final norm.

    `construct` returns the last hidden state `[B, S, D]` and, for whoever watches, calls `observe(i, x)` with the
    output of layer i - 1 (i = 0: the input) before anything is added to it.
    compilable: whether a pass can be a graph; False where a plan gathers the weights of one layer after another.
    announce: called with the input of a pass that runs as a graph, which a plan cannot look into.
    """

    compilable = True

    def __init__(self, config, layers):
        super().__init__()
        self.layers = nn.CellList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.announce = identity

    def construct(self, x, place, store, inject=None, observe=None):
        """x `[B, S, D]`; place and store: see `cache.py`.

        inject: optional `inject(layer, x) -> x` applied to a layer's output (deepstack).
        """
        if observe is not None:
            observe(0, x)
        for index, layer in enumerate(self.layers):
            x = layer(x, place, store, index)
            if observe is not None:
                observe(index + 1, x)
            if inject is not None:
                x = inject(index, x)
        return self.norm(x)


class MropeDecoder(Decoder):
    """A decoder of thinker or talker: three-dimensional positions, and experts in `sparse_block` where the config says.

    sparse_block: the cell class of the mixtures of experts.
    """

    sparse_block = None

    def __init__(self, config):
        super().__init__(config, [self._layer(config, index) for index in range(config.num_hidden_layers)])
        self.config = config
        self.inv_freq = inverse_frequencies(config.rope_theta, config.head_dim)

    def _layer(self, config, index):
        mlp = self.sparse_block(config) if config.is_sparse_layer(index) else build_dense_mlp(config)
        return DecoderLayer(config.hidden_size, config.rms_norm_eps, build_attention(config, qk_norm=True), mlp)

    def rope(self, positions):
        """cos, sin `[B, S, head_dim / 2]` for positions float32 `[3, B, S]`."""
        return mrope_tables(positions, self.inv_freq, self.config.mrope_section)

    def new_cache(self, batch_size, capacity):
        """An empty cache for `capacity` positions of the kv heads that this process holds."""
        config = self.config
        heads = self.layers[0].self_attn.num_kv_heads
        return KVCache(config.num_hidden_layers, batch_size, heads, config.head_dim, capacity, self.norm.weight.dtype)
