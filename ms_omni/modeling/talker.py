"""The talker: thinker states and text in, code 0 of every codec frame out; its predictor adds the other codes."""

from mindspore import nn

from .code_predictor import CodePredictor
from .decoder import MropeDecoder
from .layers import Embedding, Linear, ProjectionMLP
from .moe import SharedExpertMoeBlock


class TalkerModel(MropeDecoder):
    """Codec embedding and decoder stack with shared experts; mirrors `Qwen3OmniMoeTalkerModel`."""

    sparse_block = SharedExpertMoeBlock

    def __init__(self, config):
        super().__init__(config)
        self.codec_embedding = Embedding(config.vocab_size, config.hidden_size)


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
        self.prepared_frame = None  # its weights as `ops.code_frame` takes them, from the first frame on

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
