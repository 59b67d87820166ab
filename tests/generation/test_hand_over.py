"""Which text row the talker reads at which step, and how far the thinker has to write for it.

The assistant turn opens with im_start, assistant, newline (10, 11, 12 here); 98 is tts_eos, 99 tts_pad, 50 the end.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from ms_omni.errors import InputError
from ms_omni.generation.hand_over import TextHandOver, assistant_turns
from ms_omni.outputs import ThinkerStep

OPENING = [10, 11, 12]
END, TTS_EOS, TTS_PAD = 50, 98, 99
IDS = SimpleNamespace(im_start_token_id=10, im_end_token_id=END, assistant_token_id=11)


class Thinker:
    """Writes given rows of tokens, one step at a time; `taken` counts the steps that were asked for. A row without END was
    cut off.
    """

    def __init__(self, *rows):
        self.rows, self.taken = rows, 0

    def __iter__(self):
        longest = max(map(len, self.rows))
        for step in range(longest):
            self.taken += 1
            active, going = (np.array([step + ahead < len(row) for row in self.rows]) for ahead in (0, 1))
            token = np.array([row[step] if step < len(row) else 0 for row in self.rows])
            yield ThinkerStep(token, active, None, active & (token != END), going)


def hand_over(*rows, given=None):
    thinker = Thinker(*rows) if rows else iter(())
    turns = [OPENING + list(text) for text in (given or [[]] * len(rows))]
    return TextHandOver(thinker, turns, TTS_EOS, TTS_PAD), thinker


def read(hand, count, row=0):
    return [int(hand.ids(index)[row]) for index in range(count)]


def test_every_id_at_its_step():
    """The end is not said; tts_eos comes exactly once, then tts_pad for ever."""
    hand, _ = hand_over([1, 2, 3, END])
    assert read(hand, 11) == [*OPENING, 1, 2, 3, TTS_EOS, *[TTS_PAD] * 4]


def test_text_that_was_cut_off_is_said_to_its_last_word():
    hand, _ = hand_over([1, 2, 3], [4])
    assert hand.has_text().tolist() == [True, True]
    assert read(hand, 8) == [*OPENING, 1, 2, 3, TTS_EOS, TTS_PAD]
    assert read(hand, 6, row=1) == [*OPENING, 4, TTS_EOS, TTS_PAD]


def test_an_empty_answer_has_nothing_to_say():
    hand, thinker = hand_over([END])
    assert hand.has_text().tolist() == [False]
    assert thinker.taken == 1
    assert read(hand, 5) == [*OPENING, TTS_EOS, TTS_PAD]


def test_an_answer_of_one_token():
    hand, _ = hand_over([1, END])
    assert hand.has_text().tolist() == [True]
    assert read(hand, 7) == [*OPENING, 1, TTS_EOS, TTS_PAD, TTS_PAD]


def test_rows_of_different_length_end_on_their_own():
    hand, _ = hand_over([1, END], [2, 3, 4, END], [END])
    assert hand.has_text().tolist() == [True, True, False]
    assert np.stack([hand.ids(index) for index in range(3, 9)], axis=1).tolist() == [
        [1, TTS_EOS, TTS_PAD, TTS_PAD, TTS_PAD, TTS_PAD],
        [2, 3, 4, TTS_EOS, TTS_PAD, TTS_PAD],
        [TTS_EOS, TTS_PAD, TTS_PAD, TTS_PAD, TTS_PAD, TTS_PAD],
    ]


def test_the_thinker_is_pulled_no_further_than_what_is_said():
    hand, thinker = hand_over([1, 2, 3, 4, 5, END])
    hand.ids(0), hand.ids(1), hand.ids(2)
    assert thinker.taken == 0  # the opening is known
    taken = []
    for index in range(3, 10):
        hand.ids(index)
        taken.append(thinker.taken)
    assert taken == [1, 2, 3, 4, 5, 6, 6]
    assert not hand.running


def test_reading_again_pulls_nothing():
    hand, thinker = hand_over([1, 2, 3, END])
    assert read(hand, 5) == read(hand, 5)
    assert thinker.taken == 2


def test_a_row_that_has_ended_makes_nobody_wait():
    """Row 0 has ended after two steps; its tts_eos is known although row 1 goes on."""
    hand, thinker = hand_over([1, END], [2, 3, 4, 5, 6, END])
    assert hand.ids(4).tolist() == [TTS_EOS, 3]
    assert thinker.taken == 2


def test_text_given_in_the_prompt_is_said_before_the_generated_one():
    hand, thinker = hand_over([1, 2, END], given=[[7, 8]])
    assert hand.has_text().tolist() == [True] and thinker.taken == 0
    assert read(hand, 9) == [*OPENING, 7, 8, 1, 2, TTS_EOS, TTS_PAD]


def test_text_that_is_only_given_is_said_whole():
    hand, _ = hand_over(given=[[7, 8, 9], [6]])
    assert read(hand, 8) == [*OPENING, 7, 8, 9, TTS_EOS, TTS_PAD]
    assert read(hand, 8, row=1) == [*OPENING, 6, TTS_EOS, *[TTS_PAD] * 3]


def test_given_text_after_which_the_thinker_ends_at_once():
    hand, _ = hand_over([END], given=[[7]])
    assert read(hand, 6) == [*OPENING, 7, TTS_EOS, TTS_PAD]


def test_an_opening_that_is_cut_short_is_filled_from_what_is_written():
    """A prompt may end after `assistant`; the line end is then written by the thinker."""
    thinker = Thinker([12, 1, END])
    hand = TextHandOver(thinker, [OPENING[:2]], TTS_EOS, TTS_PAD)
    assert read(hand, 6) == [*OPENING, 1, TTS_EOS, TTS_PAD]


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
