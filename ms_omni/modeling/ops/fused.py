"""What the fused operators work on: weights (`prepare`), blocks of keys and values (`decoder_step`), how rows sample (`race`, `code_frame`)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from mindspore import Parameter, Tensor

from ...quantised import Quantised

Matrix = Parameter | Quantised


class LayerWeights(NamedTuple):
    """Parameters of one decoder layer, None where it has none, and how they are used.

    A dense MLP is gate, up, down; with a router these are the shared expert (if shared_gate is there, else None).
    Of a layer that ranks share q, k, v, o and the experts are this rank's: first is the number of its first expert, and sum_heads
    and sum_experts add up the partial sums of all ranks.
    """

    input_norm: Parameter
    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    q_bias: Parameter | None
    k_bias: Parameter | None
    v_bias: Parameter | None
    o_bias: Parameter | None
    q_norm: Parameter | None
    k_norm: Parameter | None
    post_norm: Parameter
    gate: Matrix | None = None
    up: Matrix | None = None
    down: Matrix | None = None
    shared_gate: Matrix | None = None
    router: Matrix | None = None
    experts_gate_up: Matrix | None = None
    experts_down: Matrix | None = None
    top_k: int = 0
    normalise: bool = False
    first: int | None = None
    sum_heads: Callable[[Tensor], Tensor] | None = None
    sum_experts: Callable[[Tensor], Tensor] | None = None


class StackWeights(NamedTuple):
    """A decoder stack with SiLU-gated MLPs: its layers, the final norm, the eps of all its norms."""

    layers: tuple[LayerWeights, ...]
    norm: Parameter
    eps: float
    head_dim: int


class BlockTables(NamedTuple):
    """Keys and values of a stack in blocks of positions, and the blocks of each row of a step.

    keys, values: a Parameter `[blocks * K * block, D]` per layer, or a `Quantised` of such (int8, with scales float32
    `[blocks * K * block, 1]`), position p of a row in row `(table[p // block] * K + head) * block + p % block`. tables int32 `[B, n]`: numbers of the blocks of each row; lengths int32
    `[B]`: its positions, the new one included.
    """

    keys: tuple
    values: tuple
    heads: int
    block: int
    tables: np.ndarray
    lengths: np.ndarray


class FrameWeights(NamedTuple):
    """What makes codes 1 .. n-1 of a frame: the code predictor's stack, the embedding of code 0 `[V0, D]`, embeddings
    and heads `[V, D]` of the others, rotary tables float32 `[n, D/2]`.
    """

    stack: StackWeights
    first_embedding: Matrix
    embeddings: tuple[Matrix, ...]
    heads: tuple[Matrix, ...]
    cos: np.ndarray
    sin: np.ndarray


class EncoderLayerWeights(NamedTuple):
    """One layer of an encoder: pairs of weight and bias, which is None where there is none.

    projections: one for queries, keys and values below one another, or one for each. fc1 and fc2: the MLP's.
    """

    norm: tuple
    projections: tuple
    out: tuple
    mlp_norm: tuple
    fc1: tuple
    fc2: tuple


class EncoderWeights(NamedTuple):
    """Layers `x + out(attention(norm(x)))`, `x + fc2(activation(fc1(mlp_norm(x))))`; eps: of all norms; scale: of the scores."""

    layers: tuple
    heads: int
    scale: float
    eps: float
    activation: Callable[[Tensor], Tensor]


class ProjectorWeights(NamedTuple):
    """`fc2(activation(fc1(norm(x))))` of layer norm: pairs of weight and bias. Rows of fc1 may be several of the norm, or one part of it."""

    norm: tuple
    fc1: tuple
    fc2: tuple
    eps: float
    activation: Callable[[Tensor], Tensor]


# ---- how each row draws among its likeliest ids ------------------------------------------------------------------------

CANDIDATES = 64
"""Number of the likeliest ids that are sampled from, and the largest top_k."""
SCALE = np.float32(1e20)
"""Scale of the room below top_p: any positive room is larger than any score, so the minimum of both is the score or negative."""
LEAST_NOISE = np.float32(1e-12)

Kind = tuple[float, int, float] | None
"""(temperature, top_k, top_p), top_k 0 for all candidates; or None for the likeliest id."""


def draw_terms(kinds: Sequence[Kind], count: int = CANDIDATES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """inverse_temperature, excluded and room of rows that draw among so many candidates."""
    rows = [(1.0, 1, 1.0) if kind is None else kind for kind in kinds]
    temperature, top_k, top_p = (np.array(column)[:, None] for column in zip(*rows))
    excluded = np.where(np.arange(count) < np.where(top_k == 0, count, top_k), np.float32(0), np.float32(-np.inf))
    room = SCALE * np.where(top_p < 1, top_p, 2).astype(np.float32)  # at 1 rounding excludes none
    return (1 / temperature).astype(np.float32), excluded, np.repeat(room, count, 1)


def draw_inputs(kinds: Sequence[Kind], noise: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same and the noise; noise float32 `[..., CANDIDATES]`, exponential."""
    return *draw_terms(kinds), np.maximum(noise, LEAST_NOISE)


def preceding_sums(count: int = CANDIDATES) -> np.ndarray:
    """A matrix that sums, for each candidate, the probabilities of those before it: float32 `[K, K]`, times `-SCALE`."""
    return np.triu(np.full((count, count), -SCALE, np.float32), 1)
