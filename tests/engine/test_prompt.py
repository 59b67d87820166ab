"""A batch in pieces: what the engine reads of each conversation is what the whole model reads of all."""

import json

import numpy as np
import pytest

from ms_omni.engine.prompt import prompts
from ms_omni.errors import InputError
from ms_omni.modeling.packing import host_array
from tests.reference import cases


@pytest.fixture
def case(checkpoint_of):
    """`case(name)`: the inputs of a case, valid bool `[B, T]`."""
    config = json.loads((checkpoint_of("tiny") / "config.json").read_text())

    def inputs(name):
        found = dict(cases.build_case(config, name, 3).inputs)
        return found, found["attention_mask"].astype(bool)

    return inputs


def encoded(thinker, medium):
    if medium.kind == "audio":
        frames = medium.content[0]
        return thinker.get_audio_features(frames, audio_feature_lengths=[frames.shape[1]]).asnumpy()
    see = thinker.get_image_features if medium.kind == "image" else thinker.get_video_features
    return see(*medium.content)[0].asnumpy()


@pytest.mark.parametrize("name", cases.CASE_NAMES)
def test_positions_and_features_are_those_of_the_whole(tiny_model, case, name):
    thinker, (inputs, valid) = tiny_model.thinker, case(name)
    found = prompts(thinker.config, inputs, valid)
    given = {key: inputs[key] for key in ("image_grid_thw", "video_grid_thw") if key in inputs}
    positions, deltas = thinker.get_rope_index(
        inputs["input_ids"], attention_mask=valid, second_per_grids=inputs.get("video_second_per_grid"), **given
    )
    media = {key: value for key, value in inputs.items() if key not in ("attention_mask", "video_second_per_grid")}
    whole = host_array(thinker.embed(**media)[0])
    for row, prompt in enumerate(found):
        assert prompt.ids.tolist() == inputs["input_ids"][row][valid[row]].tolist()
        assert np.array_equal(prompt.positions, positions[:, row, valid[row]])
        assert prompt.following == deltas[row, 0] + len(prompt)
        rows = host_array(thinker.embed_text(prompt.ids[None]))[0].copy()
        for medium in prompt.media:
            rows[medium.places] = encoded(thinker, medium)
        assert np.array_equal(rows, whole[row, valid[row]])


def test_a_digest_tells_what_is_read(tiny_model, case):
    """Another word, place, medium or time; and not what stands elsewhere."""
    (inputs, valid), config = case("image_audio_video"), tiny_model.thinker.config

    def read(**changes):
        (prompt,) = prompts(config, {**inputs, **changes}, valid)
        return prompt

    start = read()
    middle = len(start) // 2
    pixels, ids = inputs["pixel_values"].copy(), inputs["input_ids"].copy()
    pixels[0, 0] += 1
    ids[0, 0] = ids[0, 1]
    seconds = np.asarray(inputs["video_second_per_grid"]) * 2
    assert start.digest(0, len(start)) == read().digest(0, len(start))
    for changed in (read(pixel_values=pixels), read(input_ids=ids), read(video_second_per_grid=seconds)):
        assert changed.digest(0, len(start)) != start.digest(0, len(start))
    assert start.digest(0, middle) != start.digest(middle, len(start))
    assert read(input_ids=ids).digest(middle, len(start)) == start.digest(middle, len(start))


def test_what_does_not_fit_is_refused(tiny_model, case):
    (inputs, valid), config = case("image_audio_video"), tiny_model.thinker.config

    def refused(words, **changes):
        given = {name: value for name, value in {**inputs, **changes}.items() if value is not None}
        with pytest.raises(InputError, match=words):
            prompts(config, given, valid)

    refused("audio placeholders more than", input_features=None, feature_attention_mask=None)
    refused(
        "1 audio inputs have no placeholders",
        **{name: np.concatenate([inputs[name]] * 2) for name in ("input_features", "feature_attention_mask")},
    )
    refused("describes", pixel_values=inputs["pixel_values"][:-4])
    refused(
        "rows of image_grid_thw|images", image_grid_thw=inputs["image_grid_thw"][:0], pixel_values=inputs["pixel_values"][:0]
    )
