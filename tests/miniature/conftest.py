"""The miniature that lies in the repository, loaded once, and the 200 questions that the reference was asked as well."""

import json
from pathlib import Path

import pytest

from examples.miniature import held_out

ROOT = Path(__file__).resolve().parents[2]
MINIATURE = ROOT / "examples/miniature"


@pytest.fixture(scope="session")
def miniature():
    """The checkpoint's folder. It is part of the repository: a clone without it is broken, and these tests fail."""
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (MINIATURE / name).is_file()]
    if missing:
        pytest.fail(f"{MINIATURE} lacks {', '.join(missing)}; git checkout restores the miniature checkpoint")
    return MINIATURE


@pytest.fixture(scope="session")
def recorded():
    """What transformers answered to the fixed questions (tests/reference/record_miniature.py)."""
    return json.loads(held_out.ANSWERS.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def processor(miniature):
    from ms_omni import Qwen3OmniMoeProcessor

    return Qwen3OmniMoeProcessor.from_pretrained(miniature)


@pytest.fixture(scope="session")
def model(miniature):
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(miniature, compile_steps=False, progress=False)


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """The fixed questions, in the order of the recorded answers."""
    return held_out.fixed_questions(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def ask(model, processor):
    """`ask(questions)` -> texts: greedy answers to questions that stand in one batch (all with sound in video, or none)."""

    def answer(asked):
        woven = asked[0].use_audio_in_video
        inputs = processor.apply_chat_template(
            [item.messages for item in asked],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            use_audio_in_video=woven,
        )
        ids, _ = model.generate(**inputs, use_audio_in_video=woven, return_audio=False, max_new_tokens=32)
        texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    return answer


@pytest.fixture(scope="session")
def said(ask, questions):
    """This package's answers to the fixed questions, asked in batches of ten."""
    texts = [None] * len(questions)
    for woven in (False, True):
        chosen = [index for index, item in enumerate(questions) if item.use_audio_in_video is woven]
        for start in range(0, len(chosen), 10):
            part = chosen[start : start + 10]
            for index, text in zip(part, ask([questions[index] for index in part])):
                texts[index] = text
    return texts
