"""Videos: sampling, rotation, odd and damaged files."""

import numpy as np
import pytest
from PIL import Image

from ms_omni.errors import MediaError
from ms_omni.input.media import SamplingOptions
from ms_omni.media import VideoFrames, load_video
from tests.input.make_files import cut, frame_picture, rotate_in_place, tone, write_sound, write_video

TYPES = [
    ("v.mp4", "libx264"),
    ("v.mkv", "libx264"),
    ("v.webm", "libvpx"),
    ("v.webm", "libvpx-vp9"),
    ("v.avi", "mpeg4"),
    ("v.gif", "gif"),
]


@pytest.mark.parametrize("name, codec", TYPES)
def test_containers_and_their_cut_copies(tmp_path, name, codec):
    path = write_video(tmp_path / name, codec=codec, sound=False)
    clip = load_video(path)
    assert clip.data.shape == (6, 3, 64, 96) and clip.data.dtype == np.uint8
    assert clip.sample_fps == pytest.approx(2.0) and clip.has_audio is False
    assert clip.metadata["frames_indices"] == [0, 6, 12, 17, 23, 29]
    for index, frame in zip(clip.metadata["frames_indices"], clip.data):
        assert abs(int(frame[0, 50, 80]) - index * 8) < 24  # red tells the frame number
    for share in (0.3, 0.95):
        with pytest.raises(MediaError, match="cut short"):
            load_video(cut(path, share))


def test_cut_file_with_its_index_in_front(tmp_path):
    path = write_video(tmp_path / "v.mp4", options={"movflags": "faststart"})
    assert load_video(path).has_audio is True
    with pytest.raises(MediaError, match="cut short"):
        load_video(cut(path, 0.6))


def test_what_declares_no_length_is_taken_as_it_is(tmp_path):
    path = write_video(tmp_path / "v.ts", sound=False)
    assert load_video(cut(path, 0.6)).metadata["total_num_frames"] < 30


@pytest.mark.parametrize("degrees, corner", [(90, (2, -3)), (180, (-3, -3)), (270, (-3, 2))])
def test_rotation_is_honoured(tmp_path, degrees, corner):
    path = write_video(tmp_path / "v.mp4", sound=False)
    rotate_in_place(path, degrees)
    frames = load_video(path).data
    assert frames.shape[2:] == ((96, 64) if degrees != 180 else (64, 96))
    bright = [(y, x) for y in (2, -3) for x in (2, -3) if frames[0, 1, y, x] > 200]
    assert bright == [corner]


def test_variable_frame_rate_uses_the_average(tmp_path):
    times_ms = [i * 40 for i in range(10)] + [400 + i * 500 for i in range(10)]
    for name in ("v.mp4", "v.mkv"):
        clip = load_video(write_video(tmp_path / name, frames=20, times_ms=times_ms, sound=False))
        assert clip.metadata["total_num_frames"] == 20
        assert 3.5 < clip.metadata["fps"] < 5
        assert clip.sample_fps == pytest.approx(len(clip.data) / 20 * clip.metadata["fps"])


@pytest.mark.parametrize(
    "options, indices",
    [
        (SamplingOptions(fps=4.0), [0, 3, 5, 8, 11, 13, 16, 18, 21, 24, 26, 29]),
        (SamplingOptions(nframes=4), [0, 10, 19, 29]),
        (SamplingOptions(nframes=5), [0, 10, 19, 29]),
        (SamplingOptions(fps=0.1), [0, 10, 19, 29]),
        (SamplingOptions(fps=0.1, min_frames=2), [0, 29]),
        (SamplingOptions(max_frames=4), [0, 10, 19, 29]),
        (SamplingOptions(video_start_s=0.55, video_end_s=1.55), [6, 9, 12, 15]),
        (SamplingOptions(video_end_s=99.0), [0, 6, 12, 17, 23, 29]),
    ],
)
def test_sampling(tmp_path, options, indices):
    clip = load_video(write_video(tmp_path / "v.mp4", sound=False), options)
    assert clip.metadata["frames_indices"] == indices
    total = clip.metadata["total_num_frames"]
    assert clip.sample_fps == pytest.approx(len(indices) / total * 10)


@pytest.mark.parametrize("count, taken", [(2, 2), (3, 2), (5, 4)])
def test_few_frames(tmp_path, count, taken):
    assert len(load_video(write_video(tmp_path / "v.mp4", frames=count, sound=False)).data) == taken


def test_too_few_frames(tmp_path):
    with pytest.raises(MediaError, match="at least 2"):
        load_video(write_video(tmp_path / "one.mp4", frames=1, sound=False))
    path = write_video(tmp_path / "v.mp4", sound=False)
    with pytest.raises(MediaError, match="between video_start"):
        load_video(path, SamplingOptions(video_start_s=5.0))
    with pytest.raises(MediaError, match="nframes is 40"):
        load_video(path, SamplingOptions(nframes=40))


def test_files_that_are_no_videos(tmp_path):
    with pytest.raises(MediaError, match="give it as an audio item"):
        load_video(write_sound(tmp_path / "a.m4a", tone(1, 44100), 44100, "aac"))
    Image.new("RGB", (40, 40)).save(tmp_path / "p.png")
    with pytest.raises(MediaError, match="give it as an image item"):
        load_video(tmp_path / "p.png")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    with pytest.raises(MediaError, match="cannot be read as a video"):
        load_video(tmp_path / "noise.mp4")
    (tmp_path / "list.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://192.0.2.1/a.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(MediaError, match="playlist"):
        load_video(tmp_path / "list.mp4")


def test_damage_in_the_middle(tmp_path):
    content = bytearray(write_video(tmp_path / "v.avi", codec="mpeg4", sound=False, size=(320, 240)).read_bytes())
    content[10000:13000] = np.random.default_rng(1).bytes(3000)
    with pytest.raises(MediaError, match="damaged"):
        load_video(bytes(content))


def test_lists_of_frames(tmp_path):
    pictures = [Image.fromarray(frame_picture(index, 32, 24)) for index in range(3)]
    clip = load_video(pictures)
    assert clip.data.shape == (4, 3, 24, 32) and clip.sample_fps == 2.0 and clip.has_audio is None
    np.testing.assert_array_equal(clip.data[3], clip.data[2])
    pictures[0].save(tmp_path / "0.png")
    assert load_video([tmp_path / "0.png", pictures[1]], sample_fps=5.0).sample_fps == 5.0
    with pytest.raises(MediaError, match="differ in size"):
        load_video([pictures[0], pictures[1].resize((10, 10))])
    with pytest.raises(MediaError, match="empty list"):
        load_video([])


@pytest.mark.parametrize("shape", [(4, 24, 32, 3), (4, 3, 24, 32)])
def test_arrays(shape):
    assert load_video(np.zeros(shape, np.uint8)).data.shape == (4, 3, 24, 32)
    with pytest.raises(MediaError, match="shape"):
        load_video(np.zeros(shape[1:], np.uint8))


def test_frames_remember_their_clip(tmp_path):
    frames = VideoFrames(load_video(write_video(tmp_path / "v.mp4")))
    assert frames.sample_fps == 2.0 and frames.has_audio is True
    assert frames[:2].sample_fps is None  # a part is no longer the clip
