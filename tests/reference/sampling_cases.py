"""Options of sampling, and logits and texts to try them on; for the recorder and for the tests. numpy only."""

import numpy as np

VOCABULARY, PROMPT = 29, 5
EOS = [3, 17]
CASES = {
    "nothing": {},
    "repetition": {"repetition_penalty": 1.7},
    "bias": {"sequence_bias": [[[4], 2.5], [[6, 4], 3.0], [[7, 8, 4], -9.0], [[6, 9], -1.5]]},
    "ngram 1": {"no_repeat_ngram_size": 1},
    "ngram 2": {"no_repeat_ngram_size": 2},
    "ngram 3": {"no_repeat_ngram_size": 3},
    "bad words": {"bad_words_ids": [[2], [6, 9], [3], [5, 6, 10]]},
    "min new": {"min_new_tokens": 2},
    "forced end": {"forced_eos_token_id": [17], "max_new_tokens": 3},
    "decay": {"exponential_decay_length_penalty": (1, 1.4)},
    "suppress": {"suppress_tokens": [0, 28], "begin_suppress_tokens": [1, 2]},
    "invalid": {"remove_invalid_values": True, "suppress_tokens": [5]},
    "temperature": {"temperature": 0.6},
    "top h": {"top_h": 0.6},
    "top k": {"top_k": 6},
    "top p": {"top_p": 0.7},
    "min p": {"min_p": 0.1},
    "typical": {"typical_p": 0.6},
    "epsilon": {"epsilon_cutoff": 0.05},
    "eta": {"eta_cutoff": 0.1},
    "renormalize": {"renormalize_logits": True, "top_k": 4},
    "many": {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[6, 9], [12]],
        "sequence_bias": [[[6, 4], 2.0]],
        "min_new_tokens": 2,
        "exponential_decay_length_penalty": (1, 1.2),
        "temperature": 1.5,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.02,
        "typical_p": 0.98,
        "epsilon_cutoff": 0.001,
        "eta_cutoff": 0.002,
        "renormalize_logits": True,
    },
}


def texts() -> np.ndarray:
    """Prompts and what followed, int64 `[3, PROMPT + 3]`; row 0 has one padding token, 1, in front."""
    return np.array([[1, 5, 6, 9, 5, 6, 9, 5], [7, 8, 4, 7, 8, 4, 7, 8], [5, 6, 10, 4, 6, 4, 5, 6]])


def logits() -> np.ndarray:
    """Float32 `[steps, 3, VOCABULARY]`, for 0, 1, 2 and 3 new tokens."""
    return np.random.default_rng(8).normal(0, 2, (4, 3, VOCABULARY)).astype(np.float32)
