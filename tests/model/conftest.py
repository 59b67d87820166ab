"""A thinker of the geometry of transformers' tests, from its configuration alone, and inputs for it."""

import copy

import numpy as np
import pytest

from tests.config.geometry import THINKER

AUDIO_FRAMES, GRID = 98, (1, 2, 4)


@pytest.fixture
def config():
    from ms_omni import Qwen3OmniMoeThinkerConfig

    return Qwen3OmniMoeThinkerConfig(**copy.deepcopy(THINKER))


@pytest.fixture
def thinker(config):
    """Fresh for every test: some change it."""
    import mindspore

    from ms_omni import Qwen3OmniMoeThinkerForConditionalGeneration

    mindspore.set_seed(11)
    return Qwen3OmniMoeThinkerForConditionalGeneration(config)


@pytest.fixture
def prompt(config):
    """Two rows, each with a sound of 98 mel frames (13 tokens) and a picture of 2 x 4 patches (8 tokens); float grids."""
    rng = np.random.default_rng(5)
    text = [token for token in range(config.text_config.vocab_size) if token not in _special(config)]
    ids = rng.choice(text, size=(2, 30))
    ids[:, 1:16] = [config.audio_start_token_id] + [config.audio_token_id] * 13 + [config.audio_end_token_id]
    ids[:, 17:27] = [config.vision_start_token_id] + [config.image_token_id] * 8 + [config.vision_end_token_id]
    vision = config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "input_features": rng.normal(size=(2, config.audio_config.num_mel_bins, AUDIO_FRAMES)).astype(np.float32),
        "feature_attention_mask": np.ones((2, AUDIO_FRAMES), np.int64),
        "pixel_values": rng.normal(size=(2 * int(np.prod(GRID)), width)).astype(np.float32),
        "image_grid_thw": np.array([GRID] * 2, np.float32),
    }


def _special(config):
    return {value for name, value in config.to_dict().items() if name.endswith("_token_id")}
