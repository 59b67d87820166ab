"""Sounds and pictures as other programs for this family spell them, and temperature 0."""

import base64
import os
import sys

import numpy as np
import soundfile as sf

from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor, process_mm_info

folder = sys.argv[1]
samples = os.path.join(folder, "samples")
processor = Qwen3OmniMoeProcessor.from_pretrained(folder)
model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, enable_audio_output=True)

with open(os.path.join(samples, "digits.wav"), "rb") as file:
    wav = file.read()
with open(os.path.join(samples, "star.jpg"), "rb") as file:
    jpg = file.read()
wave, rate = sf.read(os.path.join(samples, "digits.wav"), dtype="float32")
whole = (wave * 32767).astype(np.int16)


def encoded(data):
    return base64.b64encode(data).decode()


def answer(item, question, **options):
    conversation = [{"role": "user", "content": [*([item] if item else []), {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    audios, images, videos = process_mm_info(conversation, use_audio_in_video=False)
    inputs = processor(text=text, audio=audios, images=images, videos=videos, return_tensors="pt", padding=True)
    ids, _ = model.generate(**inputs, **{"return_audio": False, **options})
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


sounds = {
    "OpenAI": {"type": "input_audio", "input_audio": {"data": encoded(wav), "format": "wav"}},
    "DashScope": {"type": "input_audio", "input_audio": {"data": "data:;base64," + encoded(wav)}},
    "base64": {"type": "audio", "audio": encoded(wav)},
    "datasets decoded": {"type": "audio", "audio": {"array": wave, "sampling_rate": rate, "path": None}},
    "datasets stored": {"type": "audio", "audio": {"bytes": wav, "path": None}},
    "Gradio": {"type": "audio", "audio": (rate, whole)},
    "stereo": {"type": "audio", "audio": np.stack([wave, wave], 1)},
    "audio_url": {"type": "audio_url", "audio_url": {"url": os.path.join(samples, "digits.wav")}},
    "keys that are None": {"type": "audio", "audio": os.path.join(samples, "digits.wav"), "text": None, "image": None},
}
for name, item in sounds.items():
    print(f"{name}:", answer(item, "What number do you hear?"))
pictures = {
    "image_url": {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + encoded(jpg)}},
    "input_image": {"type": "input_image", "image_url": "data:image/jpeg;base64," + encoded(jpg)},
    "base64 picture": {"type": "image", "image": encoded(jpg)},
    "datasets picture": {"type": "image", "image": {"bytes": jpg, "path": None}},
}
for name, item in pictures.items():
    print(f"{name}:", answer(item, "What do you see?"))

for options in (
    {"temperature": 0.0, "do_sample": False},
    {"thinker_temperature": 0.0},
    {"temperature": 0, "do_sample": True},
    {"return_audio": True, "talker_temperature": 0},
):
    print("greedy:", answer(None, "What is 4 + 5?", **options))
