"""The operators that the model is made of: one documented signature each, one implementation chosen for the process.

Kernels differ between devices, so modeling code calls only these functions and never `mindspore.mint` or
`mindspore.ops`. `reference` runs on every device; `cpu` replaces single functions of it by C++ kernels and is used on
CPU where there is a compiler; `ascend` holds the fused kernels of Ascend. `MS_OMNI_OPS` forces one of them, or
`ascend-emulated`: the operators of Ascend on kernels written in numpy (see `dispatch.py`). A pass that is recorded for a
gradient runs on `reference`, whichever was chosen.

Axes: B batch, T time, S new tokens, N rows, H query heads, K kv heads, D channels, E experts, V vocabulary. `rows`
means that leading axes are flattened.

`stable` asks for sums whose order does not depend on what else is computed: a row then has the same bits alone, in a
batch and in any piece of a sequence. `cpu` grants it for float32, `reference` cannot. The operators that only the vocoder
uses (conv1d, conv_transpose1d, snake_beta, ...) and those of single elements and rows are always so on `cpu`.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

from mindspore import Parameter, Tensor

from ...quantised import Quantised
from .dispatch import Recorded, describe, implementation, operator, owner, recording, settle, stop_recording  # noqa: F401
from .fused import BlockTables, EncoderWeights, FrameWeights, ProjectorWeights, StackWeights
from .reference import Reference

Pair = tuple[Tensor, Tensor]
Matrix = Tensor | Quantised
"""A matrix as it is stored: in the dtype of the rows, in bfloat16 beside rows in float32, or as codes with scales, `[..., out, in]`
always. Results are in the dtype of the rows; there is no gradient of codes.
"""


def refusal(error: Exception) -> str | None:
    """Why a kernel refused its arguments, of the error that MindSpore makes of that; None for any other error."""
    return implementation().refusal(error)


def graph_expert_rows() -> int:
    """Largest number of (token, expert) pairs for which `experts` can be part of a compiled graph."""
    return (owner(implementation(), "experts") or Reference).GRAPH_EXPERT_ROWS


def chooses() -> bool:
    """Whether ids are chosen on the device, by `penalised`, `likeliest` and `race`; else the host does it, by all logits."""
    return implementation().CHOOSES


def pages_prompts() -> bool:
    """Whether `paged_attention` reads the blocks of a prompt where they lie; else it is better copied once, for `attention`."""
    return (owner(implementation(), "paged_attention") or Reference).PAGES_PROMPTS


def keeps_bfloat16() -> bool:
    """Whether matrices in bfloat16 are computed with as they are, beside rows in float32; else they are better widened once."""
    return implementation().KEEPS_BFLOAT16


def vectors() -> str:
    """Which vectors of the processor the kernels work with, as "AVX2, 8 floats"; "" where that is not theirs to choose."""
    return implementation().VECTORS


def caches_codes() -> bool:
    """Whether `write_rows`, `gather_rows` and `paged_attention` take a `Quantised`, and so `decoder_step` its keys and values."""
    return implementation().CACHES_CODES


def reads_chunks() -> bool:
    """Whether there is `decoder_chunk` for weights that are not packed too."""
    return implementation().READS_CHUNKS


def fuses_encoders() -> bool:
    """Whether there is `encoder_states`; else nobody need ask `prepare` for it."""
    return owner(implementation(), "encoder_states") is not None


@operator
def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None, stable: bool = False) -> Tensor:
    """`x @ weight.T + bias`: x `[..., in]`, weight `[out, in]`, bias `[out]` -> `[..., out]`.

    stable: see above.
    """


@operator
def embedding(ids: Tensor, weight: Matrix, dtype: Any = None) -> Tensor:
    """Rows of weight `[V, D]` at ids `[...]` (integers in `[0, V)`) -> `[..., D]` of the dtype, by default the table's (codes: float32)."""


@operator
def embedding_part(ids: Tensor, weight: Matrix, first: int, dtype: Any = None) -> Tensor:
    """As `embedding` for a table of which weight `[R, D]` holds the rows from `first` on; other ids give zeros."""


@operator
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis; the mean is taken in float32 (Zhang & Sennrich 2019)."""


@operator
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation over the last axis, statistics in float32 (Ba et al. 2016)."""


