"""Two vocoder geometries with seeded weights and codes, alike beside PyTorch and beside MindSpore (numpy only)."""

import math
import zlib

import numpy as np

SEED = 31
FILE = "code2wav.npz"

_COMMON = {"rope_theta": 10000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 8000, "hidden_act": "silu"}
GEOMETRIES = {
    # The published rates, windows and layers made small.
    "published_rates": _COMMON
    | {
        "codebook_size": 64,
        "num_quantizers": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 48,
        "sliding_window": 12,
        "upsampling_ratios": [2, 2],
        "upsample_rates": [8, 5, 4, 3],
        "decoder_dim": 64,
    },
    # No upsampling before the decoder (early steps give nothing), shared kv heads, biases, odd sizes, a low rope base.
    "bare": _COMMON
    | {
        "codebook_size": 30,
        "num_quantizers": 3,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "sliding_window": 5,
        "upsampling_ratios": [],
        "upsample_rates": [3, 1, 2],
        "decoder_dim": 40,
        "attention_bias": True,
        "rope_theta": 500.0,
    },
}
FRAMES = {"published_rates": 40, "bare": 240}
ROWS = 2


def codes(geometry: str) -> np.ndarray:
    """Random codes int64 `[ROWS, Q, FRAMES]`."""
    config = GEOMETRIES[geometry]
    shape = (ROWS, config["num_quantizers"], FRAMES[geometry])
    return np.random.default_rng(SEED).integers(0, config["codebook_size"], shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter by its name: nothing is near zero or one, and activations keep a scale of about one."""
    values = np.random.default_rng([SEED, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("alpha", "beta"):
        return 0.3 * values
    if leaf in ("gamma", "scale"):
        return 0.5 + 0.1 * values
    if "norm" in name and leaf == "weight":
        return 1 + 0.1 * values
    if leaf == "bias":
        return 0.1 * values
    if name.startswith("code_embedding"):
        return 2 * values
    gain = 1.0
    if ".conv2." in name:
        gain = 0.3  # each residual unit adds to the signal
    elif shape[0] == 1:
        gain = 0.15  # the wave itself: a few samples of one geometry reach the limits of [-1, 1]
    return (values * np.float32(gain / math.sqrt(math.prod(shape[1:])))).astype(np.float32)
