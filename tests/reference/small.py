"""The smallest geometry whose weights are packed on Ascend: graphs of numpy kernels are compiled in seconds."""

from pathlib import Path

from ms_omni.config import load_named_config
from ms_omni.tiny import write_tiny_checkpoint

GROUPS = 4


def geometry() -> dict:
    """Of the tiny one, with few layers and few codes in a frame."""
    content = load_named_config("tiny").to_dict()
    thinker, talker = content["thinker_config"], content["talker_config"]
    thinker["text_config"]["num_hidden_layers"] = 2
    thinker["vision_config"].update(depth=2, deepstack_visual_indexes=[0, 1])
    thinker["audio_config"]["encoder_layers"] = 1
    talker.update(accept_hidden_layer=1, num_code_groups=GROUPS)
    talker["text_config"]["num_hidden_layers"] = 1
    talker["code_predictor_config"].update(num_hidden_layers=1, num_code_groups=GROUPS)
    content["code2wav_config"].update(num_quantizers=GROUPS, num_hidden_layers=1)
    return content


def write(folder: Path) -> Path:
    """A checkpoint of it in float32, which stands for bfloat16 in graphs of numpy kernels."""
    write_tiny_checkpoint(folder, geometry=geometry(), seed=20, dtype="float32")
    return folder
