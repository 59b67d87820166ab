"""What the thinker says about inputs that do not belong together."""

import numpy as np
import pytest

from ms_omni.errors import InputError


@pytest.fixture
def inputs(tiny_model):
    """A prompt around one picture of 4 x 4 patches, which makes four tokens."""
    config = tiny_model.config.thinker_config
    vision = config.vision_config
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    ids = [5, config.vision_start_token_id, *[config.image_token_id] * 4, 6, 7]
    return {
        "input_ids": np.array([ids]),
        "pixel_values": np.ones((16, patch), np.float32),
        "image_grid_thw": np.array([[1, 4, 4]]),
    }


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pixel_values": None}, "4 image placeholders but there are no image inputs"),
        ({"image_grid_thw": None}, "pixel_values came without image_grid_thw"),
        ({"image_grid_thw": np.array([[1, 4, 2]])}, "describes 8 patches, but pixel values have 16 rows"),
        ({"image_grid_thw": np.array([[1, 3, 4]])}, "multiples of 2"),
        ({"input_ids": np.array([[5, 6]])}, "0 image placeholders but the image inputs make 4 tokens"),
        ({"input_ids": np.array([[5, 10**6]])}, "must lie in"),
        ({"input_ids": np.array([[-1]])}, "must lie in"),
        ({"input_ids": np.zeros((1, 0), int)}, "not empty"),
        ({"input_ids": np.array([5, 6])}, r"shape \[batch, tokens\]"),
        ({"attention_mask": np.ones((1, 3))}, "attention_mask has shape"),
        ({"labels": np.ones((1, 3), int)}, "labels have shape"),
        ({"position_ids": np.ones((3, 1, 2))}, "position_ids has shape"),
        ({"input_features": np.ones((1, 128, 50), np.float32)}, "0 audio placeholders"),
    ],
)
def test_contradictions_are_named(changes, message, tiny_model, inputs):
    with pytest.raises(InputError, match=message):
        tiny_model.thinker(**{**inputs, **changes})


def test_the_prompt_itself_is_fine_with_and_without_a_mask(tiny_model, inputs):
    plain = tiny_model.thinker(**inputs)
    masked = tiny_model.thinker(**inputs, attention_mask=np.ones_like(inputs["input_ids"]))
    assert tuple(plain.logits.shape) == (1, 8, tiny_model.config.thinker_config.text_config.vocab_size)
    assert (plain.logits.asnumpy() == masked.logits.asnumpy()).all() and plain.loss is None


def test_placeholder_masks(tiny_model, inputs):
    image, video, audio = tiny_model.thinker.get_placeholder_mask(inputs["input_ids"], image_features=np.ones((4, 64)))
    assert image.sum() == 4 and not video.any() and not audio.any()
    with pytest.raises(InputError, match="4 image placeholders but the image inputs make 3"):
        tiny_model.thinker.get_placeholder_mask(inputs["input_ids"], image_features=np.ones((3, 64)))
    with pytest.raises(InputError, match="3 wide"):
        tiny_model.thinker.get_placeholder_mask(inputs["input_ids"], np.ones((1, 8, 64)), np.ones((4, 3)))


def test_clips_with_lengths_instead_of_a_mask(tiny_model):
    """Without a mask the lengths count, and with neither the clips are whole."""
    features = np.random.default_rng(0).standard_normal((2, 128, 130)).astype(np.float32)
    thinker, lengths = tiny_model.thinker, np.array([130, 60])
    by_mask = thinker.get_audio_features(features, np.arange(130) < lengths[:, None])
    by_length = thinker.get_audio_features(features, audio_feature_lengths=lengths)
    assert (by_mask.asnumpy() == by_length.asnumpy()).all()
    assert thinker.get_audio_features(features).shape[0] == 2 * 17
    with pytest.raises(InputError, match="must mark the first frames"):
        thinker.get_audio_features(features, np.ones((2, 130)) - np.eye(2, 130))
    with pytest.raises(InputError, match="got lengths"):
        thinker.get_audio_features(features, audio_feature_lengths=[131, 3])
