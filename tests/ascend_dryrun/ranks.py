"""One rank among several that are not there: MindSpore counts its memory and builds its collectives all the same."""

import os

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.communication import init

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.ascend import on_card
from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.checkpoint.storage import matrix_shape
from ms_omni.config import load_named_config
from ms_omni.engine.kv_pool import KVPool, PoolStep
from ms_omni.modeling import BLOCK_TOKENS, ops
from ms_omni.modeling.steps import FrameStep
from ms_omni.parallel.group import ProcessGroup
from ms_omni.parallel.mesh import BACKENDS, Mesh
from ms_omni.parallel.predict import predict

CONTEXT = 8192
BFLOAT16_BYTES = 2


def join(strategy: str) -> ProcessGroup:
    """This process as the rank that the environment says (`RANK_ID` of `RANK_SIZE`)."""
    init()
    group = ProcessGroup(Mesh(int(os.environ["RANK_ID"]), int(os.environ["RANK_SIZE"]), BACKENDS["Ascend"]), strategy, {})
    group.wakeup = object()  # there is nobody to be woken, nor to connect to
    return group


LAYERS = 2  # of a model with codes, which the host lays out: it has no room for all of them


def memory(group: ProcessGroup, bits: int | None = None) -> dict:
    """Bytes of weights and of the caches for `CONTEXT` tokens on this rank, `{"weights": {"held": ..., "plan": ...}, ...}`:
    what MindSpore has given out for them once everything has been used, and what `ms-omni plan` says of the card that holds most.
    bits: of what is stored as codes, in a model of `LAYERS` layers.
    """
    from .parts import build, stored_in

    config = load_named_config("published")
    if bits is not None:
        config = _few_layers(config)
    shapes = parameter_shapes(config)
    kinds = {name: kind for name in shapes if (kind := stored_in(bits, name, shapes[name]))}
    storages = {name: on_card(kind, matrix_shape(name, shapes[name])) for name, kind in kinds.items()}
    predicted = predict(config, shapes, group.strategy, group.mesh.size, CONTEXT, BFLOAT16_BYTES, storages=storages)
    start = _held()
    model = build(Qwen3OmniMoeForConditionalGeneration, config, group=group, bits=bits)
    before = _held()
    pools = [KVPool.of(decoder, CONTEXT // BLOCK_TOKENS) for decoder in (model.thinker.model, model.talker.model)]
    for pool in pools:
        for buffer in (*pool.keys, *pool.values):
            (buffer + 0).shape  # noqa: B018  (what has not been used is still on the host)
    cached = _held() - before
    packed = [_use(model, *pools), *(pool.stack is not None for pool in pools)]
    weights = _held() - start - cached
    return {
        "rank": group.mesh.rank,
        "packed": packed,
        "weights": {"held": weights, "plan": predicted.held},
        "cache": {"held": cached, "plan": predicted.kv_cache},
    }


def _few_layers(config):
    thinker, talker = config.thinker_config, config.talker_config
    thinker = thinker.copy(text_config=thinker.text_config.copy(num_hidden_layers=LAYERS))
    talker = talker.copy(text_config=talker.text_config.copy(num_hidden_layers=LAYERS), accept_hidden_layer=1)
    return config.copy(thinker_config=thinker, talker_config=talker)


def _use(model, heard, spoken):
    """Every part that has weights of its own form computes once, kernel by kernel; says whether a frame's are packed."""
    from .parts import AUDIO_FRAMES, PICTURE, zeros

    for pool, part in ((heard, model.thinker), (spoken, model.talker)):
        decoder = part.model
        rope = decoder.rope(np.zeros((3, 1, 1), np.float32))
        step = PoolStep(decoder, part.output_layer, pool, compile_after=None)
        step(zeros(1, 1, decoder.config.hidden_size), rope, np.ones((1, 1), np.int32), np.ones(1, np.int32))
    frame = FrameStep(model.talker, 1, None, compile_after=None)
    hidden = zeros(1, 1, model.talker.model.config.hidden_size)
    frame(hidden, Tensor(np.zeros((1, 1), np.int32)), frame.no_noise(1))
    visual, sound = model.thinker.visual, model.thinker.audio_tower
    visual(Tensor(np.zeros((np.prod(PICTURE), visual.patch_embed.width), np.float32)), np.array([PICTURE]))
    sound(np.zeros((sound.config.num_mel_bins, AUDIO_FRAMES), np.float32), np.array([AUDIO_FRAMES]))
    ops.place(model.get_parameters())
    return frame.mixes


def _held() -> int:
    ms.runtime.synchronize()
    return ms.runtime.memory_allocated()
