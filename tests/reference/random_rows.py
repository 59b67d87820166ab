"""Seeded random inputs of the talker's and the vocoder's cells; the recorder and the tests draw the same ones."""

import numpy as np

CODE_FRAMES = 30  # longer than the sliding window of both geometries
_ROWS, _PREDICTOR, _CODES = 1000, 1001, 1002


def talker_rows(config: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows for the projections [7, D_thinker], rows for the decoder [1, 9, D], positions [3, 1, 9] float32.

    The three axes differ from the fourth row on, so that a one-dimensional rotation would show.
    """
    rng, talker = np.random.RandomState(_ROWS), config["talker_config"]
    rows = rng.standard_normal((7, talker["thinker_hidden_size"])).astype(np.float32)
    embeds = rng.standard_normal((1, 9, talker["text_config"]["hidden_size"])).astype(np.float32)
    positions = np.tile(np.arange(9, dtype=np.float32), (3, 1, 1))
    positions[0, 0, 3:] += 2.5
    positions[2, 0, 5:] += 4
    return rows, embeds, positions


def predictor_rows(config: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Talker hidden states [3, 1, D], codes of group 0 [3, 1] and of the groups 1 .. n-2 [3, n-2]."""
    rng, talker = np.random.RandomState(_PREDICTOR), config["talker_config"]
    hidden = rng.standard_normal((3, 1, talker["text_config"]["hidden_size"])).astype(np.float32)
    codes = rng.randint(0, talker["code_predictor_config"]["vocab_size"], (3, talker["num_code_groups"] - 1))
    return hidden, codes[:, :1], codes[:, 1:]


def vocoder_codes(config: dict) -> np.ndarray:
    """Codes [2, quantizers, CODE_FRAMES]."""
    vocoder = config["code2wav_config"]
    shape = (2, vocoder["num_quantizers"], CODE_FRAMES)
    return np.random.RandomState(_CODES).randint(0, vocoder["codebook_size"], shape)
