"""How far PyTorch's bfloat16 is from its float32, part by part, on the miniature (PyTorch, transformers 5.23.0).

    python -m tests.reference.record_bfloat16 [--model examples/miniature] [--out FILE]

Random text and codes, and the questions that lie beside the miniature: what float32 answers is read again in bfloat16, so that
one other token does not make everything after it incomparable. Written are distances (`bfloat16_cases.distance`), not values.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from tests.reference import bfloat16_cases, reference_model

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "examples/miniature", help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=bfloat16_cases.FILE, help="file to write")
    arguments = parser.parse_args()
    models = [reference_model.load(arguments.model, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    inputs = bfloat16_cases.random_inputs(arguments.model)
    with torch.no_grad():
        parts = [part(model, inputs) for part in (_thinker, _talker, _predictor, _vocoder) for model in models]
        found = dict(
            zip(("thinker", "talker", "predictor", "vocoder"), map(bfloat16_cases.distance, parts[::2], parts[1::2]))
        )
        asked = bfloat16_cases.questions(arguments.model)
        found["questions"] = {question.name: _question(*models, question) for question in asked}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(arguments.out.read_text())


def _thinker(model, inputs) -> np.ndarray:
    ids = torch.from_numpy(inputs.text)
    return model.thinker(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().numpy()


def _talker(model, inputs) -> np.ndarray:
    talker, rows = model.talker, torch.from_numpy(inputs.rows).to(model.dtype)
    positions = torch.arange(rows.shape[1]).expand(3, *rows.shape[:2])
    states = talker.model(inputs_embeds=rows, position_ids=positions, use_cache=False).last_hidden_state
    return talker.codec_head(states).float().numpy()


def _predictor(model, inputs) -> np.ndarray:
    """Logits `[Q - 1, ROWS, V]` of every residual head, given the codes before."""
    predictor, codes = model.talker.code_predictor, torch.from_numpy(inputs.codes)
    tables = [model.talker.get_input_embeddings(), *predictor.get_input_embeddings()]
    rows = [torch.from_numpy(inputs.hidden).to(model.dtype)]
    rows += [table(codes[:, index : index + 1]) for index, table in enumerate(tables[: codes.shape[1] - 1])]
    states = predictor.model(inputs_embeds=torch.cat(rows, dim=1), use_cache=False).last_hidden_state
    return torch.stack([head(states[:, 1 + i]) for i, head in enumerate(predictor.lm_head)]).float().numpy()


def _vocoder(model, inputs) -> np.ndarray:
    return model.code2wav(torch.from_numpy(inputs.frames)).float().numpy()


def _question(exact, rounded, question) -> dict:
    ids = _answer(exact.thinker, question)
    distance = bfloat16_cases.distance(*(_logits(model.thinker, question, ids) for model in (exact, rounded)))
    same = _answer(rounded.thinker, question) == ids
    return {"digest": question.digest, "ids": ids, "distance": distance, "same_answer": same}


def _answer(thinker, question) -> list[int]:
    inputs = _inputs(thinker, question)
    ids = thinker.generate(
        **inputs,
        use_audio_in_video=question.use_audio_in_video,
        do_sample=False,
        max_new_tokens=bfloat16_cases.MAX_NEW_TOKENS,
        eos_token_id=question.end_ids,
    )
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def _logits(thinker, question, ids: list[int]) -> np.ndarray:
    """Logits `[T, V]` at every token of prompt and answer."""
    inputs = _inputs(thinker, question)
    whole = torch.cat([inputs.pop("input_ids"), torch.tensor([ids[:-1]])], dim=1)
    inputs["attention_mask"] = torch.ones_like(whole)
    return thinker(input_ids=whole, **inputs, use_audio_in_video=question.use_audio_in_video).logits[0].float().numpy()


def _inputs(module, question) -> dict[str, torch.Tensor]:
    found = reference_model.tensors(question.inputs)
    return {name: x.to(module.dtype) if x.is_floating_point() else x for name, x in found.items()}


if __name__ == "__main__":
    main()
