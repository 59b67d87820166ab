"""`talker.generate` with the rows that the reference's script would make speaks what `model.generate` speaks."""

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.errors import InputError
from tests.voices import codes_of, observed_speech

FRAMES, WORDS = 6, 3


@pytest.fixture(scope="module")
def spoken(tiny_model, ask):
    """Arguments of `talker.generate` for a batch, and the codes `[B, Q, n]` that `model.generate` made of it."""
    config, embed = tiny_model.config, tiny_model.thinker.get_input_embeddings()
    with observed_speech() as voices:
        ids, _ = tiny_model.generate(
            **ask("hello world", "yes"),
            max_new_tokens=WORDS,
            eos_token_id=[],
            talker_do_sample=False,
            talker_max_new_tokens=FRAMES + 1,
            talker_eos_token_id=[],
        )

    def said(ids):
        return tiny_model.talker.text_projection(embed(Tensor(np.array(ids, np.int32))))

    vocabulary = config.talker_config.text_config.vocab_size
    lengths = [len(voice.rows) for voice in voices]
    rows = np.stack([np.pad(voice.rows.asnumpy(), ((max(lengths) - len(voice.rows), 0), (0, 0))) for voice in voices])
    valid = np.arange(max(lengths)) >= max(lengths) - np.array(lengths)[:, None]
    rest = np.concatenate([np.asarray(ids)[:, 1 - WORDS :], np.full((2, 1), config.tts_eos_token_id)], axis=1)
    arguments = {
        "inputs_embeds": Tensor(rows),
        "attention_mask": valid.astype(np.int64),
        "trailing_text_hidden": said(rest),
        "tts_pad_embed": said([[config.tts_pad_token_id]]).asnumpy(),
        "talker_input_ids": np.full(valid.shape, config.tts_pad_token_id),
        "suppress_tokens": list(range(max(vocabulary - 1024, 0), vocabulary)),
        "repetition_penalty": 1.05,
        "max_new_tokens": FRAMES + 1,
    }
    return arguments, np.stack([codes_of(voice).T for voice in voices])


def test_the_same_codes(tiny_model, spoken):
    arguments, expected = spoken
    result = tiny_model.talker.generate(
        **arguments, eos_token_id=[], return_dict_in_generate=True, output_hidden_states=True, use_cache=True
    )
    residuals = [states[-1] for states in result.hidden_states if states[-1] is not None]
    assert np.array_equal(np.stack(residuals, axis=-1), expected) and result.hidden_states[0][-1] is None
    assert result.sequences.shape == (2, FRAMES + 1)
    assert np.array_equal(result.sequences[:, :-1], expected[:, 0])
    prompt, step = (states[0][-1] for states in result.hidden_states[:2])
    assert prompt.shape == arguments["inputs_embeds"].shape and step.shape[:2] == (2, 1)


def test_rows_end_on_their_own_and_are_padded(tiny_model, spoken):
    arguments, expected = spoken
    end = int(expected[0, 0, 2])
    ids = tiny_model.talker.generate(**arguments, eos_token_id=end, pad_token_id=3).tolist()
    for row, codes in zip(ids, expected[:, 0].tolist()):
        stop = codes.index(end) + 1 if end in codes else len(row)
        assert row[:stop] == (codes + row[len(codes) :])[:stop] and set(row[stop:]) <= {3}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"trailing_text_hidden": None}, "talker.generate needs trailing_text_hidden.*model.generate"),
        ({"trailing_text_hidden": np.zeros((2, 1, 3))}, "trailing_text_hidden has shape"),
        ({"tts_pad_embed": np.full((1, 1, 3), np.nan)}, "tts_pad_embed"),
        ({"attention_mask": np.ones((2, 3))}, "attention_mask has shape"),
        ({"talker_input_ids": [[1]]}, "talker_input_ids has shape"),
        ({"temperature": -1}, "temperature is -1"),
        ({"foo": 1}, "no argument 'foo'"),
        ({"num_beams": 2}, "beam search is not built"),
        ({"suppress_tokens": [10**6]}, "the vocabulary has"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_what_it_refuses(change, said, tiny_model, spoken):
    with pytest.raises(InputError, match=said):
        tiny_model.talker.generate(**{**spoken[0], **change})
