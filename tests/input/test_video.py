"""Videos: sampling, rotation, odd and damaged files."""

import numpy as np
import pytest
from PIL import Image

from ms_omni.errors import MediaError
from ms_omni.input.media import SamplingOptions, limits
from ms_omni.input.sampling import choose_frames
from ms_omni.media import VideoFrames, load_audio, load_video
from tests.input.make_files import cut, display_in_place, frame_picture, tone, write_sound, write_video

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


@pytest.mark.parametrize(
    "matrix, corner",
    [
        ((1, 0, 0, 1), (2, 2)),
        ((0, 1, -1, 0), (2, -3)),
        ((-1, 0, 0, -1), (-3, -3)),
        ((0, -1, 1, 0), (-3, 2)),
        ((-1, 0, 0, 1), (2, -3)),
        ((1, 0, 0, -1), (-3, 2)),
        ((0, 1, 1, 0), (2, 2)),
        ((0, -1, -1, 0), (-3, -3)),
    ],
)
def test_frames_are_turned_and_mirrored(tmp_path, matrix, corner):
    """(a, b, c, d) puts the pixel at x, y to a x + c y, b x + d y; the white mark tells where the top left corner went."""
    path = write_video(tmp_path / "v.mp4", frames=4, sound=False)
    display_in_place(path, matrix)
    frames = load_video(path).data
    assert frames.shape[2:] == ((64, 96) if matrix[0] else (96, 64))
    bright = [(y, x) for y in (2, -3) for x in (2, -3) if frames[0, 1, y, x] > 200]
    assert bright == [corner]
    if not matrix[0]:  # the mark is a quarter of each side: wide marks stand for sides that have changed places
        assert (
            frames[0, 1, corner[0], 12 if corner[1] > 0 else -13]
            > 200
            > frames[0, 1, corner[0], 20 if corner[1] > 0 else -21]
        )


def shown(clip):
    """The numbers of the frames, which their red tells as well, and the times in seconds that the model is told for them."""
    numbers = clip.metadata["frames_indices"]
    red = np.median(clip.data[:, 0, -8:, -8:], axis=(1, 2))
    assert np.abs(red - 8 * np.array(numbers)).max() < 20
    return numbers, np.arange(len(clip.data)) / clip.sample_fps


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.gif"])
def test_frames_are_chosen_by_their_times(tmp_path, name):
    """Ten frames in the first second, then one each second: told and shown times agree, as a player shows them."""
    times_ms = [100 * k for k in range(10)] + [1000 * k for k in range(1, 8)]
    path = write_video(
        tmp_path / name, frames=17, times_ms=times_ms, sound=False, codec="gif" if "gif" in name else "libx264"
    )
    numbers, told_s = shown(load_video(path))
    assert len(numbers) >= 14
    assert numbers == [np.searchsorted(times_ms, 1000 * told + 1, side="right") - 1 for told in told_s]
    numbers, told_s = shown(load_video(path, SamplingOptions(video_start_s=0.5, video_end_s=3.5)))
    assert len(numbers) == 6 and numbers == [5, 10, 10, 11, 11, 12]


def test_constant_rates_are_known_through_rounding_and_wrong_headers():
    for times_s, stated, rate in (
        (np.round(np.arange(300) / 29.97, 3), 30000 / 1001, 30000 / 1001),
        (np.round(np.arange(300) / 29.97, 3), 1000.0, 29.97),
        (np.append(np.arange(99) / 25, 3.94), 50.0, 25.0),
    ):
        choice = choose_frames(times_s, times_s[-1] + 1 / rate, stated, SamplingOptions(), "video")
        assert choice.fps == pytest.approx(rate, rel=0.01)
        np.testing.assert_array_equal(choice.indices, np.rint(np.linspace(0, len(times_s) - 1, len(choice.indices))))


def test_avi_that_counts_dropped_frames(tmp_path):
    times_ms = [100 * k for k in range(30) if k not in (7, 8, 20)]
    path = write_video(tmp_path / "v.avi", frames=27, times_ms=times_ms, codec="mpeg4", sound=False)
    numbers, told_s = shown(load_video(path))
    assert numbers == [np.searchsorted(times_ms, 1000 * told + 1, side="right") - 1 for told in told_s]


def test_files_joined_end_to_end_are_seen_whole(tmp_path):
    first = write_video(tmp_path / "a.ts", sound=False).read_bytes()
    second = write_video(tmp_path / "b.ts", sound=False, size=(64, 96)).read_bytes()
    clip = load_video(first + second)
    assert clip.data.shape == (12, 3, 64, 96) and clip.sample_fps == pytest.approx(2.0, rel=0.02)
    assert not clip.data[-1, :, :, :20].any() and clip.data[-1, 0, 32, 48] > 200  # tall in wide: black at the sides


def test_pixels_that_are_not_square(tmp_path):
    for name, aspect, size in (("w.mp4", (3, 2), (64, 144)), ("h.mkv", (1, 2), (128, 96))):
        path = write_video(tmp_path / name, sound=False, aspect=aspect)
        assert load_video(path).data.shape[2:] == size
        clip = load_video(path, size_rule=lambda frames, height, width, options, name: (height // 2, width // 2))
        assert clip.data.shape[2:] == (size[0] // 2, size[1] // 2)


def test_limits(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", sound=False)
    monkeypatch.setattr(limits, "frames", 20)
    with pytest.raises(MediaError, match=r"30 frames.*limits\.frames"):
        load_video(path, SamplingOptions(every_frame=True))
    monkeypatch.setattr(limits, "frame_pixels", 6000)
    with pytest.raises(MediaError, match=r"96 x 64.*limits\.frame_pixels"):
        load_video(path)


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


def test_damage_is_never_passed_over(tmp_path):
    """Many changed bytes: an error, though the decoder and the container's reader say nothing of what they skip."""
    for name, codec in (("v.webm", "libvpx"), ("v.ts", "libx264")):
        content = bytearray(
            write_video(tmp_path / name, codec=codec, sound=False, frames=16, size=(160, 96), noise=True).read_bytes()
        )
        rng = np.random.default_rng(0)
        for place in rng.integers(len(content) // 10, len(content), len(content) // 3):
            content[place] = rng.integers(0, 256)
        with pytest.raises(MediaError):
            load_video(bytes(content))


def test_music_with_a_cover_is_no_video(tmp_path):
    path = write_sound(tmp_path / "a.mp3", tone(1, 44100), 44100, "libmp3lame", cover=frame_picture(0, 32, 32))
    with pytest.raises(MediaError, match="only a cover picture; it has sound: give it as an audio item"):
        load_video(path)
    assert len(load_audio(path)) >= 16000


def test_animated_webp(tmp_path):
    pictures = [Image.fromarray(frame_picture(index, 32, 24)) for index in range(20)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    clip = load_video(tmp_path / "a.webp")
    assert clip.sample_fps == pytest.approx(2.0) and clip.metadata["frames_indices"] == [0, 6, 13, 19]
    assert clip.data[:, 0, -1, -1].tolist() == [0, 48, 104, 152]


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
