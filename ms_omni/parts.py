"""The parts of the model under the names of transformers' module page: each can be built from its configuration and called.

The models of `model.py` are made of them, so `isinstance(model.thinker.visual, Qwen3OmniMoeVisionEncoder)` holds.
"""

from typing import Any

from .config import (
    Qwen3OmniMoeAudioEncoderConfig,
    Qwen3OmniMoeCode2WavConfig,
    Qwen3OmniMoeTalkerCodePredictorConfig,
    Qwen3OmniMoeTalkerTextConfig,
    Qwen3OmniMoeTextConfig,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeVisionEncoderConfig,
)
from .pretrained import PretrainedMixin

from .modeling.audio_encoder import AudioEncoder  # isort: skip  (pretrained explains a missing MindSpore first)
from .modeling.code2wav import PreTransformer
from .modeling.code_predictor import CodePredictor, CodePredictorModel
from .modeling.talker import TalkerModel
from .modeling.thinker import Thinker, ThinkerTextModel
from .modeling.vision_encoder import VisionEncoder
from .modeling.vocoder_blocks import DecoderBlock


class Qwen3OmniMoePreTrainedModel(PretrainedMixin):
    """What all model classes share; for `isinstance`, it is no model itself."""


class Qwen3OmniMoePreTrainedModelForConditionalGeneration(Qwen3OmniMoePreTrainedModel):
    """What the models that generate share."""


class Qwen3OmniMoeThinkerTextPreTrainedModel(Qwen3OmniMoePreTrainedModel):
    """What the text decoders share."""


class Part(Qwen3OmniMoePreTrainedModel):
    """A part that is built from its section of the configuration."""

    def __init__(self, config: Any, *index: int) -> None:
        super().__init__(self.config_class.validated(config), *index)


class Qwen3OmniMoeAudioEncoder(Part, AudioEncoder):
    """Mel frames -> 13 vectors per second, see `AudioEncoder.construct`."""

    config_class = Qwen3OmniMoeAudioEncoderConfig
    checkpoint_prefix = "thinker.audio_tower."
    main_input_name = "input_features"


class Qwen3OmniMoeVisionEncoder(Part, VisionEncoder):
    """Patches -> one vector per merged block, see `VisionEncoder.construct`."""

    config_class = Qwen3OmniMoeVisionEncoderConfig
    checkpoint_prefix = "thinker.visual."
    main_input_name = "hidden_states"


class Qwen3OmniMoeThinkerTextModel(Part, Qwen3OmniMoeThinkerTextPreTrainedModel, ThinkerTextModel):
    """The thinker's decoder without a head, see `Decoder.construct`."""

    config_class = Qwen3OmniMoeTextConfig
    checkpoint_prefix = "thinker.model."


class Qwen3OmniMoeThinkerModel(Part, Thinker):
    """The thinker without a head: encoders and decoder, see `Thinker.construct`; gives the decoder's states."""

    config_class = Qwen3OmniMoeThinkerConfig
    checkpoint_prefix = "thinker."
    audio_encoder = Qwen3OmniMoeAudioEncoder
    vision_encoder = Qwen3OmniMoeVisionEncoder
    text_model = Qwen3OmniMoeThinkerTextModel
    has_head = False


class Qwen3OmniMoeTalkerModel(Part, TalkerModel):
    """The talker's decoder without a head, see `Decoder.construct`."""

    config_class = Qwen3OmniMoeTalkerTextConfig
    checkpoint_prefix = "talker.model."


class Qwen3OmniMoeTalkerCodePredictorModel(Part, CodePredictorModel):
    """The code predictor's decoder without heads, see `Decoder.construct`; it takes `inputs_embeds`."""

    config_class = Qwen3OmniMoeTalkerCodePredictorConfig
    checkpoint_prefix = "talker.code_predictor.model."
    main_input_name = "inputs_embeds"


class Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration(Part, CodePredictor):
    """Codes 1 .. n-1 of a frame, one after the other, see `CodePredictor.construct`."""

    config_class = Qwen3OmniMoeTalkerCodePredictorConfig
    checkpoint_prefix = "talker.code_predictor."
    text_model = Qwen3OmniMoeTalkerCodePredictorModel


class Qwen3OmniMoeCode2WavTransformerModel(Part, PreTransformer):
    """The vocoder's decoder stack with a sliding window, see `Decoder.construct`; it takes `inputs_embeds`."""

    config_class = Qwen3OmniMoeCode2WavConfig
    checkpoint_prefix = "code2wav.pre_transformer."
    main_input_name = "inputs_embeds"


class Qwen3OmniMoeCode2WavDecoderBlock(Part, DecoderBlock):
    """One upsampling level of the vocoder: `(config, layer_idx)`, see `DecoderBlock.construct`."""

    config_class = Qwen3OmniMoeCode2WavConfig
    main_input_name = "hidden"
