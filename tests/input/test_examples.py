"""The sample files, as a newcomer would use them."""

from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def test_samples_are_small():
    samples = [path for path in EXAMPLES.iterdir() if path.suffix in (".jpg", ".wav", ".mp4")]
    assert len(samples) == 3 and sum(path.stat().st_size for path in samples) < 1 << 20


@pytest.mark.parametrize("use_audio_in_video", [False, True])
def test_samples_in_one_conversation(processor, use_audio_in_video):
    content = [
        {"type": "image", "image": str(EXAMPLES / "picture.jpg")},
        {"type": "audio", "audio": str(EXAMPLES / "speech.wav")},
        {"type": "video", "video": str(EXAMPLES / "video.mp4")},
        {"type": "text", "text": "What do you see and hear?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        use_audio_in_video=use_audio_in_video,
    )
    assert inputs.image_grid_thw.tolist() == [[1, 20, 30]]
    assert inputs.video_grid_thw[0, 0] == 4 and inputs.video_second_per_grid.tolist() == [1.0]
    seconds = inputs.feature_attention_mask.sum(-1) / 100
    np.testing.assert_allclose(seconds, [3.8, 4.0][: len(seconds)], atol=0.3)
    assert len(seconds) == 1 + use_audio_in_video
