"""The operators that the model is made of: one documented signature each, one implementation chosen for the process.

Kernels differ between devices, so modeling code calls only these functions and never `mindspore.mint` or
`mindspore.ops`. `reference` runs on every device; `cpu` replaces single functions of it by C++ kernels and is used on
CPU where there is a compiler; `ascend` holds the fused kernels of Ascend. `MS_OMNI_OPS` forces one of them, or
`ascend-emulated`: the operators of Ascend on kernels written in numpy (see `select.py`). A pass that is recorded for a
gradient runs on `reference`, whichever was chosen.

Axes: B batch, T time, S new tokens, N rows, H query heads, K kv heads, D channels, E experts, V vocabulary. `rows`
means that leading axes are flattened.

`stable` asks for sums whose order does not depend on what else is computed: a row then has the same bits alone, in a
batch and in any piece of a sequence. `cpu` grants it for float32, `reference` cannot. The operators that only the vocoder
uses (conv1d, conv_transpose1d, snake_beta, ...) and those of single elements and rows are always so on `cpu`.
"""

import functools

import mindspore as ms

from . import reference, select
from .recording import recording
from .recording import stop_recording as stop_recording

_impl, _reason = select.choose()


def refusal(error):
    """Why a kernel refused its arguments, of the error that MindSpore makes of that; None for any other error."""
    return _impl.refusal(error) if hasattr(_impl, "refusal") else None


def _differentiable(operator):
    """An operator that `reference` computes while MindSpore records a pass to take its gradient: kernels may have none.

    It asks when it is called; a graph is compiled from the operator itself.
    """
    with_gradient = getattr(reference, operator.__name__)

    @functools.wraps(operator)
    def call(*args, **kwargs):
        return (with_gradient if recording() else operator)(*args, **kwargs)

    return call


def describe():
    """Returns `[(operator, implementation, reason), ...]`: what each operator resolves to, and why."""
    return select.rows(OPERATORS, _impl, _reason) + select.rows(FUSED, _impl, _reason)


def settle(dtype):
    """Call before the first model of a dtype is built: lets an implementation compare itself with `reference`.

    Operators may be exchanged by it, so nothing may have been compiled with them before.
    """
    select.settle(_impl, dtype)


@_differentiable
def linear(x, weight, bias=None, stable=False):
    """`x @ weight.T + bias`: x `[..., in]`, weight `[out, in]`, bias `[out]` -> `[..., out]`.

    stable: see above.
    """
    return _impl.linear(x, weight, bias, stable)


@_differentiable
def embedding(ids, weight):
    """Rows of weight `[V, D]` at ids `[...]` (integers in `[0, V)`) -> `[..., D]`."""
    return _impl.embedding(ids, weight)


@_differentiable
def embedding_part(ids, weight, first):
    """As `embedding` for a table of which weight `[R, D]` holds the rows from `first` on; other ids give zeros."""
    return _impl.embedding_part(ids, weight, first)


