"""The smallest model whose weights are packed on Ascend, whose graphs of numpy kernels are compiled in seconds, and its callers."""

from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.config import load_named_config
from ms_omni.tiny import write_tiny_checkpoint
from tests.parallel.answers import inputs_of

GROUPS = 4
GREEDY = {"max_new_tokens": 6, "talker_max_new_tokens": 7, "talker_do_sample": False, "predictor_do_sample": False}
SAMPLED = {"max_new_tokens": 9, "thinker_do_sample": True, "top_k": 30, "talker_max_new_tokens": 5, "seed": 4}
TEXT = {"return_audio": False, "eos_token_id": [], "max_new_tokens": 14}
CALLERS = [
    ("text", GREEDY),
    ("image_audio_video", SAMPLED),
    ("two_images", GREEDY),
    ("text", {**TEXT, "thinker_do_sample": True, "seed": 1}),
    ("two_audios", GREEDY),
    ("text", TEXT),
    ("text", {**GREEDY, "predictor_do_sample": True, "predictor_top_k": 40, "seed": 9}),
]
SURE = [number for number, (_, options) in enumerate(CALLERS) if options in (GREEDY, TEXT)]
"""Those for whom nothing is drawn."""


def geometry(layers: int = 2) -> dict:
    """Of the tiny one, with so many layers of the thinker, and few codes in a frame."""
    content = load_named_config("tiny").to_dict()
    thinker, talker = content["thinker_config"], content["talker_config"]
    thinker["text_config"]["num_hidden_layers"] = layers
    thinker["vision_config"].update(depth=layers, deepstack_visual_indexes=[*range(layers)])
    thinker["audio_config"]["encoder_layers"] = 1
    talker.update(accept_hidden_layer=1, num_code_groups=GROUPS)
    talker["text_config"]["num_hidden_layers"] = 1
    talker["code_predictor_config"].update(num_hidden_layers=1, num_code_groups=GROUPS)
    content["code2wav_config"].update(num_quantizers=GROUPS, num_hidden_layers=1)
    return content


def write(folder: Path, layers: int = 2, talker: bool = True) -> Path:
    """A checkpoint of it in float32, which stands for bfloat16 in graphs of numpy kernels."""
    write_tiny_checkpoint(folder, geometry=geometry(layers), seed=20, dtype="float32", talker=talker)
    return folder


def requests_of(folder: Path) -> list[dict[str, Any]]:
    """Arguments of what each caller asks."""
    return [{**inputs_of(folder, name), **options} for name, options in CALLERS]


def check_sure(found: list, expected: list) -> None:
    """Where nothing is drawn ids and codes are those of CPU, and samples nearly so."""
    for number in (number for number in SURE if number < len(found)):
        for key in ("ids", "codes"):
            assert np.array_equal(found[number][key], expected[number][key]), (number, key)
        check_sound(found[number]["samples"], expected[number]["samples"])


def check_sound(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
