"""The model in PyTorch: built from the configuration, initialised for fast training, and made faster on CPU."""

import math

import torch
from transformers import AttentionInterface, Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling

EMBEDDING_STD, POSITION_STD, ROUTER_STD, GAIN = 0.3, 0.2, 0.02, 0.8


def build(config: dict, seed: int) -> Qwen3OmniMoeForConditionalGeneration:
    """A model with fresh weights. The reference's own initialisation (0.02) would learn nothing in minutes."""
    torch.manual_seed(seed)
    settings = Qwen3OmniMoeConfig.from_dict(config)
    settings._attn_implementation = "sdpa"
    model = Qwen3OmniMoeForConditionalGeneration(settings).float()
    model.talker.config.audio_config = model.thinker.config.audio_config  # its position code looks there
    _attend_in_one_call()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _initialise(name, weight)
    return model


def _initialise(name: str, weight: torch.Tensor) -> None:
    """Matrices at GAIN / sqrt(inputs), convolutions at 1 / sqrt(inputs); norms and the vocoder's scales as they are."""
    if weight.ndim < 2:
        if name.endswith("gamma"):
            weight.fill_(0.1)
        return
    if name.startswith(("code2wav.decoder", "code2wav.upsample")):
        return  # PyTorch's own, which suits convolutions
    if "pos_embed" in name:
        weight.normal_(0, POSITION_STD)
    elif "embed_tokens" in name or "codec_embedding" in name or "code_embedding" in name:
        weight.normal_(0, EMBEDDING_STD)
    elif name.endswith("mlp.gate.weight"):
        weight.normal_(0, ROUTER_STD)
    else:
        inputs = weight.shape[-1] if weight.ndim == 3 else math.prod(weight.shape[1:])  # experts: [E, out, in]
        weight.normal_(0, (1.0 if weight.ndim > 3 else GAIN) / math.sqrt(inputs))


def attend(query, key, value, mask=None, scale=None):
    """Attention `[B, H, T, D]` by plain products: short rows and narrow heads, where PyTorch's fused one is slow."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e4) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).to(value.dtype) @ value


def _decoder_attention(module, query, key, value, attention_mask, scaling=None, is_causal=None, **_):
    """The same in the shape in which transformers' decoder layers ask for it."""
    steps, seen = query.shape[2], key.shape[2]
    causal = module.is_causal if is_causal is None else is_causal
    if attention_mask is None and causal and steps > 1:
        attention_mask = torch.ones(steps, seen, dtype=torch.bool).tril(seen - steps)
    elif attention_mask is not None:
        attention_mask = attention_mask[..., :seen]
    return attend(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


def _attend_in_one_call() -> None:
    """The encoders attend clip by clip in a Python loop; one padded call gives the same result faster."""
    AttentionInterface.register("sdpa", _decoder_attention)

    def padded(query, key, value, lengths, scaling):  # [N, H, D] each -> [N, H, D]
        count, longest = len(lengths), int(lengths.max())
        inside = torch.arange(longest)[None] < lengths[:, None]
        if bool(inside.all()):
            rows = (part.unflatten(0, (count, longest)).transpose(1, 2) for part in (query, key, value))
            return attend(*rows, scale=scaling).transpose(1, 2).flatten(0, 1)
        rows = []
        for part in (query, key, value):
            row = part.new_zeros(count, longest, *part.shape[1:])
            row[inside] = part
            rows.append(row.transpose(1, 2))
        return attend(*rows, inside[:, None, None], scaling).transpose(1, 2)[inside]

    def audio(self, hidden_states, cu_seqlens, max_seqlen=None, **_):
        parts = [
            layer(hidden_states).reshape(len(hidden_states), self.num_heads, -1)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        ]
        mixed = padded(*parts, cu_seqlens.diff(), self.scaling)
        return self.out_proj(mixed.reshape(len(hidden_states), -1))

    def vision(self, hidden_states, cu_seqlens, position_embeddings=None, max_seqlen=None, **_):
        query, key, value = self.qkv(hidden_states).reshape(len(hidden_states), 3, self.num_heads, -1).unbind(1)
        query, key = modeling.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        mixed = padded(query, key, value, cu_seqlens.diff(), self.scaling)
        return self.proj(mixed.reshape(len(hidden_states), -1))

    modeling.Qwen3OmniMoeAudioAttention.forward = audio
    modeling.Qwen3OmniMoeVisionAttention.forward = vision
