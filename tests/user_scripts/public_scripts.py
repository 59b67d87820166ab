"""Idioms of public scripts that load the whole model: loading arguments, histories, streams, options of generation."""

import os
import sys
from threading import Thread

import numpy as np
import soundfile as sf
from transformers import GenerationConfig, TextIteratorStreamer, TextStreamer

from ms_omni import (
    LogitsProcessor,
    LogitsProcessorList,
    Qwen3OmniMoeForConditionalGeneration,
    Qwen3OmniMoeProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    process_mm_info,
)

model_id = sys.argv[1]
samples = os.path.join(model_id, "samples")

model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
    model_id,
    revision="main",
    torch_dtype="auto",
    device_map="auto",
    max_memory={0: "38GiB", "cpu": "76GiB"},
    attn_implementation="sdpa",
    low_cpu_mem_usage=True,
    trust_remote_code=True,
    local_files_only=True,
    cache_dir="./models",
    use_safetensors=True,
).eval()
processor = Qwen3OmniMoeProcessor.from_pretrained(model_id, trust_remote_code=True, use_fast=True)
processor.tokenizer.padding_side = "left"
if processor.tokenizer.pad_token is None:
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
print("loaded:", model.device, model.num_parameters() == sum(p.numel() for p in model.parameters()), model.training)

# A generation_config that a script fills in
gen = model.generation_config
if getattr(gen, "pad_token_id", None) is None:
    gen.pad_token_id = getattr(gen, "eos_token_id", None) or processor.tokenizer.eos_token_id

messages = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": os.path.join(samples, "star.jpg")},
            {"type": "text", "text": "What do you see?"},
        ],
    }
]
text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
audios, images, videos = process_mm_info(messages, use_audio_in_video=False)
inputs = processor(text=text, audio=audios, images=images, videos=videos, return_tensors="pt", padding=True)
inputs = {name: value.to(model.device) for name, value in inputs.items()}
input_len = inputs["input_ids"].size(1)

# Tuples or not, `sequences` or not
result = model.generate(
    **inputs,
    max_new_tokens=256,
    do_sample=False,
    num_beams=1,
    use_cache=True,
    temperature=0.7,
    top_p=0.9,
    return_audio=False,
)
text_ids, audio = result if isinstance(result, tuple) else (result, None)
sequences = text_ids.sequences if hasattr(text_ids, "sequences") else text_ids
trimmed = [out[len(prompt) :] for prompt, out in zip(inputs["input_ids"], sequences)]
print("trimmed:", processor.batch_decode(trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0].strip())

# Speech on request, with each sampler's own options
text_ids, audio = model.generate(
    **inputs, return_audio=True, speaker="Chelsie", thinker_repetition_penalty=1.05, talker_temperature=0.9, talker_top_k=50
)
wave = audio.reshape(-1).to("cpu").float().squeeze().numpy()
sf.write("answer.wav", wave, 24000)
print("speech:", wave.dtype, np.isfinite(wave).all(), sf.info("answer.wav").frames == audio.numel())

# GenerationConfig and criteria
config = GenerationConfig(max_new_tokens=2, do_sample=False)
text_ids = model.thinker.generate(**inputs, generation_config=config)
print("config:", text_ids.shape[1] - input_len)


class AfterThree(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] >= input_len + 3


class Never(LogitsProcessor):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        scores[:, self.token] = -float("inf")
        return scores


orange = processor.tokenizer.encode(" orange", add_special_tokens=False)[0]
text_ids = model.thinker.generate(**inputs, stopping_criteria=StoppingCriteriaList([AfterThree()]))
print("criteria:", text_ids.shape[1] - input_len)
text_ids = model.thinker.generate(**inputs, logits_processor=LogitsProcessorList([Never(orange)]))
print("processor:", orange in text_ids[0, input_len:].tolist())

# Streams
model.generate(**inputs, return_audio=False, streamer=TextStreamer(processor.tokenizer, skip_prompt=True))
streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
thread = Thread(target=model.thinker.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 64})
thread.start()
print("streamed:", "".join(streamer).strip())
thread.join()

# Text-only chat, three turns
history, said = [], []
for question in ("What is 4 + 5?", "What is 1 + 2?", "What is 3 + 3?"):
    history.append({"role": "user", "content": question})
    turn = processor.apply_chat_template(
        history, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to("cuda")
    ids = model.generate(**turn, return_audio=False)
    answer = processor.decode(ids[0][0][turn["input_ids"].shape[-1] :], skip_special_tokens=True)
    history.append({"role": "assistant", "content": answer})
    said.append(answer)
print("turns:", said)
