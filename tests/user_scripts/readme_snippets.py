"""The snippets of Qwen3-Omni's README and model card, in our words: one conversation, voices, video with its sound, a batch."""

import os
import sys

import soundfile as sf

from ms_omni import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeProcessor, process_mm_info

MODEL_PATH = sys.argv[1]
SAMPLES = os.path.join(MODEL_PATH, "samples")
USE_AUDIO_IN_VIDEO = True

model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
    MODEL_PATH,
    dtype="auto",
    device_map="auto",
    attn_implementation="flash_attention_2",
)
processor = Qwen3OmniMoeProcessor.from_pretrained(MODEL_PATH)


def prepare(conversation, use_audio_in_video=USE_AUDIO_IN_VIDEO):
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    audios, images, videos = process_mm_info(conversation, use_audio_in_video=use_audio_in_video)
    inputs = processor(
        text=text,
        audio=audios,
        images=images,
        videos=videos,
        return_tensors="pt",
        padding=True,
        use_audio_in_video=use_audio_in_video,
    )
    return inputs.to(model.device).to(model.dtype)


def answers(text_ids, inputs):
    return processor.batch_decode(
        text_ids.sequences[:, inputs["input_ids"].shape[1] :],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


picture = {"type": "image", "image": os.path.join(SAMPLES, "star.jpg")}
sound = {"type": "audio", "audio": os.path.join(SAMPLES, "digits.wav")}
question = {"type": "text", "text": "What do you see and what number do you hear?"}

# One conversation, text and speech
conversation = [{"role": "user", "content": [picture, sound, question]}]
inputs = prepare(conversation)
text_ids, audio = model.generate(
    **inputs,
    speaker="Ethan",
    thinker_return_dict_in_generate=True,
    use_audio_in_video=USE_AUDIO_IN_VIDEO,
)
print("single:", answers(text_ids, inputs))
if audio is not None:
    sf.write("output.wav", audio.reshape(-1).detach().cpu().numpy(), samplerate=24000)
print("seconds of speech over 1:", sf.info("output.wav").duration > 1, "at", sf.info("output.wav").samplerate)

# Voices
short = prepare([{"role": "user", "content": "What is 4 + 5?"}])
for speaker in ("Ethan", "Chelsie"):
    text_ids, audio = model.generate(**short, speaker=speaker)
    sf.write(f"{speaker}.wav", audio.reshape(-1).detach().cpu().numpy(), samplerate=24000)
    print("voice:", speaker, sf.info(f"{speaker}.wav").frames > 2400)

# A video whose sound is the question's other half, under the system prompt for audio-visual talk
character = "You are a smart voice assistant."
video = {"type": "video", "video": "file://" + os.path.join(os.path.abspath(SAMPLES), "moving_and_speech.mp4")}
messages = [
    {"role": "system", "content": [{"type": "text", "text": f"{character} Keep replies concise."}]},
    {"role": "user", "content": [video, {"type": "text", "text": "Where does it go, and what number do you hear?"}]},
]
inputs = prepare(messages)
text_ids, _ = model.generate(
    **inputs, use_audio_in_video=USE_AUDIO_IN_VIDEO, return_audio=False, thinker_return_dict_in_generate=True
)
print("video:", answers(text_ids, inputs))

# Several media with an explicit task, as the card advises for the Thinking model
video = {"type": "video", "video": os.path.join(SAMPLES, "moving.mp4")}
inputs = prepare([{"role": "user", "content": [sound, picture, video, question]}])
text_ids, audio = model.generate(**inputs, return_audio=False, thinker_return_dict_in_generate=True)
print("three media:", len(answers(text_ids, inputs)), audio)

# Without the talker: a batch of conversations of every kind
model.disable_talker()
conversations = [
    [{"role": "user", "content": [picture, {"type": "text", "text": "What do you see?"}]}],
    [{"role": "user", "content": [sound, {"type": "text", "text": "What number do you hear?"}]}],
    [
        {"role": "system", "content": [{"type": "text", "text": "You are Qwen-Omni."}]},
        {"role": "user", "content": "Who are you?"},
    ],
    conversation,
]
inputs = prepare(conversations)
text_ids, audio = model.generate(
    **inputs,
    return_audio=False,
    thinker_return_dict_in_generate=True,
    use_audio_in_video=USE_AUDIO_IN_VIDEO,
)
print("batch:", answers(text_ids, inputs), audio)
