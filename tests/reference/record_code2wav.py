"""Records the reference's vocoder: `python -m tests.reference.record_code2wav` with PyTorch and transformers 5.23.0."""

import numpy as np
import torch

from tests.reference import code2wav_cases as cases
from tests.reference.reference_model import modeling
from tests.reference.store import DATA, Recorder

WAVE_SAMPLES = 6000
CHUNK_FRAMES, CONTEXT_FRAMES = 12, 5


def build(geometry: str) -> "modeling.Qwen3OmniMoeCode2Wav":
    """The reference's vocoder with the seeded weights."""
    keys = dict(cases.GEOMETRIES[geometry])
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": keys.pop("rope_theta")}
    config = modeling.Qwen3OmniMoeCode2WavConfig(**keys)
    config._attn_implementation = "eager"
    vocoder = modeling.Qwen3OmniMoeCode2Wav(config).eval()
    for name, parameter in vocoder.named_parameters():
        parameter.data = torch.from_numpy(cases.weight(name, tuple(parameter.shape)))
    return vocoder


def blocks(vocoder):
    """(key, module) of every block whose output is recorded."""
    for i, layer in enumerate(vocoder.pre_transformer.layers):
        yield f"layer{i}", layer
    yield "norm", vocoder.pre_transformer.norm
    for i, pair in enumerate(vocoder.upsample):
        yield from ((f"upsample{i}/{j}", block) for j, block in enumerate(pair))
    yield from ((f"decoder{i}", block) for i, block in enumerate(vocoder.decoder))


def record(rec: Recorder, geometry: str):
    """Every block's output, the whole wave, and the lossy chunked one."""
    vocoder, codes = build(geometry), torch.from_numpy(cases.codes(geometry))
    handles = [
        block.register_forward_hook(lambda _, __, out, key=key: rec.add(f"{geometry}/{key}", out))
        for key, block in blocks(vocoder)
    ]
    wave = vocoder(codes)
    for handle in handles:
        handle.remove()
    rec.add(f"{geometry}/wave", wave, limit=WAVE_SAMPLES)
    rec.add(f"{geometry}/start", wave[..., :500], limit=10**9)
    rec.add(f"{geometry}/end", wave[..., -500:], limit=10**9)
    rec.add(f"{geometry}/chunked", vocoder.chunked_decode(codes, CHUNK_FRAMES, CONTEXT_FRAMES))
    print(f"{geometry}: wave {tuple(wave.shape)} std {wave.std():.3f} peak {wave.abs().max():.3f}")


def main():
    rec = Recorder()
    with torch.no_grad():
        for geometry in cases.GEOMETRIES:
            record(rec, geometry)
    for key, values in rec.values.items():
        print(f"  {key:28s} {rec.shapes[key]!s:20s} std {np.std(values):.3f}")
    rec.save(DATA / cases.FILE)


if __name__ == "__main__":
    main()
