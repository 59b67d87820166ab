"""A prompt in chunks is the prompt in one pass: logits, states, router logits, caches; all media, padding, continued."""

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.modeling import prefill
from ms_omni.modeling.audio_encoder import audio_token_count
from ms_omni.modeling.cache import causal_mask
from ms_omni.modeling.prefill import Deepstack

RNG = np.random.default_rng(8)


def chunked(monkeypatch, size):
    monkeypatch.setattr(prefill, "CHUNK_TOKENS", size)


def close(result, expected, rows=slice(None)):
    result, expected = result.asnumpy()[rows], expected.asnumpy()[rows]
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 2e-5 * np.abs(expected).max()


def media_prompt(thinker):
    """Two rows, the second padded on the left: text, a picture of 4 x 6 patches, text, and sound."""
    config = thinker.config
    vision = config.vision_config
    grid = np.array([[1, 4, 6], [1, 4, 6]])
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    frames = 230
    sound = audio_token_count(frames, config.audio_config.n_window)
    row = [
        5,
        6,
        7,
        config.vision_start_token_id,
        *[config.image_token_id] * 6,
        config.vision_end_token_id,
        8,
        9,
        config.audio_start_token_id,
        *[config.audio_token_id] * sound,
        config.audio_end_token_id,
        10,
        11,
    ]
    ids = np.array([[4, *row], [0, *row]])
    mask = np.ones_like(ids)
    mask[1, 0] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "image_grid_thw": grid,
        "pixel_values": RNG.standard_normal((48, patch)).astype(np.float32),
        "input_features": RNG.standard_normal((2, config.audio_config.num_mel_bins, frames)).astype(np.float32),
        "feature_attention_mask": np.ones((2, frames), np.int64),
    }


@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_all_media_and_padding(size, tiny_model, monkeypatch):
    thinker = tiny_model.thinker
    inputs = media_prompt(thinker)
    options = {"output_hidden_states": True, "output_router_logits": True}
    whole = thinker(**inputs, **options, use_cache=False)
    chunked(monkeypatch, size)
    pieces = thinker(**inputs, **options)
    real = inputs["attention_mask"] == 1  # results for padding are not used
    for result, expected in zip((pieces.logits, *pieces.hidden_states), (whole.logits, *whole.hidden_states), strict=True):
        close(result, expected, real)
    for result, expected in zip(pieces.router_logits, whole.router_logits, strict=True):
        close(result, expected, real.reshape(-1))
    assert pieces.past_key_values.length == inputs["input_ids"].shape[1]


def test_a_continued_conversation(tiny_model, monkeypatch):
    ids = RNG.integers(5, 200, (1, 60))
    whole = tiny_model.thinker(input_ids=ids, use_cache=False)
    chunked(monkeypatch, 8)
    first = tiny_model.thinker(input_ids=ids[:, :21])
    second = tiny_model.thinker(input_ids=ids[:, 21:], past_key_values=first.past_key_values, logits_to_keep=10)
    close(second.logits, whole.logits[:, -10:])


def test_no_mask_over_everything_exists(tiny_model, monkeypatch):
    chunked(monkeypatch, 32)
    shapes = []
    monkeypatch.setattr(
        "ms_omni.modeling.cache.causal_mask",
        lambda valid, new, real=causal_mask: shapes.append((valid.shape, new)) or real(valid, new),
    )
    tiny_model.thinker(input_ids=RNG.integers(5, 200, (1, 300)), logits_to_keep=1)
    assert len(shapes) == 10 and all(shape[1] <= 32 and new <= 32 for shape, new in shapes)


def test_generation_in_chunks(tiny_model, monkeypatch):
    ids = RNG.integers(5, 200, (1, 40))
    options = {"max_new_tokens": 5, "eos_token_id": [], "return_audio": False}
    expected, _ = tiny_model.generate(input_ids=ids, **options)
    chunked(monkeypatch, 9)
    result, _ = tiny_model.generate(input_ids=ids, **options)
    assert np.array_equal(result, expected)


def test_deepstack_of_a_piece():
    features = [Tensor(np.arange(8, dtype=np.float32).reshape(4, 2) + 1)]
    deepstack = Deepstack([(np.array([1, 3, 6, 7]), features)], 5)  # row 0: columns 1, 3; row 1: columns 1, 2
    x = Tensor(np.zeros((2, 2, 2), np.float32))
    result = deepstack.between(1, 3)(0, x).asnumpy()
    assert result.tolist() == [[[1, 2], [0, 0]], [[5, 6], [7, 8]]]
    assert deepstack.between(1, 3)(1, x) is x
    assert deepstack.between(4, 5) is None
