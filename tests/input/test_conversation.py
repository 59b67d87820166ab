"""Conversations to media: keys, options, order, and what `process_mm_info` returns."""

import warnings

import numpy as np
import pytest
import soundfile
from PIL import Image

from ms_omni.errors import InputError, MediaError, OmniError
from ms_omni.media import process_mm_info
from tests.input.make_files import tone, write_video


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (100, 60), (9, 8, 7)).save(folder / "i.png")
    soundfile.write(folder / "a.wav", tone(1.0, 16000), 16000)
    write_video(folder / "loud.mp4")
    write_video(folder / "silent.mp4", sound=False)
    return {path.stem: str(path) for path in folder.iterdir()}


def user(*items):
    return [{"role": "user", "content": list(items)}]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "image", "image": "i"},
        {"type": "image", "path": "i"},
        {"type": "image", "url": "i"},
        {"type": "image", "image_url": "i"},
        {"type": "image_url", "image_url": {"url": "i"}},
        {"image": "i"},
        {"type": "image", "image": {"url": "i"}},
        {"type": "image", "image": "i", "url": None},
    ],
)
def test_keys(files, item):
    named = {
        key: {"url": files["i"]} if isinstance(value, dict) else files["i"] if value == "i" else value
        for key, value in item.items()
    }
    audios, images, videos = process_mm_info(user(named, {"type": "text", "text": "?"}), False)
    assert audios is None and videos is None and images[0].size == (100, 60)


def test_audio_and_video_keys(files):
    conversation = user(
        {"type": "audio_url", "audio_url": {"url": files["a"]}},
        {"type": "audio", "path": files["a"]},
        {"type": "video_url", "video_url": files["loud"]},
        {"type": "video", "url": files["silent"]},
    )
    audios, images, videos, kwargs = process_mm_info(conversation, False, return_video_kwargs=True)
    assert [len(audio) for audio in audios] == [16000, 16000] and images is None
    assert [video.shape for video in videos] == [(6, 3, 64, 96)] * 2
    assert kwargs == {"do_sample_frames": False, "fps": [2.0, 2.0]}


def test_sound_tracks_come_in_the_order_of_the_prompt(files):
    conversation = user(
        {"type": "video", "video": files["silent"]},
        {"type": "audio", "audio": files["a"]},
        {"type": "video", "video": files["loud"], "video_start": 1.0, "video_end": 2.0},
        {"type": "audio", "audio": files["a"], "audio_end": 0.5},
    )
    audios, _, videos = process_mm_info(conversation, True)
    assert [round(len(audio) / 1600) for audio in audios] == [10, 10, 5]
    assert [video.has_audio for video in videos] == [False, True]
    assert videos[1].sample_fps == pytest.approx(4 / 11 * 10)


def test_several_conversations_and_plain_content(files):
    batch = [
        user({"type": "image", "image": files["i"]}),
        [{"role": "user", "content": "hello"}],
        user("hello", {"type": "image", "image": Image.new("L", (20, 20))}),
    ]
    _, images, _ = process_mm_info(batch, False)
    assert [image.size for image in images] == [(100, 60), (20, 20)]
    assert process_mm_info(batch[1], True) == (None, None, None)


def test_size_options_and_patch_size(files):
    image = {"type": "image", "image": files["i"]}
    video = {"type": "video", "video": files["loud"]}

    def sizes(*items, **kwargs):
        _, images, videos = process_mm_info(user(*items), False, **kwargs)
        return images[0].size, videos[0].shape[2:]

    assert sizes(image, video) == ((100, 60), (64, 96))
    assert sizes(image, video, image_patch_size=16) == ((96, 64), (320, 448))
    assert sizes(image, video, image_patch_size=14) == ((112, 56), (280, 392))  # the original's default
    assert sizes({**image, "min_pixels": 20000}, {**video, "max_pixels": 30000}) == ((192, 128), (64, 96))
    assert sizes({**image, "resized_height": 70, "resized_width": 70}, video)[0] == (64, 64)


def test_metadata_instead_of_fps(files):
    _, _, videos, kwargs = process_mm_info(
        user({"type": "video", "video": files["loud"], "nframes": 4}),
        False,
        return_video_kwargs=True,
        return_video_metadata=True,
    )
    frames, metadata = videos[0]
    assert kwargs == {"do_sample_frames": False} and len(frames) == 4
    assert metadata == {"fps": 10.0, "total_num_frames": 30, "frames_indices": [0, 10, 19, 29], "video_backend": "pyav"}


@pytest.mark.parametrize(
    "item, complaint",
    [
        ({"type": "picture", "image": "i"}, "type 'picture'"),
        ({"path": "notes.txt"}, "has no type"),
        ({"type": "image"}, "names no image"),
        ({"type": "image", "image": "i", "url": "i"}, "2 times"),
        (7, "is a int"),
        ({"type": "image_url", "image_url": {"x": 1}}, "url"),
        ({"type": "image", "image": 3.5}, "float"),
        ({"type": "image", "image": "i", "min_pixels": -1}, "min_pixels is -1"),
        ({"type": "image", "image": "i", "min_pixels": 9, "max_pixels": 8}, "over max_pixels"),
        ({"type": "image", "image": "i", "resized_height": 9}, "together"),
        ({"type": "video", "video": "loud", "fps": 2, "nframes": 4}, "either fps or nframes"),
        ({"type": "video", "video": "loud", "fps": 0}, "fps is 0"),
        ({"type": "video", "video": "loud", "nframes": 4.5}, "whole"),
        ({"type": "video", "video": "loud", "nframes": 10**400}, "larger than that"),
        ({"type": "image", "image": "i", "min_pixels": 10**5000}, "larger than that"),
        ({"type": "audio", "audio": "a", "audio_start": 1e308}, "at most"),
        ({"type": "video", "video": "loud", "video_start": 2, "video_end": 1}, "must be after"),
        ({"type": "audio", "audio": "a", "audio_start": -1}, "audio_start is -1"),
        ({"type": "audio", "audio": "a", "audio_start": 9}, "lasts 1.00 s"),
        ({"type": "video", "video": "a"}, "no video track"),
        ({"type": "audio", "audio": "i"}, "give it as an image item"),
        ({"type": "image", "image": "loud"}, "cannot be read as a picture"),
    ],
)
def test_items_that_are_refused(files, item, complaint):
    if isinstance(item, dict):
        item = {
            key: files.get(value, value) if isinstance(value, str) and key != "type" else value
            for key, value in item.items()
        }
    with pytest.raises(OmniError, match=complaint):
        process_mm_info(user(item), False)


@pytest.mark.parametrize(
    "conversation",
    [
        None,
        [],
        {"role": "user", "content": "x"},
        "hello",
        [[]],
        [{"content": "x"}],
        [3],
        [{"role": "user", "content": 3.5}],
    ],
)
def test_conversations_that_are_refused(conversation):
    with pytest.raises(InputError):
        process_mm_info(conversation, False)


def test_unknown_option_warns(files):
    with pytest.warns(UserWarning, match="max_pixel "):
        process_mm_info(user({"type": "image", "image": files["i"], "max_pixel": 9}), False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process_mm_info(user({"type": "image", "image": files["i"], "cache_control": {}}), False)


def test_error_names_conversation_message_and_item(files):
    batch = [
        user({"type": "text", "text": "x"}),
        user({"type": "text", "text": "x"}, {"type": "image", "image": np.zeros(3)}),
    ]
    with pytest.raises(MediaError, match="Conversation 1, message 0, item 1"):
        process_mm_info(batch, False)
