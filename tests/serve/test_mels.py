"""Features of sounds that do not depend on what else is asked."""

import copy

import numpy as np
import pytest

from ms_omni import Qwen3OmniMoeProcessor
from ms_omni.serve.media import FeatureCache
from tests.serve.conftest import MINIATURE


@pytest.fixture(scope="module")
def processor():
    return Qwen3OmniMoeProcessor.from_pretrained(MINIATURE)


def clips(*lengths):
    return [np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32) for length in lengths]


def features(processor, sounds):
    found = processor(text="<|audio_pad|>" * len(sounds), audio=sounds)
    lengths = found["feature_attention_mask"].sum(axis=1)
    return [mel[:, :length] for mel, length in zip(found["input_features"], lengths)]


def test_a_sound_is_the_same_beside_longer_ones(processor):
    served = copy.copy(processor)
    served.feature_extractor = FeatureCache(processor.feature_extractor)
    sounds = clips(16_050, 32_000, 8_111)
    together = features(served, sounds)
    for sound, mel in zip(sounds, together):
        (alone,) = features(processor, [sound])
        assert np.array_equal(mel, alone)
    assert not np.array_equal(features(processor, sounds)[0][:, -1:], together[0][:, -1:])  # or there would be no need of it
    assert served.feature_extractor.sampling_rate == 16_000


def test_what_is_kept_is_bounded_and_shared(processor):
    calls = []

    def extractor(sounds, **options):
        calls.append(len(sounds))
        return processor.feature_extractor(sounds, **options)

    kept = FeatureCache(extractor, max_bytes=3 * 128 * 100 * 4)
    options = {"padding": True, "truncation": False, "return_attention_mask": True, "return_tensors": "np"}
    first, *others = clips(16_000, 16_001, 16_002, 16_003)
    for sounds in ([first], [first], others[:2], [first]):
        copy.deepcopy(kept)(sounds, **options)
    assert len(calls) == 3
    kept(others, **options)
    kept([first], **options)
    assert len(calls) == 5  # the third of the others, and the first again
