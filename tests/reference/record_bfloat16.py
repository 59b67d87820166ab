"""How far PyTorch's bfloat16 is from float32, part by part, on the miniature (PyTorch, transformers 5.23.0).

    python -m tests.reference.record_bfloat16 [--model examples/miniature] [--out FILE]

The same questions are answered and the same sentences spoken in float32, greedily. What float32 said is then read again in
bfloat16, so that one rounding does not make everything after it incomparable; what bfloat16 says by itself is kept beside it.
Values in float32 are stored, of bfloat16 only its distance to them (`bfloat16_cases.distance`).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from tests.reference import bfloat16_cases, reference_model
from tests.reference.record_speech import TalkerTrace
from tests.reference.store import DATA, Recorder, sample

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "examples/miniature", help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=DATA / "bfloat16.npz", help="file to write")
    arguments = parser.parse_args()
    models = [reference_model.load(arguments.model, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    rec = Recorder()
    with torch.no_grad():
        for question in bfloat16_cases.questions(arguments.model):
            record_answer(rec, *models, question)
        for question in bfloat16_cases.questions(arguments.model):
            if question.name in bfloat16_cases.SPOKEN:
                record_speech(rec, *models, question)
    rec.notes["weights"] = bfloat16_cases.checksum(arguments.model)
    rec.save(arguments.out)
    print(json.dumps(rec.notes, indent=1))
    print(f"{arguments.out.name}: {arguments.out.stat().st_size / 1e3:.0f} kB")


def record_answer(rec: Recorder, exact, rounded, question):
    """The greedy answer, the logits at each of its tokens, and how those differ in bfloat16."""
    key = question.name
    ids = _generate(exact.thinker, question)
    logits = _read(exact.thinker, question, ids)
    rec.notes[f"{key}/digest"] = question.digest
    rec.add(f"{key}/ids", ids, limit=10**9)
    add_beside(rec, f"{key}/logits", logits, _read(rounded.thinker, question, ids))
    rec.notes[f"{key}/same_answer"] = _generate(rounded.thinker, question).tolist() == ids.tolist()


def _generate(thinker, question) -> np.ndarray:
    inputs = _inputs(thinker, question)
    ids = thinker.generate(
        **inputs,
        use_audio_in_video=question.use_audio_in_video,
        do_sample=False,
        max_new_tokens=bfloat16_cases.MAX_NEW_TOKENS,
        eos_token_id=question.end_ids,
    )
    return ids[0, inputs["input_ids"].shape[1] :].numpy()


def _read(thinker, question, ids: np.ndarray) -> np.ndarray:
    """Logits [len(ids), V] from which each of the ids is chosen."""
    inputs = _inputs(thinker, question)
    whole = torch.cat([inputs.pop("input_ids"), torch.from_numpy(ids[None, :-1])], dim=1)
    inputs["attention_mask"] = torch.ones_like(whole)
    logits = thinker(input_ids=whole, **inputs, use_audio_in_video=question.use_audio_in_video).logits
    return logits[0, -len(ids) :].float().numpy()


def _inputs(module, question) -> dict[str, torch.Tensor]:
    found = reference_model.tensors(question.inputs)
    return {name: x.to(module.dtype) if x.is_floating_point() else x for name, x in found.items()}


def record_speech(rec: Recorder, exact, rounded, question):
    """One sentence spoken greedily: what the talker read, its logits, the predictor's, the wave; how they differ."""
    key = f"spoken/{question.name}"
    trace = _speak(exact, question)
    prompt, codes = trace.prompt["inputs_embeds"], trace.codes[0]  # [1, P, D], [groups, frames]
    rows = torch.cat([prompt, torch.stack(trace.rows[1:], dim=1)], dim=1)  # [1, P + steps, D]
    positions = torch.cat(trace.positions, dim=-1)
    hidden = _talker_hidden(exact.talker, rows, positions)
    frames = hidden[0, prompt.shape[1] - 1 :][: codes.shape[1]]  # what each frame's codes were predicted from
    rec.add(f"{key}/rows", rows[0], limit=10**9)
    rec.add(f"{key}/positions", positions[:, 0], limit=10**9)
    rec.add(f"{key}/frames", frames, limit=10**9)
    rec.add(f"{key}/codes", codes, limit=10**9, dtype=np.int16)
    beside = {
        "talker": lambda model: model.talker.codec_head(_talker_hidden(model.talker, rows, positions)),
        "predictor": lambda model: _predictor_logits(model.talker, frames, codes),
        "wave": lambda model: model.code2wav(codes[None]),
    }
    for name, compute in beside.items():
        add_beside(rec, f"{key}/{name}", *(compute(model).float().numpy() for model in (exact, rounded)))
    rec.notes[f"{key}/same_codes"] = bfloat16_cases.agreement(codes.numpy(), _speak(rounded, question).codes[0].numpy())


def _speak(model, question) -> TalkerTrace:
    with TalkerTrace(model) as trace:
        model.generate(
            **_inputs(model.thinker, question),
            speaker=bfloat16_cases.SPEAKER,
            use_audio_in_video=question.use_audio_in_video,
            thinker_max_new_tokens=bfloat16_cases.MAX_NEW_TOKENS,
            thinker_do_sample=False,
            talker_max_new_tokens=bfloat16_cases.MAX_FRAMES,
            talker_do_sample=False,
        )
    return trace


def _talker_hidden(talker, rows, positions):
    rows = rows.to(talker.dtype)
    return talker.model(inputs_embeds=rows, position_ids=positions, use_cache=False).last_hidden_state


def _predictor_logits(talker, frames, codes):
    """Logits [groups - 1, frames, V] of every residual head, given the codes before."""
    predictor, codes = talker.code_predictor, codes.T
    rows = [frames[:, None].to(talker.dtype), talker.get_input_embeddings()(codes[:, :1])]
    rows += [
        table(codes[:, 1 + i : 2 + i]) for i, table in enumerate(predictor.get_input_embeddings()[: codes.shape[1] - 2])
    ]
    states = predictor.model(inputs_embeds=torch.cat(rows, dim=1), use_cache=False).last_hidden_state
    return torch.stack([head(states[:, 1 + i]) for i, head in enumerate(predictor.lm_head)])


def add_beside(rec: Recorder, key: str, exact: np.ndarray, rounded: np.ndarray):
    """Float32 values, and how far others are from the ones that are stored."""
    rec.add(key, exact, limit=bfloat16_cases.SAMPLE)
    stored = sample(exact, bfloat16_cases.SAMPLE), sample(rounded, bfloat16_cases.SAMPLE)
    rec.notes[f"{key}/distance"] = bfloat16_cases.distance(*stored)


if __name__ == "__main__":
    main()
