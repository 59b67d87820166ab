"""What transformers' own tests do with the loaded model and processor, in our words."""

import copy
import os
import pickle
import sys

import numpy as np
import soundfile as sf
from PIL import Image

from ms_omni import AutoProcessor, Qwen3OmniMoeForConditionalGeneration

MODEL_PATH = sys.argv[1]
SAMPLES = os.path.join(MODEL_PATH, "samples")

model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(MODEL_PATH, dtype="bfloat16", device_map="auto")
processor = AutoProcessor.from_pretrained(MODEL_PATH, min_pixels=28 * 28, max_pixels=448 * 448)
sound, rate = sf.read(os.path.join(SAMPLES, "digits.wav"), dtype="float32")
picture = Image.open(os.path.join(SAMPLES, "star.jpg"))
messages = [
    {
        "role": "user",
        "content": [
            {"type": "audio", "audio_url": os.path.join(SAMPLES, "digits.wav")},
            {"type": "image", "image_url": os.path.join(SAMPLES, "star.jpg")},
            {"type": "text", "text": "What do you see and what number do you hear?"},
        ],
    }
]

# One prompt; temperature 0 is greedy
text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = processor(text=text, audio=[sound], images=[picture], return_tensors="pt", padding=True).to("bfloat16")
print("names:", sorted(inputs), inputs.input_ids.dim(), inputs.pixel_values[:6, :3].shape)
output = model.generate(
    **inputs, thinker_temperature=0, thinker_do_sample=False, return_audio=False, thinker_max_new_tokens=20
)
print("decode:", processor.decode(output[0], skip_special_tokens=True).rpartition("\n")[2])

# The same twice in a batch
inputs = processor(text=[text] * 2, audio=[sound, sound], images=[picture, picture], return_tensors="pt", padding=True).to(
    model.device, dtype="bfloat16"
)
output = model.generate(
    **inputs, thinker_temperature=0, thinker_do_sample=False, return_audio=False, thinker_max_new_tokens=20
)
decoded = processor.batch_decode(output, skip_special_tokens=True)
print("batch_decode:", [line.rpartition("\n")[2] for line in decoded])

# Speech of a batch: one wave per conversation, cut to its own length
inputs = processor(text=["<|im_start|>user\nWhat is 4 + 5?<|im_end|>\n<|im_start|>assistant\n"] * 2, return_tensors="pt")
generated = model.generate(**inputs, return_audio=True, talker_do_sample=False, predictor_do_sample=False)
waves = processor.post_process_multimodal_output(generated, generation_mode="audio")
print("audio:", len(waves), all(np.asarray(wave).ndim == 1 for wave in waves), np.array_equal(*map(np.asarray, waves)))
texts = processor.post_process_multimodal_output(generated, generation_mode="text", skip_special_tokens=True)
print("text:", [line.rpartition("\n")[2] for line in texts])

# How many placeholders a sound takes, told and counted
lengths = [16000, 4 * 16000, 27200]
prompt = f"{processor.audio_bos_token}{processor.audio_token}{processor.audio_eos_token}"
token = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
counted = [
    int((processor(text=prompt, audio=[np.zeros(n, np.float32)], return_tensors="pt")["input_ids"][0] == token).sum())
    for n in lengths
]
print("audio tokens:", processor._get_num_multimodal_tokens(audio_lengths=lengths)["num_audio_tokens"] == counted)

# The parts of the processor by themselves, and put together again
alone = processor.image_processor(picture, return_tensors="pt")
whole = processor(
    text=processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}]),
    images=picture,
    return_tensors="pt",
)
print("image_processor:", np.array_equal(alone["pixel_values"], whole["pixel_values"]))
parts = {name: getattr(processor, name) for name in ("image_processor", "feature_extractor", "video_processor", "tokenizer")}
again = type(processor)(**parts, chat_template=processor.chat_template)
print("constructor:", again.apply_chat_template(messages) == processor.apply_chat_template(messages))

# Saved, loaded, pickled
processor.save_pretrained("saved")
loaded = AutoProcessor.from_pretrained("saved")
print(
    "saved:", loaded.image_processor.to_json_string() == processor.image_processor.to_json_string(), sorted(loaded.to_dict())
)
config = copy.deepcopy(pickle.loads(pickle.dumps(model.config)))
print("config:", config.to_dict() == model.config.to_dict(), config.get_text_config().vocab_size > 0)
