"""One rank among several that are not there: MindSpore counts its memory and builds its collectives all the same."""

import os

import mindspore as ms
from mindspore.communication import init

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.config import load_named_config
from ms_omni.engine.kv_pool import KVPool
from ms_omni.modeling import BLOCK_TOKENS
from ms_omni.parallel.mesh import BACKENDS, Mesh
from ms_omni.parallel.predict import predict
from ms_omni.parallel.team import Team

CONTEXT = 8192
BFLOAT16_BYTES = 2


def join(strategy: str) -> Team:
    """This process as the rank that the environment says (`RANK_ID` of `RANK_SIZE`)."""
    init()
    team = Team(Mesh(int(os.environ["RANK_ID"]), int(os.environ["RANK_SIZE"]), BACKENDS["Ascend"]), strategy, {})
    team.bell = object()  # there is nobody to be woken, nor to connect to
    return team


def memory(team: Team) -> dict:
    """Bytes of weights and of the caches for `CONTEXT` tokens on this rank, `{"weights": {"held": ..., "plan": ...}, ...}`:
    what MindSpore has given out for them, and what `ms-omni plan` says of the card that holds most.
    """
    from .parts import build

    config = load_named_config("published")
    predicted = predict(config, parameter_shapes(config), team.strategy, team.mesh.size, CONTEXT, BFLOAT16_BYTES)
    start = _held()
    model = build(Qwen3OmniMoeForConditionalGeneration, config, team=team)
    weights = _held() - start
    pools = [KVPool.of(decoder, CONTEXT // BLOCK_TOKENS) for decoder in (model.thinker.model, model.talker.model)]
    for pool in pools:
        for buffer in (*pool.keys, *pool.values):
            (buffer + 0).shape  # noqa: B018  (what has not been used is still on the host)
    cached = _held() - start - weights
    return {
        "rank": team.mesh.rank,
        "weights": {"held": weights, "plan": predicted.held},
        "cache": {"held": cached, "plan": predicted.kv_cache},
    }


def _held() -> int:
    ms.runtime.synchronize()
    return ms.runtime.memory_allocated()
