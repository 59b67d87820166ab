"""Thinker values: audio and vision tower, positions, text layers, logits, losses, greedy tokens (see record_model)."""

from contextlib import contextmanager

import numpy as np
import torch

from tests.reference.cases import Case
from tests.reference.record_columns import columns
from tests.reference.reference_model import tensors
from tests.reference.store import Recorder

NEW_TOKENS = 16
AUDIO_CASES = ("audio_11s", "two_audios")
VISION_CASES = ("two_images", "video")
LAYER_CASES = ("text", "image_audio_video")
STEERED_CASES = ("text", "audio_in_video")


@contextmanager
def watching(**modules):
    """Record what enters (`name.in`) and leaves (`name`) each named module, one entry per call."""
    seen, handles = {}, []

    def hook(name):
        def keep(_, arguments, result):
            if arguments:
                seen.setdefault(f"{name}.in", []).append(arguments[0].detach().clone())
            result = result[0] if isinstance(result, tuple) else result
            seen.setdefault(name, []).append(result.detach().clone())

        return keep

    for name, module in modules.items():
        handles.append(module.register_forward_hook(hook(name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def record_forward(rec: Recorder, thinker, case: Case):
    """One forward pass with labels: positions, every hidden state at unpadded positions, logits, losses.

    Hidden state 0 is what enters layer 0 (features merged in); i is what layer i - 1 returned, before deepstack
    features are added to it (in 4.57 they are already in it); the last is taken after the final norm. The talker
    listens to hidden state `accept_hidden_layer` of this list.
    """
    inputs = tensors(case.inputs)
    name, mask = case.name, inputs["attention_mask"].bool()
    rec.notes[f"{name}/digest"] = case.digest
    positions, deltas = _positions(thinker, case)
    rec.add(f"{name}/positions", positions, limit=10**9)
    rec.add(f"{name}/deltas", deltas)
    out = thinker(
        **inputs,
        labels=torch.from_numpy(case.labels()),
        use_audio_in_video=case.use_audio_in_video,
        output_hidden_states=True,
        output_router_logits=True,
        use_cache=False,
    )
    for index, hidden in enumerate(out.hidden_states):
        rec.add(f"{name}/hidden/{index}", hidden[mask])
    for index, logits in enumerate(out.router_logits):
        rec.add(f"{name}/router/{index}", logits[mask.reshape(-1)], limit=256)
    picked = columns(out.logits.shape[-1])
    rec.add(f"{name}/logits", out.logits[mask][:, picked], limit=10**9)
    rec.add(f"{name}/last_logits", out.logits[:, -1], limit=2048)
    rec.add(f"{name}/loss", out.loss)
    rec.add(f"{name}/aux_loss", out.aux_loss)


def _positions(thinker, case: Case):
    inputs = tensors(case.inputs)
    mel_mask = inputs.get("feature_attention_mask")
    return thinker.get_rope_index(
        inputs["input_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        case.use_audio_in_video,
        None if mel_mask is None else mel_mask.sum(-1),
        inputs.get("video_second_per_grid"),
    )


def record_audio(rec: Recorder, thinker, case: Case):
    """Audio tower: convolution output [chunks, t, d], rows after positions, each layer, final norm, result."""
    tower = thinker.model.audio_tower
    modules = {f"layer{i}": layer for i, layer in enumerate(tower.layers)}
    inputs = tensors(case.inputs)
    with watching(conv=tower.conv_out, norm=tower.ln_post, **modules) as seen:
        out = thinker.get_audio_features(inputs["input_features"], inputs["feature_attention_mask"])
    key = f"{case.name}/audio"
    rec.add(f"{key}/conv", seen["conv"][0])
    rec.add(f"{key}/positioned", seen["layer0.in"][0])
    for i in range(len(tower.layers)):
        rec.add(f"{key}/layer{i}", seen[f"layer{i}"][0])
    rec.add(f"{key}/norm", seen["norm"][0])
    rec.add(f"{key}/features", out.last_hidden_state)


def record_vision(rec: Recorder, thinker, case: Case):
    """Vision tower: patches, patches plus positions, each block, deepstack features, merged features."""
    tower = thinker.model.visual
    modules = {f"block{i}": block for i, block in enumerate(tower.blocks)}
    inputs = tensors(case.inputs)
    with watching(patches=tower.patch_embed, **modules) as seen:
        if "pixel_values" in inputs:
            out = thinker.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        else:
            out = thinker.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    key = f"{case.name}/vision"
    rec.add(f"{key}/patches", seen["patches"][0])
    rec.add(f"{key}/positioned", seen["block0.in"][0])
    for i in range(len(tower.blocks)):
        rec.add(f"{key}/block{i}", seen[f"block{i}"][0])
    for i, features in enumerate(out.deepstack_features):
        rec.add(f"{key}/deepstack{i}", torch.cat(features))
    rec.add(f"{key}/features", torch.cat(out.pooler_output))


def record_layers(rec: Recorder, thinker, case: Case):
    """Inside each text layer: what enters it (after deepstack), attention output, MoE or MLP output [T, D]."""
    layers = thinker.model.language_model.layers
    modules = {}
    for i, layer in enumerate(layers):
        modules |= {f"{i}": layer, f"{i}/attention": layer.self_attn, f"{i}/mlp": layer.mlp}
    with watching(**modules) as seen:
        thinker(**tensors(case.inputs), use_audio_in_video=case.use_audio_in_video, use_cache=False)
    for i in range(len(layers)):
        rec.add(f"{case.name}/layer{i}/input", seen[f"{i}.in"][0][0])
        rec.add(f"{case.name}/layer{i}/attention", seen[f"{i}/attention"][0][0])
        rec.add(f"{case.name}/layer{i}/mlp", seen[f"{i}/mlp"][0][0])


def record_continuation(rec: Recorder, thinker, case: Case):
    """Three more tokens through the cache, placeholders among them (a model may write such an id): logits [1, 3, V]."""
    inputs = tensors(case.inputs)
    out = thinker(**inputs, use_audio_in_video=case.use_audio_in_video, use_cache=True)
    ids = torch.tensor([case.continuation(thinker.config.to_dict())])
    length = inputs["input_ids"].shape[1]
    positions = torch.arange(length, length + ids.shape[1]) + thinker.model.rope_deltas
    out = thinker(
        input_ids=ids,
        attention_mask=torch.ones(1, length + ids.shape[1], dtype=torch.long),
        position_ids=positions.expand(3, 1, -1),
        past_key_values=out.past_key_values,
    )
    rec.add(f"{case.name}/continuation", out.logits, limit=2048)


def generate_greedy(thinker, case: Case, eos_token_id, **arguments):
    """Greedy continuation. Returns (new ids [B, 16], logits [B, 16, V], smallest gap between best and second best)."""
    length = case.inputs["input_ids"].shape[1]
    out = thinker.generate(
        **tensors(case.inputs),
        use_audio_in_video=case.use_audio_in_video,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=eos_token_id,
        pad_token_id=np.atleast_1d(eos_token_id)[0].item(),
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        **arguments,
    )
    return out.sequences[:, length:], torch.stack(out.logits, dim=1), margin(torch.stack(out.scores, dim=1))


def steering(ids: torch.Tensor, im_end: int) -> dict:
    """Options that force other tokens than the plain greedy `ids` [1, 16]: suppressed, penalised, several end ids."""
    said = ids[0].tolist()
    return {
        "eos_token_id": [im_end, said[1]],
        "min_new_tokens": 5,
        "repetition_penalty": 1.4,
        "suppress_tokens": sorted({said[0], said[3]}),
    }


def margin(logits: torch.Tensor) -> float:
    """Smallest difference between the two largest values of any row."""
    best = logits.topk(2, dim=-1).values
    return float((best[..., 0] - best[..., 1]).min())
