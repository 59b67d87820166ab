"""What the miniature understands: held-out questions of every kind, beside the answers of transformers."""

import numpy as np
import pytest
from PIL import Image

from examples.miniature.held_out import FIXED, Question, checksum, load_speech

LEAST = {"digits": 0.9, "shape": 0.9, "motion": 0.9, "sum": 0.95, "motion_and_digits": 0.85, "strange_text": 0.8}
"""Shares that must be right among the few questions of each task; the card has the figures of the long evaluation."""


def test_the_answers_belong_to_these_weights(miniature, recorded):
    assert checksum(miniature) == recorded["weights"], "run tests/reference/record_miniature.py after every training"


def test_two_hundred_answers_equal_the_reference_s(questions, said, recorded):
    theirs = [text for texts in recorded["answers"].values() for text in texts]
    assert len(questions) == len(theirs) == 200
    different = [(item.task, text, other) for item, text, other in zip(questions, said, theirs) if text != other]
    assert not different, "task, ours, the reference's"


@pytest.mark.parametrize("task", FIXED)
def test_as_many_are_right_as_with_the_reference(questions, said, recorded, task):
    right = [item.answer == text for item, text in zip(questions, said) if item.task == task]
    assert sum(right) == recorded["right"][task]
    assert sum(right) >= LEAST.get(task, 0) * len(right)


def test_alone_as_in_a_batch(ask, questions, said):
    """Long and short prompts, with and without media, were padded to one length; alone there is no padding."""
    for woven in (False, True):
        chosen = [index for index, item in enumerate(questions) if item.use_audio_in_video is woven][::19]
        assert [ask([questions[index]])[0] for index in chosen] == [said[index] for index in chosen]


def one(*content):
    return Question("", [{"role": "user", "content": list(content)}], "", False)


def test_sounds_and_pictures_of_every_number_type(ask):
    """The same sound as float32, float64, int16 and int32, the same picture as uint8 and float: one answer each."""
    clip = load_speech()["digits"][1]
    whole = np.pad(clip.samples, (3200, 3200 - len(clip.samples) % 160))
    sounds = [whole, whole.astype(np.int32) << 16, (whole / 32768).astype(np.float32), whole / 32768]
    text = {"type": "text", "text": "What number do you hear?"}
    assert {ask([one({"type": "audio", "audio": sound}, text)])[0] for sound in sounds} == {clip.meaning}
    pixels = np.full((240, 240, 3), 255, np.uint8)
    pixels[60:180, 60:180] = (220, 20, 20)
    pictures = [Image.fromarray(pixels), pixels, pixels.astype(np.float32)]
    text = {"type": "text", "text": "What do you see?"}
    assert {ask([one({"type": "image", "image": picture}, text)])[0] for picture in pictures} == {"a red square"}


def test_a_long_conversation(ask):
    """Five turns; what was asked before does not confuse the last answer."""
    messages = []
    for first in range(4):
        messages.append({"role": "user", "content": f"What is {first % 10} + 3?"})
        messages.append({"role": "assistant", "content": str(first % 10 + 3)})
    messages.append({"role": "user", "content": "What is 4 + 4?"})
    assert ask([Question("", messages, "8", False)]) == ["8"]
