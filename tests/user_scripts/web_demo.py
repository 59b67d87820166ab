"""The calls of Qwen3-Omni's web demo, without its pages: a history that grows, sampling, speech as a WAV, streamed text."""

import io
import mimetypes
import os
import sys
from argparse import ArgumentParser
from threading import Thread

import numpy as np
import soundfile as sf
from transformers import TextIteratorStreamer

from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor, process_mm_info

VOICES = ["Chelsie", "Ethan"]


def load(args):
    if args.flash_attn2:
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            args.checkpoint_path, dtype="auto", attn_implementation="flash_attention_2", device_map="auto"
        )
    else:
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(args.checkpoint_path, device_map="auto", dtype="auto")
    return model, Qwen3OmniMoeProcessor.from_pretrained(args.checkpoint_path)


def format_history(history, system_prompt):
    """Gradio's messages, in which a file is a tuple with its path, as the conversation that the model reads."""
    messages, waiting = [], []
    if system_prompt:
        messages.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    for item in history:
        if item["role"] != "user":
            messages.append({"role": "user", "content": waiting})
            messages.append({"role": item["role"], "content": [{"type": "text", "text": item["content"]}]})
            waiting = []
        elif isinstance(item["content"], str):
            waiting.append({"type": "text", "text": item["content"]})
        else:
            for path in item["content"]:
                kind = mimetypes.guess_type(path)[0].partition("/")[0]
                waiting.append({"type": kind, kind: path})
    if waiting:
        messages.append({"role": "user", "content": waiting})
    return messages


def prepare(messages):
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    audios, images, videos = process_mm_info(messages, use_audio_in_video=True)
    inputs = processor(
        text=text, audio=audios, images=images, videos=videos, return_tensors="pt", padding=True, use_audio_in_video=True
    )
    return inputs.to(model.device).to(model.dtype)


def predict(messages, voice_choice=VOICES[0], temperature=0.7, top_p=0.8, top_k=20):
    inputs = prepare(messages)
    text_ids, audio = model.generate(
        **inputs,
        thinker_return_dict_in_generate=True,
        thinker_max_new_tokens=32768,
        thinker_do_sample=True,
        thinker_temperature=temperature,
        thinker_top_p=top_p,
        thinker_top_k=top_k,
        speaker=voice_choice,
        use_audio_in_video=True,
    )
    response = processor.batch_decode(
        text_ids.sequences[:, inputs["input_ids"].shape[1] :],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )[0]
    yield {"type": "text", "data": response}
    if audio is not None:
        audio = np.array(audio.reshape(-1).float().detach().cpu().numpy() * 32767).astype(np.int16)
        wav_io = io.BytesIO()
        sf.write(wav_io, audio, samplerate=24000, format="WAV")
        yield {"type": "audio", "data": wav_io.getvalue()}


def stream_text(messages):
    """Newer demos: the text appears while it is written."""
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    options = {**prepare(messages), "streamer": streamer, "return_audio": False, "use_audio_in_video": True}
    worker = Thread(target=model.generate, kwargs=options, daemon=True)
    worker.start()
    text = ""
    for piece in streamer:
        text += piece
        yield text
    worker.join()


parser = ArgumentParser()
parser.add_argument("-c", "--checkpoint-path", required=True)
parser.add_argument("--flash-attn2", action="store_true")
args = parser.parse_args(["-c", sys.argv[1], "--flash-attn2"])
model, processor = load(args)
samples = os.path.join(args.checkpoint_path, "samples")

history = []
turns = (
    ("What is 4 + 5?",),
    (os.path.join(samples, "star.jpg"), "What do you see?"),
    (os.path.join(samples, "digits.wav"), "What number do you hear?"),
)
for voice, (*files, words) in zip((VOICES[0], VOICES[1], VOICES[0]), turns):
    if files:
        history.append({"role": "user", "content": tuple(files)})
    history.append({"role": "user", "content": words})
    history.append({"role": "assistant", "content": ""})
    for chunk in predict(format_history(history[:-1], "You are a helpful assistant."), voice, temperature=0.1):
        if chunk["type"] == "text":
            history[-1]["content"] = chunk["data"]
            print(voice, "wrote:", chunk["data"])
        else:
            print(voice, "said:", sf.info(io.BytesIO(chunk["data"])).samplerate, len(chunk["data"]) > 4800)

seen = list(stream_text(format_history(history[-3:-1], "")))
print("streamed:", seen[-1].strip(), len(seen) > 1)
