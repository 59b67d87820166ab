"""What a model says, as arrays: the same function asks one process and each of several, so that they can be compared."""

import json
from pathlib import Path

import numpy as np

from tests.reference.cases import build_case

SEED = 3
NEW_TOKENS = 32
DRAWS = 7  # of the talker, one less is spoken
GREEDY = {"talker_do_sample": False, "talker_max_new_tokens": DRAWS}
SAMPLED = {
    "thinker_do_sample": True,
    "thinker_temperature": 1.3,
    "thinker_top_p": 0.9,
    "thinker_repetition_penalty": 1.1,
    "talker_do_sample": True,
    "talker_max_new_tokens": DRAWS,
    "seed": 11,
}


OPTIONS = {
    "max_new_tokens": 5,
    "eos_token_id": [],
    "do_sample": True,
    "top_k": 20,
    "min_p": 0.001,
    "seed": 3,
    "temperature": 2.0,
    "no_repeat_ngram_size": 1,
    "presence_penalty": 0.5,
    "bad_words_ids": [[7], [8, 9]],
    "num_return_sequences": 2,
    "logits_processor": [lambda ids, scores: scores - (np.arange(scores.shape[1]) % 3 == 0) * np.float32(9)],
    "stopping_criteria": [lambda ids, scores: ids[:, -1] % 11 == 0],
    "output_hidden_states": True,
    "output_logits": True,
    "return_dict_in_generate": True,
}


def inputs_of(folder, name):
    """Model inputs of a case of `tests.reference.cases` for a checkpoint folder."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return build_case(config, name, SEED).inputs


def answers(model, folder, names, spoken=(), sampled=()):
    """`{"case.logits" | ".tokens" | ".wave<row>" | ".sampled...": array}`: logits and 32 greedy tokens of every case in
    `names`, speech of those in `spoken`, tokens and speech drawn with a seed of those in `sampled`."""
    found = {}
    for name in names:
        inputs = inputs_of(folder, name)
        found[f"{name}.logits"] = model.thinker(**inputs).logits.asnumpy()
        found[f"{name}.tokens"] = np.asarray(model.thinker.generate(**inputs, max_new_tokens=NEW_TOKENS, eos_token_id=[]))
    result = model.thinker.generate(**inputs_of(folder, names[0]), **OPTIONS)
    found["options.tokens"] = np.asarray(result.sequences)
    found["options.logits"] = np.stack(result.logits)
    found["options.hidden"] = np.stack([states[-1][:, -1] for states in result.hidden_states])
    for kind, cases, options in (("greedy", spoken, GREEDY), ("sampled", sampled, SAMPLED)):
        for name in cases:
            ids, audio = model.generate(**inputs_of(folder, name), thinker_max_new_tokens=6, **options)
            found[f"{name}.{kind}.tokens"] = np.asarray(ids)
            waves = audio if isinstance(audio, (list, tuple)) else [audio]
            for row, wave in enumerate(waves):
                found[f"{name}.{kind}.wave{row}"] = np.asarray(wave).reshape(-1)
    return found


def compare(found, expected, tolerance=1e-4):
    """Ids must be equal, logits and waves within the tolerance."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        if np.issubdtype(value.dtype, np.integer):
            assert (found[key] == value).all(), key
        else:
            assert np.abs(found[key] - value).max(initial=0) <= tolerance, key
