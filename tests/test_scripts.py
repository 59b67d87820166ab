"""The scripts that users bring along: ours under launch/, and one written for mindone with its imports changed."""

import runpy
import sys
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def run_script(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "launch" / name), run_name="__main__")


def test_understanding_script(monkeypatch, capsys, tiny_checkpoint):
    run_script(monkeypatch, "omni_understanding.py", "--model_name", tiny_checkpoint, "--max_new_tokens", 4)
    assert capsys.readouterr().out.strip()


def test_speech_script(monkeypatch, capsys, tiny_checkpoint, tmp_path):
    target = tmp_path / "said.wav"
    run_script(
        monkeypatch,
        "omni_speech.py",
        "--model_name",
        tiny_checkpoint,
        "--max_new_tokens",
        6,
        "--talker_max_new_tokens",
        6,
        "--output",
        target,
    )
    assert str(target) in capsys.readouterr().out
    said, rate = soundfile.read(target)
    assert rate == 24000 and 0 < len(said) <= 5 * 1920


def test_script_written_for_mindone(tiny_checkpoint):
    """The steps of mindone's example: tensors of the model's dtype go in, and results are asked for `.asnumpy()`."""
    import mindspore as ms

    from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor, process_mm_info

    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        tiny_checkpoint, mindspore_dtype=ms.float32, attn_implementation="eager"
    )
    processor = Qwen3OmniMoeProcessor.from_pretrained(tiny_checkpoint, min_pixels=56 * 56, max_pixels=14 * 14 * 768)
    content = [
        {"type": "image", "image": str(EXAMPLES / "picture.jpg")},
        {"type": "audio", "audio": str(EXAMPLES / "speech.wav")},
        {"type": "text", "text": "What is it?"},
    ]
    conversation = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    audios, images, videos = process_mm_info(conversation, use_audio_in_video=True)
    inputs = processor(
        text=text, audio=audios, images=images, videos=videos, return_tensors="np", padding=True, use_audio_in_video=True
    )
    plain = dict(inputs)
    for key, value in inputs.items():
        if isinstance(value, np.ndarray):
            inputs[key] = ms.tensor(value)
        if inputs[key].dtype == ms.int64:
            inputs[key] = inputs[key].to(ms.int32)
        elif inputs[key].dtype != ms.int32:
            inputs[key] = inputs[key].to(model.dtype)
    options = {"speaker": "Ethan", "thinker_return_dict_in_generate": True, "use_audio_in_video": True}
    options |= {"talker_do_sample": False, "thinker_max_new_tokens": 5, "talker_max_new_tokens": 5}
    text_ids, audio = model.generate(**inputs, **options)
    answer = processor.batch_decode(
        text_ids.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert len(answer) == 1
    wave = audio.reshape(-1).asnumpy()
    assert wave.dtype == np.float32 and wave.size
    again, same = model.generate(**plain, **options)
    assert (again.sequences == text_ids.sequences).all() and (same.reshape(-1) == wave).all()
