"""What the public model classes share (loading, saving, and what scripts call on a model), and the parts of the model under the names
of transformers' module page: each can be built from its configuration and called.

The models of `model.py` are made of them, so `isinstance(model.thinker.visual, Qwen3OmniMoeVisionEncoder)` holds.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
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
from .errors import InputError
from .loading import LoadingMixin

from .checkpoint import save_checkpoint  # isort: skip  (loading explains a missing MindSpore first)
from .locking import exclusive
from .modeling.audio_encoder import AudioEncoder
from .modeling.code2wav import PreTransformer
from .modeling.code_predictor import CodePredictor, CodePredictorModel
from .modeling.layer import coded_names, widen
from .modeling.talker import TalkerModel
from .modeling.thinker import Thinker, ThinkerTextModel
from .modeling.vision_encoder import VisionEncoder
from .modeling.vocoder_blocks import DecoderBlock

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_ANYWAY = ("is_main_process", "save_function", "push_to_hub", "variant", "token", "save_peft_format", "save_original_format")


class Qwen3OmniMoePreTrainedModel(LoadingMixin):
    """What all model classes share, for a cell whose parameters carry the checkpoint's names behind `checkpoint_prefix`. It is no model
    itself.
    """

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        dtype: Any = None,
        *,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
        state_dict: dict | None = None,
        **options: Any,
    ) -> None:
        """Writes config.json, generation_config.json and safetensors shards under the checkpoint's own names.

        dtype: default, as each parameter is in memory, and bfloat16 of what is stored as codes (`ms-omni convert --quantize` writes
        codes). max_shard_size: bytes, or a text such as "2GB". state_dict: values by parameter name
        that are written in the place of the model's own. Of transformers' other options those that name what happens anyway
        are taken. What was saved there before is replaced, in one step; files that ms_omni did not write are not.

        Raises `InputError` for safe_serialization=False, push_to_hub=True and a state_dict that does not fit,
        `CheckpointError` for a folder that holds foreign files of these names or cannot be written.
        """
        check_saving(safe_serialization, options)
        if any(getattr(cell, "process_group", None) is not None for cell in (self, *self.cells())):
            raise InputError(
                "this process holds a part of the model only; save it from one process (parallel=None), or use "
                "ms-omni convert"
            )
        size: dict[str, Any] = {} if max_shard_size is None else {"shard_bytes": as_bytes(max_shard_size)}
        defaults = getattr(self, "generation_config", None)
        with holding(self, state_dict):
            save_checkpoint(self, Path(save_directory), self.config, dtype, generation_config=defaults, **size)


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


def check_saving(safe_serialization: bool, options: Mapping[str, Any]) -> None:
    """Raises `InputError` for what cannot be saved so, and for unknown arguments."""
    if not safe_serialization:
        raise InputError(
            "safe_serialization=False asks for a pickle of PyTorch's; only safetensors are written, leave it out"
        )
    if options.get("push_to_hub"):
        raise InputError(
            "push_to_hub=True: nothing is uploaded; save into a folder and upload that with the hub's own command"
        )
    if options.get("variant") is not None:
        raise InputError(f"variant is {options['variant']!r}, but weights have one name here; save into a folder of its own")
    unknown = sorted(options.keys() - set(_ANYWAY))
    if unknown:
        raise InputError(f"save_pretrained has no argument {', '.join(unknown)}")


def as_bytes(size: int | str) -> int:
    """Bytes of a size such as 5_000_000_000, "5GB" or "500 MiB". Raises `InputError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(size).strip().upper())
    if match is None or match[2] not in UNITS or not (number := int(float(match[1]) * UNITS[match[2]])):
        raise InputError(f"max_shard_size is {size!r}, expected a number of bytes or a text such as '5GB'")
    return number


@contextmanager
def holding(cell: Any, values: Mapping[str, Any] | None) -> Iterator[None]:
    """The cell with `values`, tensors by parameter name, instead of its own for a while. Raises `InputError`."""
    own = dict(cell.parameters_and_names())
    values = values or {}
    codes = sorted(coded_names(cell) & values.keys())
    if codes:
        raise InputError(
            f"state_dict has {', '.join(codes[:5])}, stored as codes in this model, which numbers do not replace; load the checkpoint "
            "without quantize= to save it with other values"
        )
    wrong = [name for name, value in values.items() if name not in own or tuple(value.shape) != tuple(own[name].shape)]
    if wrong:
        raise InputError(f"state_dict has names or shapes that the model has not: {', '.join(wrong[:5])}")
    if not values:
        yield
        return
    with exclusive:  # no other thread may compute with them meanwhile
        widen(cell, values)  # numbers of the caller's are not rounded
        before = {name: own[name].value().copy() for name in values}
        try:
            for name, value in values.items():
                own[name].set_data(value.astype(own[name].dtype))
            yield
        finally:
            for name, value in before.items():
                own[name].set_data(value)
