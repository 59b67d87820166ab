"""Audio and vision towers against the reference, stage by stage."""

import numpy as np
import pytest

from tests.parity.watching import watching, watching_states


@pytest.mark.parametrize("name", ["audio_11s", "two_audios"])
def test_audio_tower(model, thinker_values, build, close, name):
    tower, inputs = model.thinker.audio_tower, build(thinker_values, name).inputs
    with watching(conv=tower.conv_out, norm=tower.ln_post) as seen, watching_states(tower) as states:
        features = model.thinker.get_audio_features(inputs["input_features"], inputs["feature_attention_mask"])
    key = f"{name}/audio"
    conv = np.concatenate(seen["conv"])  # one call per `conv_chunksize` chunks
    close(thinker_values, f"{key}/conv", conv, "audio tower: convolutions")
    close(thinker_values, f"{key}/positioned", states[0], "audio tower: positions")
    assert len(states) == 1 + len(tower.layers)
    for layer, state in enumerate(states[1:]):
        close(thinker_values, f"{key}/layer{layer}", state, "audio tower: layers")
    close(thinker_values, f"{key}/norm", seen["norm"][0], "audio tower: final norm")
    close(thinker_values, f"{key}/features", features, "audio tower: features")


@pytest.mark.parametrize("name", ["two_images", "video"])
def test_vision_tower(model, thinker_values, build, close, name):
    thinker, tower, inputs = model.thinker, model.thinker.visual, build(thinker_values, name).inputs
    with watching(patches=tower.patch_embed) as seen, watching_states(tower) as states:
        if name == "video":
            features, deepstack = thinker.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        else:
            features, deepstack = thinker.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    key = f"{name}/vision"
    close(thinker_values, f"{key}/patches", seen["patches"][0], "vision tower: patches")
    close(thinker_values, f"{key}/positioned", states[0], "vision tower: interpolated positions")
    assert len(states) == 1 + len(tower.blocks)
    for block, state in enumerate(states[1:]):
        close(thinker_values, f"{key}/block{block}", state, "vision tower: blocks")
    assert len(deepstack) == len(thinker_values.keys(f"{key}/deepstack"))
    for i, inner in enumerate(deepstack):
        close(thinker_values, f"{key}/deepstack{i}", inner, "vision tower: deepstack")
    close(thinker_values, f"{key}/features", features, "vision tower: features")
