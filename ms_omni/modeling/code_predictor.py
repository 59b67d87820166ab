"""The code predictor: codes 1 .. n-1 of one frame, one after the other, from the talker's hidden state and code 0.

position   0                1                2                   ...   n - 1
input      talker hidden    embed(code 0)    embed_0(code 1)     ...   embed_{n-3}(code n-2)
output                      head_0: code 1   head_1: code 2      ...   head_{n-2}: code n-1
"""

from contextlib import nullcontext

import numpy as np
from mindspore import Tensor, nn

from .cache import MASKED
from .decoder import Decoder, DecoderLayer, build_attention, build_dense_mlp
from .layers import Embedding, Linear
from .rope import inverse_frequencies, rope_tables


class CodePredictorModel(Decoder):
    """Mirrors `Qwen3OmniMoeTalkerCodePredictorModel`: a dense decoder and one embedding per residual code."""

    def __init__(self, config):
        super().__init__(config, [self._layer(config) for _ in range(config.num_hidden_layers)])
        residuals = config.num_code_groups - 1
        self.codec_embedding = nn.CellList([Embedding(config.vocab_size, config.hidden_size) for _ in range(residuals)])

    @staticmethod
    def _layer(config):
        return DecoderLayer(
            config.hidden_size, config.rms_norm_eps, build_attention(config, qk_norm=True), build_dense_mlp(config)
        )


class CodePredictor(nn.Cell):
    """Mirrors `Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration`."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = CodePredictorModel(config)
        heads = config.num_code_groups - 1
        self.lm_head = nn.CellList([Linear(config.hidden_size, config.vocab_size, bias=False) for _ in range(heads)])
        self.inv_freq = inverse_frequencies(config.rope_theta, config.head_dim)
        self.frame = nullcontext  # surrounds all passes of a frame; a plan that gathers weights does so once here

    def place(self, position, new, batch_size):
        """The `place` (see `cache.py`) of `new` tokens from `position` on, in buffers of one frame."""
        capacity = self.config.num_code_groups
        positions = np.broadcast_to(np.arange(position, position + new), (batch_size, new))
        keys = np.arange(capacity if new == 1 else new)
        mask = np.where(keys <= positions[0][:, None], np.float32(0), np.float32(MASKED))
        rows = np.arange(batch_size * self.config.num_key_value_heads)[:, None] * capacity + positions[0]
        return (
            *rope_tables(positions, self.inv_freq),
            Tensor(np.tile(mask, (batch_size, 1, 1))),
            Tensor(rows.reshape(-1).astype(np.int32)),
        )

    def construct(self, inputs_embeds, place, store, group):
        """Logits `[B, V]` of residual code `group` (0 .. n-2) after inputs_embeds `[B, S, D]`."""
        hidden = self.model(inputs_embeds, place, store)
        return self.lm_head[group](hidden[:, -1])
