"""Counterparts of qwen_omni_utils: names, arguments and results."""

import numpy as np
import pytest
import soundfile
from PIL import Image

import ms_omni
from ms_omni.errors import InputError, MediaError
from ms_omni.media import (
    extract_vision_info,
    fetch_image,
    fetch_video,
    process_audio_info,
    process_mm_info,
    process_vision_info,
    smart_resize,
)
from tests.input.make_files import tone, write_video


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mm_info")
    Image.new("RGB", (100, 60), (9, 8, 7)).save(folder / "i.png")
    soundfile.write(folder / "a.wav", tone(0.5, 16000), 16000)
    items = [
        {"type": "image", "image": str(folder / "i.png")},
        {"type": "audio", "audio": str(folder / "a.wav"), "audio_start": 0.25},
        {"type": "video", "video": str(write_video(folder / "loud.mp4")), "fps": 1.0, "video_end": 2.0},
        {"type": "video", "video": str(write_video(folder / "silent.mp4", sound=False)), "nframes": 4},
        {"type": "text", "text": "?"},
    ]
    return [{"role": "system", "content": "S"}, {"role": "user", "content": items}]


def test_importable_from_the_package():
    assert ms_omni.process_mm_info is process_mm_info and ms_omni.smart_resize is smart_resize
    names = ("process_audio_info", "process_vision_info", "extract_vision_info", "fetch_image", "fetch_video")
    assert all(getattr(ms_omni, name) is globals()[name] for name in names)


@pytest.mark.parametrize("hear", [True, False, [True], [False]])
def test_the_parts_are_the_whole(talk, hear):
    audios, images, videos, kwargs = process_mm_info(talk, hear, return_video_kwargs=True)
    alone = process_audio_info(talk, use_audio_in_video=hear)
    assert [len(sound) for sound in alone] == [len(sound) for sound in audios] == [4000, 32000][: 1 + np.all(hear)]
    np.testing.assert_array_equal(alone[-1], audios[-1])
    seen = process_vision_info(talk, return_video_kwargs=True)
    assert seen[2] == kwargs and seen[0][0].size == images[0].size == (100, 60)
    for one, other in zip(seen[1], videos):
        np.testing.assert_array_equal(one, other)
    assert len(process_vision_info([talk, talk])) == 2 and process_audio_info(talk[:1], True) is None


def test_flags_for_each_conversation(talk):
    assert len(process_mm_info([talk, talk], [True, False])[0]) == 3
    with pytest.raises(InputError, match="2 values for 1"):
        process_mm_info(talk, [True, False])


def test_vision_items_as_they_were_given(talk):
    assert extract_vision_info(talk) == [talk[1]["content"][k] for k in (0, 2, 3)]


def test_pictures_are_resized_as_there(talk):
    item = talk[1]["content"][0]
    assert fetch_image(item).size == (112, 56)  # multiples of 28
    assert fetch_image(item, image_patch_size=16).size == (96, 64)
    assert fetch_image({**item, "min_pixels": 20000}, 16).size == (192, 128)
    assert fetch_image({**item, "resized_height": 70, "resized_width": 70}, 16).size == (64, 64)
    assert fetch_image({"image": Image.new("RGBA", (56, 56))}).mode == "RGB" and fetch_image(item["image"]).size == (112, 56)
    assert process_vision_info(talk, image_patch_size=14)[0][0].size == (112, 56)


def test_frames_are_chosen_and_resized_as_there(talk):
    item = talk[1]["content"][2]
    frames, rate = fetch_video(item, return_video_sample_fps=True)
    assert frames.shape == (4, 3, 280, 392) and rate == pytest.approx(4 / 21 * 10) and frames.size(0) == 4
    (frames, metadata), rate = fetch_video(item, 16, return_video_sample_fps=True, return_video_metadata=True)
    assert frames.shape == (4, 3, 320, 448) and metadata["total_num_frames"] == 21 and len(metadata["frames_indices"]) == 4
    pictures = [Image.new("RGB", (56, 84))] * 3
    assert fetch_video({"video": pictures, "min_pixels": 4000, "max_pixels": 5000}).shape == (4, 3, 84, 56)


@pytest.mark.parametrize(
    "arguments, size",
    [
        ((480, 640, 28), (476, 644)),
        ((480, 640, 32, None, 100000), (256, 352)),
        ((10, 10, 28), (56, 56)),
        ((10, 400, 28, 4 * 28 * 28), (28, 392)),  # a thin strip counts as one factor, unlike in the processor
        ((5000, 5000, 28, 3136, 784 * 784), (784, 784)),
    ],
)
def test_smart_resize(arguments, size):
    """Values of qwen_omni_utils 0.0.9."""
    assert smart_resize(*arguments) == size


def test_refused():
    with pytest.raises(MediaError, match="at most 200 times"):
        smart_resize(1, 300, 28)
    with pytest.raises(InputError, match="min_pixels <= max_pixels"):
        smart_resize(100, 100, 28, min_pixels=9, max_pixels=8)
    with pytest.raises(MediaError, match="does not exist"):
        fetch_image({"image": "nowhere.png"})
    with pytest.raises(MediaError):
        fetch_video({"type": "video"})
