"""The rows that the talker reads first, against the layout written out turn by turn."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.generation.talker_prompt import assistant_turns, talker_context, talker_rows, user_mask, user_media

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


@pytest.fixture(params=[0, 1])
def ids(request, tiny_model):
    """Of a conversation with a system turn, sound, an answer and another question, and of a short one; both end with a first word."""
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
    return np.array([first, [start, user, 25, 26, start, assistant, 30]][request.param])


@pytest.fixture
def states(tiny_model, ids):
    """Embeddings and hidden states `[T, D]` of the thinker."""
    width = tiny_model.config.talker_config.thinker_hidden_size
    hidden = np.random.default_rng(2).standard_normal((len(ids), width)).astype(np.float32)
    return tiny_model.thinker.get_input_embeddings()(Tensor(ids.astype(np.int32))), Tensor(hidden)


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


@pytest.mark.parametrize("apart", [False, True], ids=["here", "in another process"])
def test_rows_follow_the_layout(apart, tiny_model, ids, states):
    """Speech that is made elsewhere is given arrays."""
    config = tiny_model.config
    heard = talker_context(config, ids, {}, *states)
    if apart:
        text, media = (part if part is None else part.asnumpy() for part in (heard.text, heard.media))
        heard = replace(heard, text=text, media=media)
    (turn,) = assistant_turns(ids[None], config)
    embed = tiny_model.thinker.get_input_embeddings()
    said = [*turn, 40, config.tts_bos_token_id, config.tts_pad_token_id]
    *words, begin, silence = embed(Tensor(np.array(said, np.int32))).asnumpy()
    speaker = config.talker_config.speaker_id["aiden"]
    rows = talker_rows(tiny_model.talker, heard, words, (begin, silence), speaker).asnumpy()
    expected = plain_rows(tiny_model, ids, states[1].asnumpy(), 40, speaker)
    assert rows.shape == expected.shape == ({18: 6 + 3 + 9, 7: 4 + 9}[len(ids)], expected.shape[1])
    assert np.abs(rows - expected).max() < 1e-5


def test_positions_count_the_kept_rows_only(tiny_model, ids, states):
    heard = talker_context(tiny_model.config, ids, {}, *states)
    count = {18: 18, 7: 13}[len(ids)]
    assert heard.positions.tolist() == [list(range(count))] * 3
    assert heard.following == count
