"""Which word the talker hears with which frame, and how far the text has to be written for it.

The assistant turn opens with im_start, assistant, newline (10, 11, 12 here); 50 is the end. A word's embedding is its id.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from ms_omni.engine.sequence import Sequence, Text
from ms_omni.engine.speech import SpeechStage
from ms_omni.errors import InputError
from ms_omni.generation.options import TextOptions
from ms_omni.generation.sampling import SamplingParams
from ms_omni.generation.talker_prompt import assistant_turns

OPENING = [10, 11, 12]
END, TTS_EOS, TTS_PAD = 50, 98, 99
IDS = SimpleNamespace(im_start_token_id=10, im_end_token_id=END, assistant_token_id=11)


class Speaking:
    """An answer and what its speech was given of it. limit: of its tokens."""

    def __init__(self, turn=OPENING, limit=100, given=False):
        params = SamplingParams(max_new_tokens=limit, eos_token_id=END)
        self.row = Sequence(None, Text(np.array([1]), params, TextOptions()), turn=list(turn), given=given)
        self.stage = SimpleNamespace(eos=TTS_EOS, pad=TTS_PAD)
        self.sequence = SimpleNamespace(embeds=[], ended=False)
        self.tell()

    def tell(self):
        news = self.row.unfed_ids()
        self.row.fed += len(news)
        self.sequence.embeds += news
        self.sequence.ended = self.row.text_complete
        return news

    def write(self, *tokens):
        """Writes on; every token is told at once."""
        for token in tokens:
            self.row.text.add(token)
            self.tell()
        return self

    def read(self, count):
        return [SpeechStage._text_embed(self.stage, self.sequence, index) for index in range(count)]


def test_every_word_at_its_frame():
    """The end is not said; tts_eos comes exactly once, then tts_pad for ever."""
    assert Speaking().write(1, 2, 3, END).read(11) == [*OPENING, 1, 2, 3, TTS_EOS, *[TTS_PAD] * 4]


def test_text_that_was_cut_off_is_said_to_its_last_word():
    assert Speaking(limit=3).write(1, 2, 3).read(8) == [*OPENING, 1, 2, 3, TTS_EOS, TTS_PAD]


def test_an_empty_answer_has_nothing_to_say():
    speaking = Speaking().write(END)
    assert speaking.row.fed == len(OPENING) and speaking.row.text_complete
    assert speaking.read(5) == [*OPENING, TTS_EOS, TTS_PAD]


def test_what_is_written_is_told_once():
    speaking = Speaking()
    assert not speaking.row.unfed_ids() and not speaking.sequence.ended
    speaking.row.text.add(1), speaking.row.text.add(2)
    assert speaking.tell() == [1, 2] and speaking.tell() == []
    speaking.row.text.add(END)
    assert speaking.tell() == [] and speaking.sequence.ended


def test_no_word_is_said_before_it_is_written():
    speaking = Speaking().write(1)
    assert speaking.read(4) == [*OPENING, 1]
    with pytest.raises(AssertionError, match="not written yet"):
        speaking.read(5)


def test_text_given_in_the_prompt_is_said_before_the_generated_one():
    speaking = Speaking([*OPENING, 7, 8])
    assert speaking.read(5) == [*OPENING, 7, 8]
    assert speaking.write(1, 2, END).read(9) == [*OPENING, 7, 8, 1, 2, TTS_EOS, TTS_PAD]


def test_text_that_is_only_given_is_said_whole():
    assert Speaking([*OPENING, 7, 8, 9], given=True).read(8) == [*OPENING, 7, 8, 9, TTS_EOS, TTS_PAD]


def test_given_text_after_which_the_thinker_ends_at_once():
    assert Speaking([*OPENING, 7]).write(END).read(6) == [*OPENING, 7, TTS_EOS, TTS_PAD]


def test_an_opening_that_is_cut_short_is_filled_from_what_is_written():
    """A prompt may end after `assistant`; the line end is then written by the thinker."""
    assert Speaking(OPENING[:2]).write(12, 1, END).read(6) == [*OPENING, 1, TTS_EOS, TTS_PAD]


def test_the_turn_that_the_prompt_opens_is_the_last_one():
    ids = np.array([[10, 20, 1, 10, 11, 12, 3, 10, 20, 4, 10, 11, 12], [0, 10, 20, 10, 11, 12, 1, 2, 3, 4, 5, 6, 7]])
    assert assistant_turns(ids, IDS) == [[10, 11, 12], [10, 11, 12, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(
    "line, said",
    [
        ([10, 20, 11, 1], "row 1 of the prompt does not open an assistant turn.*add_generation_prompt.*return_audio=False"),
        ([10, 11, 1, 10, 20, END], "does not open an assistant turn"),  # an earlier turn is not the one to speak in
        ([10, 20, 1, 10], "does not open an assistant turn"),
        ([1, 2, 3], "does not open an assistant turn"),
        ([10, 11, 12, 1, END], "row 1 of the prompt closes its last turn.*continue_final_message"),
    ],
    ids=str,
)
def test_a_prompt_that_opens_no_assistant_turn_is_an_error(line, said):
    ids = np.zeros((2, 6), np.int64)
    ids[0, -2:], ids[1, -len(line) :] = [10, 11], line
    with pytest.raises(InputError, match=said):
        assistant_turns(ids, IDS)


def test_a_given_turn_may_be_closed():
    ids = np.array([[0, 10, 11, 12, 1, 2, END, 12], [10, 20, 1, 10, 11, 12, 3, 4]])
    assert assistant_turns(ids, IDS, given=True) == [[10, 11, 12, 1, 2], [10, 11, 12, 3, 4]]
