"""Code2wav against the reference: every block and the whole wave; and the reference's lossy chunks, rebuilt."""

import numpy as np
import pytest

from tests.parity.watching import watching
from tests.reference.random_rows import vocoder_codes

WAVE_TOLERANCE = 2e-3


def test_blocks_and_wave(model, speech_values, config, close):
    vocoder = model.code2wav
    cells = {f"layer{i}": layer for i, layer in enumerate(vocoder.pre_transformer.layers)}
    cells |= {"pre_transformer_norm": vocoder.pre_transformer.norm}
    cells |= {f"upsample{i}/{j}": block for i, pair in enumerate(vocoder.upsample) for j, block in enumerate(pair)}
    cells |= {f"decoder{i}": block for i, block in enumerate(vocoder.decoder)}
    with watching(**cells) as seen:
        wave = _array(vocoder.decode(vocoder_codes(config)))
    close(speech_values, "code2wav/embedding", seen["layer0.in"][0], "code2wav: embedding")
    for name in cells:
        part = "transformer" if name.startswith(("layer", "pre_")) else name.rstrip("0123456789/")
        close(speech_values, f"code2wav/{name}", seen[name][0], f"code2wav: {part}", relative=1e-4)
    close(speech_values, "code2wav/wave", wave, "code2wav: wave", relative=1e-4)
    loudest, _ = speech_values.notes["code2wav/loudness"]
    assert np.abs(wave).max() == pytest.approx(loudest, rel=1e-3)


def test_chunks_of_the_reference(model, speech_values, config, close):
    """Decoding chunks apart, each with five frames of left context, is what the reference does: it loses samples."""
    vocoder, codes = model.code2wav, vocoder_codes(config)
    samples_per_frame = int(
        np.prod([*config["code2wav_config"]["upsample_rates"], *config["code2wav_config"]["upsampling_ratios"]])
    )
    parts = []
    for start in range(0, codes.shape[-1], 12):
        context = min(start, 5)
        part = _array(vocoder.decode(codes[..., start - context : start + 12]))
        parts.append(part[..., context * samples_per_frame :])
    chunked = np.concatenate(parts, axis=-1)
    close(speech_values, "code2wav/chunked", chunked, "code2wav: chunks of the reference", relative=1e-4)
    assert chunked.shape[-1] < _array(vocoder.decode(codes)).shape[-1]


def _array(value):
    return value.asnumpy() if hasattr(value, "asnumpy") else np.asarray(value)
