"""Audio and vision towers against the reference, stage by stage."""

import numpy as np
import pytest

from tests.parity.watching import watching


@pytest.mark.parametrize("name", ["audio_11s", "two_audios"])
def test_audio_tower(model, thinker_values, build, close, name):
    tower, inputs = model.thinker.audio_tower, build(thinker_values, name).inputs
    layers = {f"layer{i}": layer for i, layer in enumerate(tower.layers)}
    with watching(conv=tower.conv_out, norm=tower.ln_post, **layers) as seen:
        features = model.thinker.get_audio_features(inputs["input_features"], inputs["feature_attention_mask"])
    key = f"{name}/audio"
    conv = np.concatenate(seen["conv"])  # one call per `conv_chunksize` chunks
    close(thinker_values, f"{key}/conv", conv, "audio tower: convolutions")
    close(thinker_values, f"{key}/positioned", seen["layer0.in"][0], "audio tower: positions")
    for layer in layers:
        close(thinker_values, f"{key}/{layer}", seen[layer][0], "audio tower: layers")
    close(thinker_values, f"{key}/norm", seen["norm"][0], "audio tower: final norm")
    close(thinker_values, f"{key}/features", features, "audio tower: features")


@pytest.mark.parametrize("name", ["two_images", "video"])
def test_vision_tower(model, thinker_values, build, close, name):
    thinker, tower, inputs = model.thinker, model.thinker.visual, build(thinker_values, name).inputs
    blocks = {f"block{i}": block for i, block in enumerate(tower.blocks)}
    with watching(patches=tower.patch_embed, **blocks) as seen:
        if name == "video":
            features, deepstack = thinker.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        else:
            features, deepstack = thinker.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    key = f"{name}/vision"
    close(thinker_values, f"{key}/patches", seen["patches"][0], "vision tower: patches")
    close(thinker_values, f"{key}/positioned", seen["block0.in"][0], "vision tower: interpolated positions")
    for block in blocks:
        close(thinker_values, f"{key}/{block}", seen[block][0], "vision tower: blocks")
    assert len(deepstack) == len(thinker_values.keys(f"{key}/deepstack"))
    for i, inner in enumerate(deepstack):
        close(thinker_values, f"{key}/deepstack{i}", inner, "vision tower: deepstack")
    close(thinker_values, f"{key}/features", features, "vision tower: features")
