"""The reference's answers to the miniature's 200 fixed questions (PyTorch, transformers 5.23.0, float32, greedy).

    python -m tests.reference.record_miniature [--model examples/miniature] [--out FILE]

Each conversation is answered alone. Prompts and media features are made by this package's processor, which has tests of
its own against the reference's.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from examples.miniature import held_out
from tests.reference import reference_model

ROOT = Path(__file__).resolve().parents[2]
MAX_NEW_TOKENS = 32


@torch.no_grad()
def answers(folder, questions) -> list[str]:
    """What the reference says to each question."""
    from ms_omni.input.processor import Qwen3OmniMoeProcessor

    thinker = reference_model.load(folder).thinker
    processor = Qwen3OmniMoeProcessor.from_pretrained(folder)
    ends = json.loads((Path(folder) / "generation_config.json").read_text()).get("eos_token_id")
    found = []
    for question in questions:
        woven = question.use_audio_in_video
        inputs = processor.apply_chat_template(
            [question.messages], tokenize=True, return_dict=True, add_generation_prompt=True, use_audio_in_video=woven
        )
        arrays = {key: np.asarray(value) for key, value in inputs.items()}
        ids = thinker.generate(
            **reference_model.tensors(arrays),
            use_audio_in_video=woven,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=ends,
        )
        new = ids[:, arrays["input_ids"].shape[1] :].numpy()
        found.append(processor.batch_decode(new, skip_special_tokens=True)[0].strip())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "examples/miniature", help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=held_out.ANSWERS, help="file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        questions = held_out.fixed_questions(Path(folder))
        said = answers(arguments.model, questions)
    by_task: dict[str, list[str]] = {}
    for question, text in zip(questions, said):
        by_task.setdefault(question.task, []).append(text)
    right = {task: sum(item.answer == text for item, text in zip(questions, said) if item.task == task) for task in by_task}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "reference": f"transformers {reference_model.EXPECTED_VERSION}",
        "weights": held_out.checksum(arguments.model),
        "right": right,
        "answers": by_task,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(" ".join(f"{task} {count}/{len(by_task[task])}" for task, count in right.items()))


if __name__ == "__main__":
    main()
