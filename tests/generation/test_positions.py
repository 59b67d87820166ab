"""Positions of prompts small enough to be counted by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from ms_omni.errors import InputError
from ms_omni.modeling.positions import get_rope_index, media_runs

A, I, V, S, E = 90, 91, 92, 93, 94  # placeholders of audio, image and video; start and end tokens
CONFIG = SimpleNamespace(audio_token_id=A, image_token_id=I, video_token_id=V, position_id_per_seconds=13)
MERGE = 2


def positions(ids, mask=None, **grids):
    return get_rope_index(CONFIG, MERGE, np.atleast_2d(ids), mask, **grids)


def axes(found, row=0):
    """The three axes of one row as lists."""
    return [axis[row].tolist() for axis in found[0]]


def test_text_counts_alike_on_all_axes():
    found = positions([1, 2, 3])
    assert axes(found) == [[0, 1, 2]] * 3
    assert found[0].dtype == found[1].dtype == np.float32
    assert found[1].tolist() == [[0]]


def test_audio_is_one_step_per_token():
    found = positions([1, S, A, A, A, E, 2])
    assert axes(found) == [[0, 1, 2, 3, 4, 5, 6]] * 3
    assert found[1].tolist() == [[0]]


def test_image_lies_in_a_plane_and_text_goes_on_after_its_longest_side():
    """A grid of 1 x 4 x 6 patches is 2 x 3 tokens; they begin at 2, and the text after them at 2 + 3."""
    found = positions([1, S, *[I] * 6, E, 2], image_grid_thw=[[1, 4, 6]])
    assert axes(found) == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    assert found[1].tolist() == [[7 - 10]]


def test_time_of_a_video_may_be_a_fraction():
    """Three grid steps of 0.3 s at 13 positions per second: 0, 3.9, 7.8 from position 1 on; the text at 1 + 7.8 + 1."""
    found = positions([S, *[V] * 6, E], video_grid_thw=[[3, 2, 4]], second_per_grids=[0.3])
    step = np.float32(0.3) * np.float32(13)
    times = [np.float32(1) + np.float32(n) * np.float32(0.3) * np.float32(13) for n in range(3)]
    assert times[1] == np.float32(1) + step and abs(times[2] - 8.8) < 1e-6
    time, height, width = axes(found)
    assert time == [0, *np.repeat(times, 2).tolist(), times[2] + 1]
    assert height == [0, *[1] * 6, times[2] + 1]
    assert width == [0, *[1, 2] * 3, times[2] + 1]
    assert found[1][0, 0] == np.float32(times[2] + np.float32(2)) - np.float32(8)


def test_a_short_but_wide_video_is_followed_after_its_width():
    found = positions([*[V] * 5, 1], video_grid_thw=[[1, 2, 10]], second_per_grids=[2.0])
    assert axes(found)[0][-1] == 5


def test_audio_in_video_keeps_both_clocks():
    """Video of two steps of 0.5 s (6.5 positions), 1 x 1 tokens; audio between them; both start at position 1."""
    found = positions([S, V, A, A, V, A, E], video_grid_thw=[[2, 2, 2]], second_per_grids=[0.5])
    time, height, width = axes(found)
    assert time[:6] == [0, 1, 1, 2, 7.5, 3]
    assert height[:6] == width[:6] == [0, 1, 1, 2, 1, 3]
    assert time[6] == height[6] == width[6] == 4  # the audio ends the run, so the text counts on from it


def test_audio_in_video_whose_video_lasts_longer():
    found = positions([S, V, A, A, V, E], video_grid_thw=[[2, 2, 2]], second_per_grids=[0.5])
    assert axes(found)[0] == [0, 1, 1, 2, 7.5, 8.5]
    assert found[1].tolist() == [[9.5 - 6]]


def test_videos_with_and_without_sound_in_one_prompt():
    ids = [S, V, V, E, S, V, A, V, E, S, A, E]
    found = positions(ids, video_grid_thw=[[2, 2, 2], [2, 2, 2]], second_per_grids=[1.0, 0.5])
    time = axes(found)[0]
    assert time[:4] == [0, 1, 14, 15]
    assert time[4:9] == [16, 17, 17, 23.5, 24.5]
    assert time[9:] == [25.5, 26.5, 27.5]


def test_every_medium_in_one_prompt():
    ids = [1, S, *[I] * 2, E, S, A, A, E, S, *[V] * 2, E, S, I, E, 2]
    found = positions(ids, image_grid_thw=[[1, 2, 4], [1, 2, 2]], video_grid_thw=[[2, 2, 2]], second_per_grids=[0.1])
    time, height, width = axes(found)
    assert time[:9] == [0, 1, 2, 2, 4, 5, 6, 7, 8]
    assert width[2:4] == [2, 3] and height[2:4] == [2, 2]
    late = np.float32(10) + np.float32(0.1) * np.float32(13)
    assert time[9:12] == [9, 10, late]
    assert np.allclose(time[12:], [late + n for n in range(1, 6)], rtol=0, atol=2e-6)


def test_rows_of_a_batch_share_the_media_in_order_and_padding_stands_at_one():
    ids = np.array([[0, 0, S, I, E, 1], [S, I, I, I, I, E]])
    mask = np.array([[0, 0, 1, 1, 1, 1], [1] * 6])
    found = positions(ids, mask, image_grid_thw=[[1, 2, 2], [1, 4, 4]])
    assert axes(found)[0] == [1, 1, 0, 1, 2, 3]
    assert axes(found, 1) == [[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]
    assert found[1].tolist() == [[0], [4 - 6]]


def test_grids_of_an_image_with_time():
    """The reference lets images have a time axis as well; it advances by whole seconds."""
    found = positions([*[I] * 2, 1], image_grid_thw=[[2, 2, 2]])
    assert axes(found)[0] == [0, 13, 14]


@pytest.mark.parametrize(
    "grids, ids, said",
    [
        ({"image_grid_thw": [[1, 4, 4]]}, [I] * 3, r"image 1 has a grid of \[1, 4, 4\] .* makes 4 tokens.*has 3"),
        ({"image_grid_thw": [[1, 2, 2]]}, [I, S, I], "more images than the 1 rows of image_grid_thw"),
        ({}, [I], "more images than the 0 rows"),
        ({"image_grid_thw": [[1, 2, 2]]}, [1, 2], "image_grid_thw has 1 rows but the prompt shows 0 images"),
        ({"video_grid_thw": [[1, 2, 2]]}, [V], "1 videos but no video_second_per_grid"),
        ({"video_grid_thw": [[1, 2, 2]], "second_per_grids": [1.0, 2.0]}, [V], "2 values of video_second_per_grid for 1"),
        ({"video_grid_thw": [[1, 2, 4]], "second_per_grids": [1.0]}, [V, A], "makes 2 tokens, but the prompt has 1"),
        (
            {"video_grid_thw": [[1, 2, 2]], "second_per_grids": [0.0]},
            [V],
            r"video_second_per_grid is \[0.0\], expected seconds above 0",
        ),
        (
            {"video_grid_thw": [[1, 2, 2]], "second_per_grids": [np.nan]},
            [V],
            "video_second_per_grid holds numbers that are NaN",
        ),
        (
            {"video_grid_thw": [[1, 2, 2]], "second_per_grids": ["x"]},
            [V],
            "video_second_per_grid holds .*, expected numbers",
        ),
        (
            {"video_grid_thw": [[1, 2, 2]], "second_per_grids": [True]},
            [V],
            "video_second_per_grid holds truth values, expected numbers",
        ),
        ({"second_per_grids": [1.0]}, [V], "1 values of video_second_per_grid for 0 videos"),
        ({"image_grid_thw": [[1, 2, 2]]}, [I, A], "wrap each medium"),
    ],
)
def test_disagreement_is_an_error(grids, ids, said):
    with pytest.raises(InputError, match=said):
        positions(ids, **grids)


def test_a_row_of_padding_is_an_error():
    with pytest.raises(InputError, match="row 1 of the batch holds only padding"):
        positions(np.array([[1, 2], [0, 0]]), np.array([[1, 1], [0, 0]]))


def test_media_runs():
    ids = np.array([1, I, I, 2, A, 3, V, 4, V, A, A, V, 5])
    assert media_runs(ids, CONFIG) == [("image", 1, 3), ("audio", 4, 5), ("video", 6, 7), ("audio_in_video", 8, 12)]
    assert media_runs(np.array([A]), CONFIG) == [("audio", 0, 1)]
    assert media_runs(np.array([1, 2]), CONFIG) == []
    for run in ([I, A], [V, I], [A, V, I]):
        with pytest.raises(InputError, match="wrap each medium in its start and end tokens"):
            media_runs(np.array(run), CONFIG)
