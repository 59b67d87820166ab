"""What Qwen3-Omni's cookbooks share: a loader, `run_model`, and their kinds of messages, a function call among them."""

import json
import os
import sys
import warnings

import numpy as np

from ms_omni import Qwen3OmniMoeProcessor, process_mm_info

warnings.filterwarnings("ignore")

MODEL_PATH = sys.argv[1]
SAMPLES = os.path.join(MODEL_PATH, "samples")
USE_TRANSFORMERS = True
TRANSFORMERS_USE_FLASH_ATTN2 = True


def _load_model_processor():
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    if TRANSFORMERS_USE_FLASH_ATTN2:
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            MODEL_PATH, dtype="auto", attn_implementation="flash_attention_2", device_map="auto"
        )
    else:
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(MODEL_PATH, device_map="auto", dtype="auto")
    return model, Qwen3OmniMoeProcessor.from_pretrained(MODEL_PATH)


def run_model(model, processor, messages, return_audio, use_audio_in_video, **sampling):
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    audios, images, videos = process_mm_info(messages, use_audio_in_video=use_audio_in_video)
    inputs = processor(
        text=text,
        audio=audios,
        images=images,
        videos=videos,
        return_tensors="pt",
        padding=True,
        use_audio_in_video=use_audio_in_video,
    )
    inputs = inputs.to(model.device).to(model.dtype)
    options = {"thinker_max_new_tokens": 8192, "thinker_do_sample": False, **sampling}
    text_ids, audio = model.generate(
        **inputs,
        thinker_return_dict_in_generate=True,
        speaker="Ethan",
        use_audio_in_video=use_audio_in_video,
        return_audio=return_audio,
        **options,
    )
    response = processor.batch_decode(
        text_ids.sequences[:, inputs["input_ids"].shape[1] :],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )[0]
    if audio is not None:
        audio = np.array(audio.reshape(-1).detach().cpu().numpy() * 32767).astype(np.int16)
    return response, audio


def user(*content):
    return [{"role": "user", "content": list(content)}]


def text(words):
    return {"type": "text", "text": words}


def file(kind, name):
    return {"type": kind, kind: os.path.join(SAMPLES, name)}


model, processor = _load_model_processor()

# Object grounding, OCR, image math: a picture and a prompt
response, audio = run_model(model, processor, user(file("image", "star.jpg"), text("What do you see?")), False, True)
print("image:", response, audio)

# Speech recognition and translation: a sound and a prompt
response, _ = run_model(model, processor, user(file("audio", "digits.flac"), text("Which digits do you hear?")), False, True)
print("audio:", response)

# Captioner: a sound alone, sampled
response, _ = run_model(
    model,
    processor,
    user(file("audio", "digits.wav")),
    False,
    False,
    thinker_do_sample=True,
    thinker_temperature=0.6,
    thinker_top_p=0.95,
    thinker_top_k=20,
)
print("caption:", type(response).__name__)

# Video description
response, _ = run_model(model, processor, user(file("video", "moving.mp4"), text("Which way does it move?")), False, False)
print("video:", response)

# Audio-visual dialogue: asked in sound and picture, answered in speech
question = text("Where does it go, and what number do you hear?")
response, audio = run_model(
    model, processor, user(file("video", "moving_and_speech.mp4"), question), True, True, talker_do_sample=False
)
print("dialogue:", response, audio.dtype, audio.ndim, len(audio) > 12000)

# Audio function call: the tools stand in the system prompt
tools = [
    {
        "name": "car_ac_control",
        "description": "Turns the air conditioning of a seat on or off.",
        "parameters": {
            "type": "object",
            "properties": {"temperature": {"type": "number"}, "ac": {"type": "string", "enum": ["on", "off"]}},
            "required": ["ac"],
        },
    }
]
system = (
    "You are a voice assistant.\n\n# Tools\n\nYou may call one or more functions.\n<tools>\n"
    + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    + "\n</tools>\n\nReturn each call as JSON within <tool_call></tool_call> tags."
)
messages = [
    {"role": "system", "content": [text(system)]},
    *user(file("audio", "digits.wav"), text("What number do you hear?")),
]
response, _ = run_model(model, processor, messages, False, False)
print("function call:", response)