@_differentiable
def rms_norm(x, weight, eps):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis; the mean is taken in float32 (Zhang & Sennrich 2019)."""
    return _impl.rms_norm(x, weight, eps)


@_differentiable
def layer_norm(x, weight, bias, eps):
    """Layer normalisation over the last axis, statistics in float32 (Ba et al. 2016)."""
    return _impl.layer_norm(x, weight, bias, eps)


@_differentiable
def gelu(x):
    """`x * Phi(x)` with the exact normal distribution (Hendrycks & Gimpel 2016)."""
    return _impl.gelu(x)


@_differentiable
def gelu_tanh(x):
    """The tanh approximation of `gelu` (same paper, section 2)."""
    return _impl.gelu_tanh(x)


@_differentiable
def silu(x):
    """`x * sigmoid(x)`."""
    return _impl.silu(x)


@_differentiable
def sigmoid(x):
    """`1 / (1 + exp(-x))`."""
    return _impl.sigmoid(x)


@_differentiable
def quick_gelu(x):
    """`x * sigmoid(1.702 x)`, the sigmoid approximation of `gelu` (same paper, section 2)."""
    return _impl.quick_gelu(x)


@_differentiable
def relu(x):
    """`max(x, 0)`."""
    return _impl.relu(x)


@_differentiable
def swiglu(gate_up):
    """`silu(gate) * up` for gate_up `[..., 2I]` = gate and up side by side -> `[..., I]` (Shazeer 2020)."""
    return _impl.swiglu(gate_up)


@_differentiable
def rotary(x, cos, sin):
    """Rotates the pairs `(x[i], x[i + D/2])`: x `[..., H, D]`, cos and sin `[..., D/2]` (Su et al. 2021), in float32."""
    return _impl.rotary(x, cos, sin)


@_differentiable
def attention(q, k, v, mask, scale, stable=False):
    """Softmax attention with grouped kv heads, softmax in float32.

    q `[B, S, H, D]`, k and v `[B, K, T, D]` with H a multiple of K, mask additive `[B, S, T]` float32 or None
    -> `[B, S, H * D]`. stable: see above; keys that the mask excludes do not count as something beside the row.
    """
    return _impl.attention(q, k, v, mask, scale, stable)


@_differentiable
def packed_attention(q, k, v, segments, scale):
    """Full attention inside each segment of a packed sequence and none across: q, k, v `[N, H, D]` -> `[N, H * D]`.

    segments: tuple of `(length, count)` python ints, neighbouring segments of one length counted together; they sum
    to N. It is the host-side form of `cu_seqlens`.
    """
    return _impl.packed_attention(q, k, v, segments, scale)


@_differentiable
def route_topk(logits, k, normalise):
    """Router: softmax over E in float32, the k largest -> weights `[N, k]` float32, indices `[N, k]` int32.

    `normalise` divides the weights by their sum (the config's `norm_topk_prob`).
    """
    return _impl.route_topk(logits, k, normalise)


@_differentiable
def experts(x, gate_up, down, weights, indices, first=None):
    """Mixture of gated MLPs: `sum_j weights[n, j] * mlp_{indices[n, j]}(x[n])`.

    x `[N, D]`, gate_up `[E, D, 2I]`, down `[E, I, D]`, weights and indices `[N, k]` -> `[N, D]`. first: None where
    all experts are here; else the number (a python int) of the first one, and experts outside `[first, first + E)` add
    nothing.
    """
    return _impl.experts(x, gate_up, down, weights, indices, first)


def graph_expert_rows():
    """Largest number of (token, expert) pairs for which `experts` can be part of a compiled graph."""
    return _impl.GATHERED_ROWS


@_differentiable
def conv1d(x, weight, bias, dilation=1, groups=1):
    """Convolution without padding: x `[B, C, T]`, weight `[M, C / groups, W]` -> `[B, M, T - (W - 1) * dilation]`."""
    return _impl.conv1d(x, weight, bias, dilation, groups)


@_differentiable
def conv_transpose1d(x, weight, bias, stride, trim=0):
    """Transposed convolution: x `[B, C, T]`, weight `[C, M, W]` -> `[B, M, (T - 1) * stride + W - 2 * trim]`.

    trim: outputs that are left out at both ends; with fewer outputs than that there are none.
    """
    return _impl.conv_transpose1d(x, weight, bias, stride, trim)


@_differentiable
def conv2d(x, weight, bias, stride, padding):
    """Convolution with zero padding on all four sides: x `[B, C, H, W]`, weight `[M, C, h, w]`."""
    return _impl.conv2d(x, weight, bias, stride, padding)


@_differentiable
def snake_beta(x, alpha, beta):
    """`x + sin^2(x e^alpha) / (e^beta + 1e-9)` per channel: x `[B, C, T]`, alpha and beta `[C]` (Lee et al. 2022)."""
    return _impl.snake_beta(x, alpha, beta)


@_differentiable
def scale_channels(x, scale):
    """`x * scale` with scale `[D]` along the last axis of x `[..., D]`."""
    return _impl.scale_channels(x, scale)


@_differentiable
def scatter_rows(x, index, rows):
    """A copy of x `[N, D]` in which the rows at index `[M]` are replaced by rows `[M, D]`."""
    return _impl.scatter_rows(x, index, rows)


@_differentiable
def add_rows(x, index, rows):
    """A copy of x `[N, D]` with rows `[M, D]` added at index `[M]`."""
    return _impl.add_rows(x, index, rows)


@_differentiable
def write_rows(buffer, index, rows):
    """Writes rows `[M, D]` into the Parameter buffer `[N, D]` at index `[M]`, in place; returns the buffer."""
    return _impl.write_rows(buffer, index, rows)


@_differentiable
def gather_rows(x, index):
    """The rows of x `[N, ...]` at index `[M]` -> `[M, ...]`."""
    return _impl.gather_rows(x, index)


@_differentiable
def weighted_sum_rows(x, index, weights):
    """`sum_j weights[n, j] * x[index[n, j]]`: x `[R, D]`, index and weights `[N, taps]` -> `[N, D]`."""
    return _impl.weighted_sum_rows(x, index, weights)


@_differentiable
def concat(parts, axis):
    """Joins tensors along an axis."""
    return _impl.concat(parts, axis)


@_differentiable
def transpose(x, axes):
    """Permutes the axes into contiguous memory."""
    return _impl.transpose(x, axes)


@_differentiable
def clip(x, low, high):
    """Limits every element to `[low, high]`; of NaN and infinities it makes NaN."""
    return _impl.clip(x, low, high)


@_differentiable
def argmax(x):
    """Index of the largest element of the last axis, int32."""
    return _impl.argmax(x)


@_differentiable
def draw(logits, noise, temperature, top_k, top_p):
    """Samples one id per row: temperature, the top_k likeliest (0: all), of them the smallest set that reaches top_p,
    then inversion of their cumulative distribution at noise.

    logits `[B, V]`, noise float32 `[B, 1]` uniform in [0, 1) -> int32 `[B, 1]`.
    """
    return _impl.draw(logits, noise, temperature, top_k, top_p)


@_differentiable
def cross_entropy(logits, labels):
    """Mean negative log-likelihood in float32: logits `[N, V]`, labels `[N]` -> scalar."""
    return _impl.cross_entropy(logits, labels)


@_differentiable
def expert_load(logits, k, mask):
    """Router statistics over the tokens with mask `[N]` 1.0: `(assignments per expert [E], summed probability [E])`."""
    return _impl.expert_load(logits, k, mask)


# ---- whole steps and units: one launch where the operators above need many --------------------------------------------
#
# They do what the cells do when called on new tokens, and they are optional: where an implementation has none, the cells
# run. So `reference` has none: the cells over its operators are what these must equal.


def prepare(weights, kept=None):
    """What `decoder_step` (of `StackWeights`) or `code_frame` (of `FrameWeights`, see `fused.py`) takes for these
    weights, or None where the cells must run. Parameters that are given other data later are read with that.

    kept: what an earlier call returned for weights of the same kind; what still holds of it is not done again.
    """
    return _impl.prepare(weights, kept) if hasattr(_impl, "prepare") else None


def decoder_step(x, cos, sin, head, cache, prepared):
    """One new token per row through a decoder stack and its output layer.

    x `[B, 1, D]`, cos and sin `[B, 1, D/2]`, head `[V, D]`; cache: a `KVCache` (`cache.py`) that has counted the new
    tokens in, whose buffers are written to -> logits `[B, 1, V]`, hidden `[B, 1, D]` (after the final norm).
    """
    return _impl.decoder_step(x, cos, sin, head, cache, prepared)


def code_frame(hidden, code, noise, sampling, prepared):
    """Codes 1 .. n-1 of one frame, each chosen from logits that depend on the one before.

    hidden `[B, 1, D]` (talker), code 0 int32 `[B, 1]`, noise float32 `[B, n-1]`; sampling: (temperature, top_k, top_p)
    of `draw`, or None for the likeliest code -> codes int32 `[B, n]`, the sum of their embeddings `[B, 1, D]`, which holds
    NaN where logits were NaN or infinite.
    """
    return _impl.code_frame(hidden, code, noise, sampling, prepared)


def residual_unit(x, before, snake, conv, dilation, last_snake, last_conv):
    """`x + last_conv(last_snake(conv(snake(before, x))))`: the vocoder's unit, x `[B, C, T]` -> `[B, C, T]`.

    before `[B, C, (W - 1) * dilation]`: the inputs that precede x. snake and last_snake: (alpha, beta) of `snake_beta`;
    conv and last_conv: (weight, bias) of `conv1d`, weights `[C, C, W]` and `[C, C, 1]`.
    """
    if hasattr(_impl, "residual_unit") and x.dtype == ms.float32 and not recording():
        return _impl.residual_unit(x, before, snake, conv, dilation, last_snake, last_conv)
    y = snake_beta(concat((before, x), -1), *snake)
    y = snake_beta(conv1d(y, *conv, dilation), *last_snake)
    return x + conv1d(y, *last_conv)


OPERATORS = (
    "linear",
    "embedding",
    "embedding_part",
    "rms_norm",
    "layer_norm",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "silu",
    "sigmoid",
    "relu",
    "swiglu",
    "rotary",
    "attention",
    "packed_attention",
    "route_topk",
    "experts",
    "conv1d",
    "conv_transpose1d",
    "conv2d",
    "snake_beta",
    "scale_channels",
    "scatter_rows",
    "add_rows",
    "write_rows",
    "gather_rows",
    "weighted_sum_rows",
    "concat",
    "transpose",
    "clip",
    "argmax",
    "draw",
    "cross_entropy",
    "expert_load",
)
FUSED = ("decoder_step", "code_frame", "residual_unit")