@operator
def add_layer_norm(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Pair:
    """`layer_norm` of x + added, both `[..., D]`, and that sum."""
    raise NotImplementedError


@operator
def gelu(x: Tensor) -> Tensor:
    """`x * Phi(x)` with the exact normal distribution (Hendrycks & Gimpel 2016)."""


@operator
def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of `gelu` (same paper, section 2)."""


@operator
def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`."""


@operator
def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`."""


@operator
def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`, the sigmoid approximation of `gelu` (same paper, section 2)."""


@operator
def relu(x: Tensor) -> Tensor:
    """`max(x, 0)`."""


@operator
def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` for gate_up `[..., 2I]` = gate and up side by side -> `[..., I]` (Shazeer 2020)."""


@operator
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs `(x[i], x[i + D/2])`: x `[..., H, D]`, cos and sin `[..., D/2]` (Su et al. 2021), in float32."""


@operator
def rotary_wide(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotary` by tables `[..., D]` with both halves filled, which are alike."""


@operator
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, stable: bool = False) -> Tensor:
    """Softmax attention with grouped kv heads, softmax in float32.

    q `[B, S, H, D]`, k and v `[B, K, T, D]` with H a multiple of K, mask additive `[B, S, T]` float32 or None
    -> `[B, S, H * D]`. stable: see above; keys that the mask excludes do not count as something beside the row.
    """


@operator
def paged_attention(
    q: Tensor,
    keys: Tensor | Quantised,
    values: Tensor | Quantised,
    tables: Tensor,
    first: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """Causal attention to keys and values in blocks of P positions, softmax in float32; rows of any lengths side by side.

    q `[B, S, H, D]`, keys and values `[blocks, K, P, D]`, tables int32 `[B, n]`: the numbers of each row's blocks; first int32
    `[B]`, lengths int32 `[B]`: query i of row b is at position first[b] + i and sees those up to
    `min(first[b] + i, lengths[b] - 1)` -> `[B, S, H * D]`. What else is in the pool has no influence, be it NaN: on `cpu` a row
    has the bits that it has alone, whatever its blocks are and n is. A prompt is computed in tiles of 256 positions.

    Keys and values may both be `Quantised`: codes int8 `[blocks, K, P, D]`, scales float32 `[blocks, K, P, 1]`.
    """


@operator
def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: tuple[tuple[int, int], ...], scale: float) -> Tensor:
    """Full attention inside each segment of a packed sequence and none across: q, k, v `[N, H, D]` -> `[N, H * D]`.

    segments: tuple of `(length, count)` python ints, neighbouring segments of one length counted together; they sum
    to N. It is the host-side form of `cu_seqlens`.
    """


