"""A model from a configuration alone, and a few steps of training, as in scripts that begin from nothing."""

import os
import sys

import mindspore as ms
import numpy as np
from mindspore import nn

from ms_omni import (
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
)

ms.set_seed(0)
config = Qwen3OmniMoeThinkerConfig(
    text_config={
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default"},
    },
    audio_config={"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 32, "output_dim": 32},
    vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 24, "num_heads": 4, "out_hidden_size": 32}
    | {"deepstack_visual_indexes": [1]},
    audio_token_id=1,
    image_token_id=2,
    video_token_id=3,
    audio_start_token_id=4,
    vision_start_token_id=5,
    initializer_range=0.02,
)
config.text_config.router_aux_loss_coef = 0.01
model = Qwen3OmniMoeThinkerForConditionalGeneration(config)
print("spread:", round(float(model.lm_head.weight.asnumpy().std()), 2))

rng = np.random.default_rng(0)
rows = np.tile(rng.integers(10, 99, (2, 4)), (1, 4))  # a pattern that can be learnt
batch = {"input_ids": ms.tensor(rows), "attention_mask": ms.tensor(np.ones_like(rows)), "labels": ms.tensor(rows)}

model.train()
optimizer = nn.AdamWeightDecay(model.trainable_params(), learning_rate=1e-2)
step = ms.value_and_grad(lambda: model(**batch).loss, None, optimizer.parameters)
losses = []
for _ in range(8):
    loss, gradients = step()
    optimizer(gradients)
    losses.append(float(loss))
print("falls:", losses[-1] < 0.8 * losses[0], "at first near log(99):", abs(losses[0] - np.log(99)) < 0.5)
used = [
    bool(gradient.asnumpy().any())
    for gradient, p in zip(gradients, optimizer.parameters)
    if p.name.startswith("model.layers")
]
print("gradients:", all(used))

model.eval()
model.save_pretrained("trained")
again = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained("trained")
gap = np.abs(model(**batch).logits.asnumpy() - again(**batch).logits.asnumpy()).max()
print("saved:", gap < 1e-4, sorted(os.listdir("trained")))
print("generates:", again.generate(ms.tensor(rows[:, :6]), max_new_tokens=3, do_sample=False).shape)
print("published:", Qwen3OmniMoeConfig().thinker_config.text_config.num_experts, len(sys.argv))
