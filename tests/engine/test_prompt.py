"""A batch in pieces: what the engine reads of each conversation is what the whole model reads of all."""

import json

import numpy as np
import pytest

from ms_omni.engine import prompt
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


def encoded(thinker, kind, content):
    if kind == "audio":
        clips = content[::-1]
        lengths = [clip.shape[1] for clip in clips]
        return thinker.get_audio_features(np.concatenate(clips, axis=1), audio_feature_lengths=lengths).asnumpy()
    see = thinker.get_image_features if kind == "image" else thinker.get_video_features
    return see(*content)[0].asnumpy()


@pytest.mark.parametrize("most, tokens", [(prompt.CHUNK, None), (8, None), (prompt.CHUNK, 8)])
@pytest.mark.parametrize("name", cases.CASE_NAMES)
def test_positions_and_features_are_those_of_the_whole(tiny_model, case, name, most, tokens, monkeypatch):
    """Also where a video's frames and a sound's windows are looked at a few at a time."""
    monkeypatch.setattr(prompt, "CHUNK", most)
    thinker, (inputs, valid) = tiny_model.thinker, case(name)
    found = prompts(thinker.config, inputs, valid, chunk=tokens)
    given = {key: inputs[key] for key in ("image_grid_thw", "video_grid_thw") if key in inputs}
    positions, deltas = thinker.get_rope_index(
        inputs["input_ids"], attention_mask=valid, second_per_grids=inputs.get("video_second_per_grid"), **given
    )
    media = {key: value for key, value in inputs.items() if key not in ("attention_mask", "video_second_per_grid")}
    whole = host_array(thinker.embed(**media)[0])
    for row, own in enumerate(found):
        assert own.ids.tolist() == inputs["input_ids"][row][valid[row]].tolist()
        assert np.array_equal(own.positions, positions[:, row, valid[row]])
        assert own.following == deltas[row, 0] + len(own)
        rows = host_array(thinker.embed_text(own.ids[None]))[0].copy()
        ends = [call.indices[-1] for call in own.calls]
        assert ends == sorted(ends)  # what lies before a place in the prompt is a beginning of the calls
        for call in own.calls:
            rows[call.indices] = encoded(thinker, call.medium.kind, call.content)[-len(call.indices) :]
        assert np.array_equal(rows, whole[row, valid[row]])


def test_a_digest_tells_what_is_read(tiny_model, case):
    """Another word, place, medium or time; and not what stands elsewhere."""
    (inputs, valid), config = case("image_audio_video"), tiny_model.thinker.config

    def read(**changes):
        return prompts(config, {**inputs, **changes}, valid)[0]

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


def test_pieces_of_long_media(tiny_model):
    """Frames of a video and windows of a sound; a rest that is no whole chunk of mel frames stays with the window before it, for
    it is padded to a chunk only beside one. What is read first is looked at first.
    """
    config = tiny_model.thinker.config
    audio, merge = config.audio_config, config.vision_config.spatial_merge_size
    frames = 2 * audio.n_window_infer + 3
    media = prompt._Media(config, {}, prompt.CHUNK)
    patches = np.zeros((9 * 16 * merge**2, 4), np.float32)
    grid = np.array([[9, 4 * merge, 4 * merge]])
    assert [count for _, count in media._pieces("video", (patches, grid))] == [9 * 16]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt, "CHUNK", 40)
        media.chunk = 40
        video = list(media._pieces("video", (patches, grid)))
        assert [(part[0].shape[0], part[1].tolist(), count) for part, count in video] == [
            (n * 16 * merge**2, [[n, 4 * merge, 4 * merge]], n * 16) for n in (2, 2, 2, 2, 1)
        ]
        patch.setattr(prompt, "CHUNK", 1)
        media.chunk = 1
        sounds = [part[0].shape[1] for part, _ in media._pieces("audio", (np.zeros((8, frames), np.float32),))]
        assert sounds == [audio.n_window_infer, audio.n_window_infer + 3]
        assert [count for _, count in media._pieces("image", (patches, grid))] == [9 * 16]
    *windows, rest = media._pieces("audio", (np.ones((8, frames), np.float32),))  # as it is kept where the sound may grow
    assert [part[0].shape[1] for part, _ in windows] == [audio.n_window_infer] * 2 and rest[1] == 1
    assert rest[0][0].shape[1] == 3 and rest[0][1].shape[1] == 2 * audio.n_window and not rest[0][1].any()