@operator
def route_topk(logits: Tensor, k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Router: softmax over E in float32, the k largest -> weights `[N, k]` float32, indices `[N, k]` int32.

    `normalise` divides the weights by their sum (the config's `norm_topk_prob`).
    """
    raise NotImplementedError


@operator
def experts(x: Tensor, gate_up: Matrix, down: Matrix, weights: Tensor, indices: Tensor, first: int | None = None) -> Tensor:
    """Mixture of gated MLPs: `sum_j weights[n, j] * mlp_{indices[n, j]}(x[n])`.

    x `[N, D]`, gate_up `[E, D, 2I]`, down `[E, I, D]` (as codes `[E, 2I, D]`, `[E, D, I]`), weights and indices `[N, k]` -> `[N, D]`. first: None where
    all experts are here; else the number (a python int) of the first one, and experts outside `[first, first + E)` add
    nothing.
    """


@operator
def conv1d(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
    """Convolution without padding: x `[B, C, T]`, weight `[M, C / groups, W]` -> `[B, M, T - (W - 1) * dilation]`."""


@operator
def conv_transpose1d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, trim: int = 0) -> Tensor:
    """Transposed convolution: x `[B, C, T]`, weight `[C, M, W]` -> `[B, M, (T - 1) * stride + W - 2 * trim]`.

    trim: outputs that are left out at both ends; with fewer outputs than that there are none.
    """


@operator
def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Convolution with zero padding on all four sides: x `[B, C, H, W]`, weight `[M, C, h, w]`."""


@operator
def downsample(x: Tensor, layers: Sequence[Pair]) -> Tensor:
    """Convolutions (weight, bias) with stride 2 and padding 1 behind one another, each followed by `gelu`; x `[B, C, H, W]`."""


@operator
def snake_beta(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`x + sin^2(x e^alpha) / (e^beta + 1e-9)` per channel: x `[B, C, T]`, alpha and beta `[C]` (Lee et al. 2022)."""


@operator
def scale_channels(x: Tensor, scale: Tensor) -> Tensor:
    """`x * scale` with scale `[D]` along the last axis of x `[..., D]`."""


@operator
def scatter_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """A copy of x `[N, D]` in which the rows at index `[M]` are replaced by rows `[M, D]`."""


@operator
def add_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """A copy of x `[N, D]` with rows `[M, D]` added at index `[M]`."""


@operator
def write_rows(buffer: Parameter | Quantised, index: Tensor, rows: Tensor) -> Parameter | Quantised:
    """Writes rows `[M, D]` into the Parameter buffer `[N, D]` at index `[M]`, in place; returns the buffer.

    That may be a `Quantised` of Parameters, int8 `[N, D]` and float32 `[N, 1]`: each row becomes the nearest multiples of
    its scale, max |x| / 127; one that is not finite has such a scale.
    """


@operator
def gather_rows(x: Tensor | Quantised, index: Tensor) -> Tensor:
    """The rows of x `[N, ...]` at index `[M]` -> `[M, ...]`; in float32 of a `Quantised`."""


@operator
def weighted_sum_rows(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """`sum_j weights[n, j] * x[index[n, j]]`: x `[R, D]`, index and weights `[N, taps]` -> `[N, D]`."""


@operator
def concat(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Joins tensors along an axis."""


@operator
def transpose(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Permutes the axes into contiguous memory."""


@operator
def clip(x: Tensor, low: float, high: float) -> Tensor:
    """Limits every element to `[low, high]`; of NaN and infinities it makes NaN."""


@operator
def argmax(x: Tensor) -> Tensor:
    """Index of the largest element of the last axis, int32."""


@operator
def draw(logits: Tensor, noise: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Samples one id per row: temperature, the top_k likeliest (0: all), of them the smallest set that reaches top_p,
    then inversion of their cumulative distribution at noise.

    logits `[B, V]`, noise float32 `[B, 1]` uniform in [0, 1) -> int32 `[B, 1]`.
    """


@operator
def penalised(logits: Tensor, planes: Tensor, factors: Tensor, biases: Tensor) -> Tensor:
    """`min(l * f, l / f) + b`, which penalises what has f > 1 and bans what has b = -inf.

    logits `[B, V]`; f, 1 or more, and b are the rows of planes float32 `[R, V]` at factors and biases, int32 `[B]`
    -> float32 `[B, V]`.
    """


@operator
def likeliest(logits: Tensor, count: int) -> Pair:
    """The largest of each row `[B, V]`, in descending order, and their ids: `[B, count]` and int64 `[B, count]`.

    For count 1 the id is the first of equals; for more any of them may come first.
    """
    raise NotImplementedError


@operator
def race(
    values: Tensor, before: Tensor, inverse_temperature: Tensor, excluded: Tensor, room: Tensor, noise: Tensor
) -> Tensor:
    """Draws one of the likeliest ids of each row by values `[B, K]`, in descending order -> its place int64 `[B, 1]`.

    All else float32. inverse_temperature `[B, 1]`; excluded `[B, K]`: 0, or -inf from a row's top_k on; before `[K, K]`: `-c` above
    the diagonal and 0 elsewhere, room `[B, K]`: `c * top_p`, with a c that is larger than any `1 / noise` by far; noise `[B, K]`:
    exponential. The smallest set that reaches top_p is drawn from, with the probability of each.
    """


@operator
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood in float32: logits `[N, V]`, labels `[N]` -> scalar."""


@operator
def expert_load(logits: Tensor, k: int, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Router statistics over the tokens with mask `[N]` 1.0: `(assignments per expert [E], summed probability [E])`."""
    raise NotImplementedError


# ---- whole steps and units: one launch where the operators above need many --------------------------------------------
#
# They do what the cells do when called on new tokens. Those of prepared weights are optional: where an implementation has
# none, the cells run. So `reference` has none: the cells over its operators are what these must equal.


def packs(weights: StackWeights | FrameWeights) -> bool:
    """Whether whole steps pack these weights: of layers that ranks share too, with rows of a pool that hold all heads of a position
    (see `engine/kv_pool.py`), and as graphs that are to be made before anybody waits. Then there is `decoder_chunk` as well.
    """
    return implementation().packs(weights)


def prepare(weights: StackWeights | FrameWeights | EncoderWeights | ProjectorWeights, previous: Any = None) -> Any:
    """What `decoder_step` (of `StackWeights`), `code_frame` (of `FrameWeights`, see `fused.py`), `encoder_states` (of
    `EncoderWeights`) or `projector` (of `ProjectorWeights`) takes for these weights, or None where the cells must run. Parameters that are given other data later are
    read with that.

    previous: what an earlier call returned for weights of the same kind; what still holds of it is not done again.
    """
    return implementation().prepare(weights, previous)


def place(parameters: Iterable[Parameter]) -> None:
    """Moves parameters to where they are computed with, but for those that were packed: until then their addresses (`data_ptr`) are
    those of the host, and would change with the first use.
    """
    implementation().place(parameters)


@operator
def decoder_step(x: Tensor, cos: Tensor, sin: Tensor, head: Matrix, cache: BlockTables, prepared: Any) -> Pair:
    """One new token per row through a decoder stack and its output layer.

    x `[B, 1, D]`, cos and sin `[B, 1, D/2]`, head `[V, D]`; cache: the blocks of each row, which have room for the new token
    and are written to -> logits `[B, 1, V]`, hidden `[B, 1, D]` (after the final norm).
    """
    raise NotImplementedError


@operator
def decoder_chunk(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: BlockTables,
    start: int,
    prepared: Any,
    inject: Callable[[int, Tensor], Tensor] | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
    wanted: Container[int] = (),
) -> Tensor:
    """The positions `[start, start + S)` of one row through a decoder stack -> hidden `[1, S, D]`; where `reads_chunks` does not say
    more, only of weights that are packed.

    x `[1, S, D]`, cos and sin `[1, S, D/2]`; cache: of this row, whose length is where its tokens end: what is behind pads. inject and
    observe: see `Decoder.run`; wanted: the numbers that it is to observe.
    """


@operator
def code_frame(hidden: Tensor, code: Tensor, noise: Any, sampling: Any, prepared: Any) -> tuple[Tensor, Tensor]:
    """Codes 1 .. n-1 of one frame, each chosen from logits that depend on the one before.

    hidden `[B, 1, D]` (talker), code 0 int32 `[B, 1]`, noise float32 `[B, n-1]`; sampling: (temperature, top_k, top_p)
    of `draw`, or None for the likeliest code -> codes `[B, n]`, the sum of their embeddings `[B, 1, D]`, which holds
    NaN where logits were NaN or infinite. Weights that are packed let each row sample in its own way: sampling is a list of them, and
    noise an array `[B, n-1, K]`, exponential, of K candidates for each code.
    """
    raise NotImplementedError


@operator
def encoder_states(
    x: Tensor, segments: tuple[tuple[int, int], ...], rope: Pair | None, prepared: Any, wanted: Container[int]
) -> Iterator[Tensor]:
    """Yields those of the states x `[N, D]` (number 0) and what each layer of an encoder makes of it (1, 2, ...) whose numbers are wanted,
    in turn.

    segments: see `packed_attention`; rope: cos and sin `[N, D/2]` of `rotary`, or None.
    """
    raise NotImplementedError


@operator
def projector(x: Tensor, prepared: Any) -> Tensor:
    """`fc2(activation(fc1(norm(x))))`: x `[N, D]`, of which fc1 takes `inputs` numbers at a time -> `[N * D / inputs, outputs]`."""


@operator
def residual_unit(
    x: Tensor, before: Tensor, snake: Pair, conv: Pair, dilation: int, last_snake: Pair, last_conv: Pair
) -> Tensor:
    """`x + last_conv(last_snake(conv(snake(before, x))))`: the vocoder's unit, x `[B, C, T]` -> `[B, C, T]`.

    before `[B, C, (W - 1) * dilation]`: the inputs that precede x. snake and last_snake: (alpha, beta) of `snake_beta`;
    conv and last_conv: (weight, bias) of `conv1d`, weights `[C, C, W]` and `[C, C, 1]`.
    """
