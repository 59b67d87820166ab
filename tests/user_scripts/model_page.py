"""transformers' model page of Qwen3-Omni, all its snippets, with the return values of version 4.57 and of 5.x."""

import os
import sys

import soundfile as sf

from ms_omni import (
    AutoProcessor,
    Qwen3OmniMoeForConditionalGeneration,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)

MODEL_PATH = sys.argv[1]
SAMPLES = os.path.join(MODEL_PATH, "samples")
SYSTEM = {
    "role": "system",
    "content": [
        {
            "type": "text",
            "text": "You are a virtual human, capable of perceiving auditory and visual inputs, as well as generating text and "
            "speech.",
        }
    ],
}


def user(*content):
    return {"role": "user", "content": list(content)}


def tensors(conversations):
    return processor.apply_chat_template(
        conversations,
        load_audio_from_video=True,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        fps=2,
        # for the processor
        padding=True,
        use_audio_in_video=True,
    )


video = {"type": "video", "video": os.path.join(SAMPLES, "moving_and_speech.mp4")}
question = {"type": "text", "text": "Where does it go, and what number do you hear?"}

# One conversation, text and sound
model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(MODEL_PATH, device_map="auto")
processor = Qwen3OmniMoeProcessor.from_pretrained(MODEL_PATH)
conversations = [SYSTEM, user(video, question)]
inputs = tensors(conversations).to(model.device)
text_ids, audio = model.generate(**inputs, use_audio_in_video=True, thinker_do_sample=False, talker_do_sample=True)
text = processor.batch_decode(text_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
sf.write("output.wav", audio.reshape(-1).detach().cpu().numpy(), samplerate=24000)
print("single:", text[0].rpartition("\n")[2])

# A batch of mixed media; the items' own key is "path"
conversations = [
    [SYSTEM, user({"type": "video", "path": os.path.join(SAMPLES, "moving_and_speech.mp4")}, question)],
    [SYSTEM, user({"type": "audio", "path": os.path.join(SAMPLES, "digits.wav")}, {"type": "text", "text": "What number?"})],
    [SYSTEM, user({"type": "text", "text": "who are you?"})],
    [
        SYSTEM,
        user(
            {"type": "image", "path": os.path.join(SAMPLES, "star.jpg")},
            {"type": "audio", "path": os.path.join(SAMPLES, "digits.wav")},
            {"type": "text", "text": "What do you see and what number do you hear?"},
        ),
    ],
]
inputs = tensors(conversations).to(model.thinker.device)
generated = model.generate(**inputs, use_audio_in_video=True, return_audio=False)
text = processor.batch_decode(generated, skip_special_tokens=True, clean_up_tokenization_spaces=False)
print("batch:", [line.rpartition("\n")[2] for line in text])

# return_audio=False: a pair in 4.57, ids in 5.x
inputs = tensors([user({"type": "text", "text": "What is 4 + 5?"})])
prompt = inputs["input_ids"].shape[1]
text_ids, none = model.generate(**inputs, return_audio=False)
print("4.57:", processor.batch_decode(text_ids[:, prompt:], skip_special_tokens=True), none)
text_ids = model.generate(**inputs, return_audio=False)
print("5.x:", processor.batch_decode(text_ids[:, prompt:], skip_special_tokens=True))

# The voice, under its old name
for name in ("Chelsie", "Ethan"):
    text_ids, audio = model.generate(**inputs, spk=name)
    print("spk:", name, audio.numel() > 2400)

# Text only, without loading what speaks
model = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(MODEL_PATH, device_map="auto")
inputs = tensors([SYSTEM, user(video, question)]).to(model.device)
text_ids = model.generate(**inputs, use_audio_in_video=True)
text = processor.batch_decode(text_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
print("thinker:", text[0].rpartition("\n")[2])

# Fewer pixels
min_pixels = 128 * 28 * 28
max_pixels = 196 * 28 * 28
smaller = AutoProcessor.from_pretrained(MODEL_PATH, min_pixels=min_pixels, max_pixels=max_pixels)
print("pixels:", smaller.image_processor.min_pixels, smaller.image_processor.max_pixels)
processor.max_pixels = max_pixels
print("set:", processor.max_pixels)

# Without audio output, and with another attention
model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
    MODEL_PATH, device_map="auto", enable_audio_output=False, attn_implementation="flash_attention_2"
)
print("talker:", model.has_talker)
