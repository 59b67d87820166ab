"""Idioms of public scripts that load the thinker alone: its parts, hidden states, new tokens, freezing, saving."""

import os
import sys

import mindspore as ms
import numpy as np
from transformers import AddedToken

from ms_omni import (
    AutoConfig,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)

root = sys.argv[1]
samples = os.path.join(root, "samples")

config = AutoConfig.from_pretrained(root, local_files_only=True, trust_remote_code=True)
print("layers:", config.thinker_config.text_config.num_hidden_layers, config.get_text_config().hidden_size)
model = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
    root,
    config=config.thinker_config,
    local_files_only=True,
    trust_remote_code=True,
    dtype="auto",
    device_map="cpu",
    attn_implementation="eager",
    use_safetensors=True,
).eval()
processor = Qwen3OmniMoeProcessor.from_pretrained(root)


def ask(*content, **options):
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": list(content)}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return inputs, model.generate(**inputs, **options)


sound = {"type": "audio", "audio": os.path.join(samples, "digits.wav")}
question = {"type": "text", "text": "What number do you hear?"}

# Hidden states: of one pass, and of each step
inputs, out = ask(sound, question, output_hidden_states=True, output_logits=True, return_dict_in_generate=True)
new = out.sequences.shape[1] - inputs["input_ids"].shape[1]
print(
    "steps:", new == len(out.hidden_states) == len(out["logits"]), len(out.hidden_states[0]), out.hidden_states[-1][-1].shape
)
print("answer:", processor.batch_decode(out[0][:, -new:], skip_special_tokens=True))
layer = model.forward(**inputs, output_hidden_states=True).hidden_states[2]
print("layer 2:", layer.shape == (1, inputs["input_ids"].shape[1], 192))

# A hook, and a model that goes on from embeddings
seen = []
handle = model.model.layers[1].register_forward_hook(lambda cell, args, output: seen.append(type(output).__name__))
prompt = processor.tokenizer("<|im_start|>user\nWhat is 4 + 5?<|im_end|>\n<|im_start|>assistant\n", return_tensors="np")
ids = np.asarray(prompt["input_ids"])
embeds = model.get_input_embeddings()(ms.tensor(ids))
print("embeds:", processor.batch_decode(model.generate(inputs_embeds=embeds, max_new_tokens=8), skip_special_tokens=True))
handle.remove()
print("hook:", len(seen) > 0)

# The audio tower taken out
tower = model.audio_tower
features = processor.feature_extractor(
    np.zeros(16000, np.float32), sampling_rate=16000, return_tensors="np", return_attention_mask=True, padding=False
)
lengths = features["attention_mask"].sum(-1)
states = tower(ms.tensor(features["input_features"][0][:, : lengths[0]]), feature_lens=ms.tensor(lengths)).last_hidden_state
print("tower:", states.shape[-1] == tower.config.output_dim)

# A token of one's own, started at the mean of what stood for it
tokenizer = processor.tokenizer
old = tokenizer.encode("circle", add_special_tokens=False)
added = tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<point>", lstrip=False, rstrip=False)]})
before = model.get_input_embeddings().weight.asnumpy()
model.resize_token_embeddings(len(tokenizer))
point = tokenizer.convert_tokens_to_ids("<point>")
table = model.get_input_embeddings().weight.asnumpy().copy()
print("resized:", added, len(table) == len(tokenizer), np.array_equal(table[: len(before)], before[: len(table)]))
table[point] = table[old].mean(0)
model.get_input_embeddings().weight.set_data(ms.tensor(table))
_, out = ask(sound, question)
print("still:", processor.batch_decode(out[:, -4:], skip_special_tokens=True))

# Frozen but for the head, as before a fine-tuning
model.requires_grad_(False)
for parameter in model.get_output_embeddings().get_parameters():
    parameter.requires_grad = True
trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
print("trainable:", trainable)

# Saved in shards, and back
model.save_pretrained("tuned", safe_serialization=True, max_shard_size="5MB")
processor.save_pretrained("tuned")
model = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained("tuned", device_map="auto")
processor = Qwen3OmniMoeProcessor.from_pretrained("tuned")
print("shards:", len([name for name in os.listdir("tuned") if name.endswith(".safetensors")]) > 1)
_, out = ask(sound, question)
print("reloaded:", processor.batch_decode(out[:, -4:], skip_special_tokens=True))
