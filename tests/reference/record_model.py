"""Record reference values of the whole model with PyTorch and transformers 5.23.0.

Run from the repository's root, in an environment made from tests/reference/requirements.txt:

    python -m tests.reference.record_model --python /path/to/the/runtime/python

For each geometry the runtime python writes a tiny checkpoint with seeded float32 weights (`ms_omni.tiny`, no PyTorch
there), the reference implementation loads it, and samples of its values go to tests/reference/data/. The tests write
the same checkpoint again and need only those files. `--checkpoints DIR` takes existing folders DIR/<geometry>.

Greedy decisions must not hang on the last bits of a sum: for each case the first seed is taken for which the two best
candidates are at least MARGIN apart at every step; the seed is stored with the values.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.reference import cases, checkpoints
from tests.reference.record_columns import columns
from tests.reference.store import DATA, Recorder

MARGIN = 1e-3
SPEECH_MARGIN = 3e-4
SEEDS = range(200)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the python that has mindspore and ms_omni")
    parser.add_argument("--checkpoints", type=Path, help="folder with one checkpoint per geometry, instead of --python")
    parser.add_argument("--geometry", action="append", choices=checkpoints.GEOMETRIES, help="default: all")
    parser.add_argument("--out", type=Path, default=DATA)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        for geometry in options.geometry or checkpoints.GEOMETRIES:
            folder = (options.checkpoints or Path(scratch)) / geometry
            if options.checkpoints is None:
                command = [options.python, "-m", "tests.reference.checkpoints", geometry, str(folder)]
                subprocess.run(command, check=True)
            record(geometry, folder, options.out)
    return 0


def record(geometry: str, folder: Path, out: Path):
    import torch

    from tests.reference import reference_model

    torch.set_num_threads(2)
    config = json.loads((folder / "config.json").read_text())
    model = reference_model.load(folder)
    with torch.no_grad():
        _record_thinker(model, config).save(out / f"{geometry}_thinker.npz")
        _record_speech(model, config).save(out / f"{geometry}_speech.npz")
    for kind in ("thinker", "speech"):
        path = out / f"{geometry}_{kind}.npz"
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def _record_thinker(model, config: dict) -> Recorder:
    from tests.reference import record_thinker as part

    rec, thinker = Recorder(), model.thinker
    im_end = config["im_end_token_id"]

    def attempt(case):
        ids, logits, gap = part.generate_greedy(thinker, case, im_end)
        if case.name not in part.STEERED_CASES:
            return ids, logits, None, None, gap
        options = part.steering(ids, im_end)
        steered, _, second_gap = part.generate_greedy(thinker, case, **options)
        return ids, logits, options, steered, min(gap, second_gap)

    for name in cases.CASE_NAMES:
        case, seed, (ids, logits, options, steered, gap) = _first_clear(config, name, attempt, MARGIN)
        rec.notes[f"{name}/seed"], rec.notes[f"{name}/margin"] = seed, gap
        rec.add(f"{name}/generated", ids, limit=10**9)
        rec.add(f"{name}/generated_logits", logits[..., columns(logits.shape[-1])], limit=10**9)
        if steered is not None:
            rec.notes[f"{name}/steering"] = options
            rec.add(f"{name}/steered", steered, limit=10**9)
        part.record_forward(rec, thinker, case)
        if name in part.AUDIO_CASES:
            part.record_audio(rec, thinker, case)
        if name in part.VISION_CASES:
            part.record_vision(rec, thinker, case)
        if name in part.LAYER_CASES:
            part.record_layers(rec, thinker, case)
            part.record_continuation(rec, thinker, case)
        print(f"  {name}: seed {seed}, margin {gap:.4f}, tokens {case.inputs['input_ids'].shape}")
    return rec


def _record_speech(model, config: dict) -> Recorder:
    from tests.reference import record_speech as part

    rec = Recorder()
    part.record_talker(rec, model.talker, config)
    part.record_predictor(rec, model.talker, config)
    part.record_code2wav(rec, model.code2wav, config)
    part.record_sampling(rec, model, cases.build_case(config, "text", seed=0))
    for key, arguments in part.variations(config["thinker_config"]["text_config"]["tie_word_embeddings"]):
        case, seed, (*spoken, frames, arguments, gap) = _first_clear(
            config, key.split("+")[0], lambda c, k=key, a=arguments: part.attempt(model, k, c, a), SPEECH_MARGIN
        )
        rec.notes[f"{key}/seed"], rec.notes[f"{key}/margin"], rec.notes[f"{key}/digest"] = seed, gap, case.digest
        rec.notes[f"{key}/arguments"], rec.notes[f"{key}/frames"] = arguments, frames
        part.record_speech(rec, key, *spoken, frames)
        print(f"  speech {key}: seed {seed}, margin {gap:.4f}, frames {frames}")
    return rec


def _first_clear(config: dict, name: str, attempt, enough: float):
    """The first seed whose greedy decisions are all clear. Returns (case, seed, what `attempt` returned)."""
    for seed in SEEDS:
        case = cases.build_case(config, name, seed)
        result = attempt(case)
        if result[-1] > enough:
            return case, seed, result
    raise RuntimeError(f"{name}: no seed below {len(SEEDS)} keeps every greedy decision {enough} clear")


if __name__ == "__main__":
    sys.exit(main())
