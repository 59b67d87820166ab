"""The talker: thinker states and text in, code 0 of every codec frame out; its predictor adds the other codes."""

from mindspore import nn

from .code_predictor import CodePredictor
from .decoder import Decoder, DecoderLayer, build_attention, build_dense_mlp
from .cache import KVCache
from .layers import Embedding, Linear, ProjectionMLP
from .moe import SharedExpertMoeBlock
from .rope import inverse_frequencies, mrope_tables


class TalkerModel(Decoder):
    """Codec embedding and decoder stack with shared experts; mirrors `Qwen3OmniMoeTalkerModel`."""

    def __init__(self, config):
        super().__init__(config, [self._layer(config, index) for index in range(config.num_hidden_layers)])
        self.config = config
        self.codec_embedding = Embedding(config.vocab_size, config.hidden_size)
        self.inv_freq = inverse_frequencies(config.rope_theta, config.head_dim)

    @staticmethod
    def _layer(config, index):
        mlp = SharedExpertMoeBlock(config) if config.is_sparse_layer(index) else build_dense_mlp(config)
        return DecoderLayer(config.hidden_size, config.rms_norm_eps, build_attention(config, qk_norm=True), mlp)

    def rope(self, positions):
        """cos, sin `[B, S, head_dim / 2]` for positions float32 `[3, B, S]`."""
        return mrope_tables(positions, self.inv_freq, self.config.mrope_section)

    def new_cache(self, batch_size, capacity):
        """An empty cache for `capacity` positions."""
        config = self.config
        return KVCache(config.num_hidden_layers, batch_size, config.num_key_value_heads, config.head_dim, capacity,
                       self.norm.weight.dtype)  # fmt: skip


class Talker(nn.Cell):
    """Mirrors `Qwen3OmniMoeTalkerForConditionalGeneration`.

    `text_projection` turns thinker embeddings `[..., D_thinker]` into talker rows `[..., D]`, `hidden_projection` does
    the same for thinker hidden states at media tokens.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        text = config.text_config
        self.model = TalkerModel(text)
        self.text_projection = self._projection(config)
        self.hidden_projection = self._projection(config)
        self.codec_head = Linear(text.hidden_size, text.vocab_size, bias=False)
        self.code_predictor = CodePredictor(config.code_predictor_config)

    @staticmethod
    def _projection(config):
        text = config.text_config
        return ProjectionMLP(config.thinker_hidden_size, text.intermediate_size, text.hidden_size, text.hidden_act)

    def get_input_embeddings(self):
        return self.model.codec_embedding

    def construct(self, inputs_embeds, positions, cache, valid):
        """One pass: inputs_embeds `[B, S, D]`, positions float32 `[3, B, S]`, a `KVCache`, valid bool `[B, S]`.

        Returns logits of code 0 `[B, S, V]` and the last hidden states `[B, S, D]`.
        """
        place, store = cache.admit(self.model.rope(positions), valid)
        hidden = self.model(inputs_embeds, place, store)
        return self.codec_head(hidden), hidden
