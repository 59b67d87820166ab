"""The rows that the talker reads first, against the layout written out turn by turn."""

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.generation.hand_over import TextHandOver, assistant_turns
from ms_omni.generation.talker_prompt import build_prompt, left_padded, user_mask, user_media
from ms_omni.outputs import PromptStates

START, USER, ASSISTANT, SYSTEM, END = 1, 2, 3, 4, 5
A, I, V = 90, 91, 92
IDS = SimpleNamespace(im_start_token_id=START, user_token_id=USER)
MEDIA = SimpleNamespace(audio_token_id=A, image_token_id=I, video_token_id=V)


def mask_of(*rows, padding=0):
    ids = np.array([[0] * padding + list(row) for row in rows])
    valid = np.arange(ids.shape[1]) >= padding
    return user_mask(ids, np.broadcast_to(valid, ids.shape), IDS).astype(int).tolist()


def test_user_turns_reach_from_their_start_to_the_next_start():
    ids = [START, SYSTEM, 7, START, USER, 7, 8, END, 9, START, ASSISTANT, 9, START, USER, 6, START, ASSISTANT]
    assert mask_of(ids) == [[0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0]]


def test_padding_and_what_stands_before_the_first_turn_belong_to_nobody():
    assert mask_of([7, START, USER, 7], padding=2) == [[0, 0, 0, 1, 1, 1]]
    assert mask_of([7, USER, 7]) == [[0, 0, 0]]


def test_the_word_user_inside_a_turn_opens_none():
    assert mask_of([START, SYSTEM, USER, 7, START, ASSISTANT, USER]) == [[0] * 7]


def test_a_start_at_the_very_end_is_not_a_user_turn():
    assert mask_of([START, USER, START]) == [[1, 1, 0]]


def test_left_padded():
    assert left_padded(np.array([3, 1, 0])).astype(int).tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_media_of_other_turns_are_left_out():
    """Images: one in the system turn, one of the user, one of an earlier answer. Videos: two of the user."""
    ids = np.array(
        [[START, SYSTEM, I, START, USER, I, I, 7, V, A, V, START, ASSISTANT, I, START, USER, V, START, ASSISTANT]]
    )
    valid = np.ones(ids.shape, bool)
    media = {
        "image_grid_thw": np.array([[1, 2, 2], [1, 4, 4], [1, 6, 6]]),
        "second_per_grids": np.array([0.5, 2.0]),
        "video_grid_thw": np.array([[2, 2, 2], [1, 2, 2]]),
    }
    found = user_media(ids, valid, user_mask(ids, valid, IDS), MEDIA, media)
    assert found["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert found["video_grid_thw"].tolist() == [[2, 2, 2], [1, 2, 2]]
    assert found["second_per_grids"].tolist() == [0.5, 2.0]


def test_media_are_counted_over_the_rows_of_a_batch():
    ids = np.array([[0, START, USER, I, START, ASSISTANT], [START, SYSTEM, I, START, USER, I]])
    valid = ids != 0
    media = {"image_grid_thw": np.array([[1, 2, 2], [1, 2, 4], [1, 2, 6]])}
    found = user_media(ids, valid, user_mask(ids, valid, IDS), MEDIA, media)
    assert found["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 6]]
    assert found["video_grid_thw"] is None and found["second_per_grids"] is None


# -- rows, with the tiny model's projections -------------------------------------------------------------------------


@pytest.fixture
def conversation(tiny_model):
    """Two rows of ids `[B, T]`, the second padded; the first has a system turn, sound, an answer, another question."""
    config = tiny_model.config
    start, sound = config.im_start_token_id, config.thinker_config.audio_token_id
    user, assistant, system = config.user_token_id, config.assistant_token_id, config.system_token_id
    first = [
        start,
        system,
        20,
        start,
        user,
        21,
        sound,
        sound,
        22,
        start,
        assistant,
        23,
        start,
        user,
        24,
        start,
        assistant,
        30,
    ]
    second = [start, user, 25, 26, start, assistant, 30]
    ids = np.array([first, [0] * (len(first) - len(second)) + second])
    return ids, np.array([[True] * len(first), [n >= len(first) - len(second) for n in range(len(first))]])


@pytest.fixture
def states(tiny_model, conversation):
    ids, valid = conversation
    hidden = np.random.default_rng(2).standard_normal((*ids.shape, tiny_model.config.talker_config.thinker_hidden_size))
    embeds = tiny_model.thinker.get_input_embeddings()(Tensor(ids.astype(np.int32)))
    return PromptStates(ids, valid, embeds, Tensor(hidden.astype(np.float32)))


def plain_rows(model, ids, hidden, text, speaker):
    """One conversation's rows: a loop over its tokens and the table of the opening."""
    config, talker = model.config, model.talker.config
    embed, project = model.thinker.get_input_embeddings(), model.talker.text_projection

    def said(token):
        return project(embed(Tensor([[int(token)]]).astype("int32"))).asnumpy()[0, 0]

    def code(token):
        return model.talker.get_input_embeddings()(Tensor([[token]]).astype("int32")).asnumpy()[0, 0]

    rows, speaks = [], False
    for at, token in enumerate(ids):
        if token == config.im_start_token_id:
            speaks = ids[at + 1] == config.user_token_id
        if speaks and token == config.thinker_config.audio_token_id:
            rows.append(model.talker.hidden_projection(Tensor(hidden[at][None, None])).asnumpy()[0, 0])
        elif speaks:
            rows.append(said(token))
    pad = config.tts_pad_token_id
    for token, codec in zip(
        [config.im_start_token_id, config.assistant_token_id, 30, pad, pad, pad, pad, config.tts_bos_token_id, text],
        [
            None,
            None,
            None,
            talker.codec_nothink_id,
            talker.codec_think_bos_id,
            talker.codec_think_eos_id,
            speaker,
            talker.codec_pad_id,
            talker.codec_bos_id,
        ],
    ):
        rows.append(said(token) + (0 if codec is None else code(codec)))
    return np.stack(rows)


def test_rows_follow_the_layout(tiny_model, conversation, states):
    ids, valid = conversation
    config = tiny_model.config
    turns = [turn + [40 + row] for row, turn in enumerate(assistant_turns(ids, config))]
    speaker = config.talker_config.speaker_id["aiden"]
    hand = TextHandOver(iter(()), turns, config.tts_eos_token_id, config.tts_pad_token_id)
    prompt = build_prompt(tiny_model, states, {}, hand, speaker)
    rows, hidden = prompt.rows.asnumpy(), states.hidden.asnumpy()
    lengths = [6 + 3 + 9, 4 + 9]
    assert prompt.valid.sum(axis=1).tolist() == lengths and prompt.valid[:, -13:].all()
    for row, length in enumerate(lengths):
        expected = plain_rows(tiny_model, ids[row][valid[row]], hidden[row][valid[row]], 40 + row, speaker)
        assert len(expected) == length
        assert np.abs(rows[row, -length:] - expected).max() < 1e-5
    assert not rows[1, : lengths[0] - lengths[1]].any()


def test_positions_count_the_kept_rows_only(tiny_model, conversation, states):
    ids, _ = conversation
    config = tiny_model.config
    turns = assistant_turns(ids, config)
    hand = TextHandOver(iter(()), turns, config.tts_eos_token_id, config.tts_pad_token_id)
    prompt = build_prompt(tiny_model, states, {}, hand, 0)
    assert prompt.positions[:, 0].tolist() == [list(range(18))] * 3
    assert prompt.positions[:, 1, 5:].tolist() == [list(range(13))] * 3
    assert prompt.following.tolist() == [[18], [13]]
