"""The operators on Ascend: fused kernels where they exist, elsewhere spellings that suit the device.

`Reference` avoids what is slow on CPU: broadcasting, native convolutions, one kernel per activation. On Ascend these
are the fast way. Inherited are single kernels of MindSpore that exist on both. Before the first model is built,
the forms of each are compared on the device with its formula, and one that differs is replaced (`ascend_settle.py`).
"""

import functools
from typing import Any, ClassVar

import mindspore as ms
from mindspore import Tensor, mint, ops

from . import (
    ascend_attention,
    ascend_moe,
    ascend_products,
    ascend_settle,
    ascend_steps,
    ascend_weights,
)
from . import ascend_kernels as kernels
from .ascend_step_cases import OF_CODES, STEPS
from .dispatch import boost_wanted
from .fused import EncoderWeights, FrameWeights, ProjectorWeights
from .reference import Reference
from .stored import Matrix

_matmul = ops.MatMul()


def _add_and_layer_norm(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + added
    return kernels.layer_norm(total, weight, bias, eps), total


# Codes are packed for the kernels on the host, which a graph cannot do. The model's graphs use `ascend_layer.py`, where codes are
# packed before; other graphs compile the functions that these wrap.


def _linear_in_graph(x, weight, bias):
    return Reference.linear(x, weight, bias)


@functools.wraps(_linear_in_graph)
def _linear_of_codes(x, weight, bias):
    product = ascend_products.dense((weight,), (bias,), x.dtype)
    return product(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], weight.shape[0])


def _rows_in_graph(ids, weight, dtype):
    return Reference.embedding(ids, weight, dtype)


@functools.wraps(_rows_in_graph)
def _rows_of_codes(ids, weight, dtype):
    return ascend_products.table(weight, ms.float32 if dtype is None else dtype)(ids)


class Ascend(Reference):
    """A method calls kernels, or `Reference`, but no other operator, so that each can be replaced alone."""

    GRAPH_EXPERT_ROWS = 1 << 30  # the experts need nothing from the host, so they can be part of a graph at any size

    place = staticmethod(ascend_weights.place)
    decoder_step = staticmethod(ascend_steps.decoder_step)
    decoder_chunk = staticmethod(ascend_steps.decoder_chunk)
    code_frame = staticmethod(ascend_steps.code_frame)
    CHOOSES = True

    CACHES_CODES = False  # see docs/ascend.md

    attention = staticmethod(ascend_attention.attention)
    packed_attention = staticmethod(ascend_attention.packed_attention)
    paged_attention = staticmethod(ascend_attention.paged_attention)
    route_topk = staticmethod(ascend_moe.route_topk)
    experts = staticmethod(ascend_moe.experts)
    encoder_states = classmethod(ascend_attention.encoder_states)
    penalised = staticmethod(ascend_steps.penalised)
    likeliest = staticmethod(ascend_steps.likeliest)
    race = staticmethod(ascend_steps.race)

    @classmethod
    def packs(cls, weights: Any) -> bool:
        steps = {"code_frame"} if isinstance(weights, FrameWeights) else {"decoder_step", "decoder_chunk"}
        return ascend_steps.packs(weights) and steps <= cls.steps(ascend_steps.dtype_of(weights)).keys()

    @classmethod
    def prepare(cls, weights: Any, previous: Any = None) -> Any:
        if isinstance(weights, ProjectorWeights):
            return None
        if isinstance(weights, EncoderWeights):
            return ascend_attention.prepare_encoder(weights, previous)
        steps = cls.steps(ascend_steps.dtype_of(weights))
        bits = frozenset(number for number, step in OF_CODES.items() if step in steps)
        return ascend_steps.prepare(weights, previous, "boosted_step" in steps, bits) if cls.packs(weights) else None

    @classmethod
    def steps(cls, dtype: ms.Type) -> dict[str, tuple]:
        """Those whose kernels support this type, without those that are wrong on this device."""
        known = STEPS if dtype in kernels.ATTENTION_TYPES else {}
        out = cls.WRONG_STEPS | ({(dtype, "boosted_step")} if not boost_wanted() else set())
        return {step: kinds for step, kinds in known.items() if (dtype, step) not in out}

    @staticmethod
    def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None, stable: bool = False) -> Tensor:
        return _linear_of_codes(x, weight, bias) if isinstance(weight, tuple) else kernels.dense(x, weight, bias)

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return kernels.rms_norm(x, weight, eps)

    @staticmethod
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return kernels.layer_norm(x, weight, bias, eps)

    @staticmethod
    def add_layer_norm(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return kernels.add_layer_norm(x, added, weight, bias, eps)

    @staticmethod
    def gelu(x: Tensor) -> Tensor:
        return kernels.gelu(x, "none")

    @staticmethod
    def gelu_tanh(x: Tensor) -> Tensor:
        return kernels.gelu(x, "tanh")

    @staticmethod
    def swiglu(gate_up: Tensor) -> Tensor:
        return kernels.swiglu(gate_up)

    @staticmethod
    def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _rotated(x, mint.cat((cos, cos), -1), mint.cat((sin, sin), -1))

    @staticmethod
    def rotary_wide(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _rotated(x, cos, sin)

    @staticmethod
    def conv1d(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
        b, c, t = x.shape
        m, c_group, width = weight.shape
        x, weight = x.reshape(b, c, 1, t), weight.reshape(m, c_group, 1, width)
        return kernels.conv2d(x, weight, bias, (1, 1), (0, 0), (1, dilation), groups).reshape(b, m, -1)

    @staticmethod
    def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        return kernels.conv2d(x, weight, bias, (stride, stride), (padding, padding), (1, 1), 1)

    @staticmethod
    def conv_transpose1d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, trim: int = 0) -> Tensor:
        """One product and shifted sums; the vocoder's kernels are one or two strides long.

        Input t contributes `x[t] @ weight[:, :, w]` to output `t * stride + w`. Cut into pieces of one stride, the
        contributions of piece j of all inputs lie side by side, shifted by j strides:

            stride      |  0  |  1  |  2  |
            piece 0     |  a  |  b  |     |
            piece 1     |     |  a  |  b  |
        """
        b, c, t = x.shape
        channels, width = weight.shape[1:]
        pieces = width // stride
        if pieces * stride != width:
            return Reference.conv_transpose1d(x, weight, bias, stride, trim)
        rows = kernels.transpose(x, (0, 2, 1)).reshape(b * t, c)
        products = _matmul(rows, weight.reshape(c, channels * width)).reshape(b, t, channels, pieces, stride)
        parts = kernels.transpose(products, (3, 0, 2, 1, 4)).reshape(pieces, b, channels, t * stride)
        parts = kernels.split(parts, (1,) * pieces, 0) if pieces > 1 else (parts,)
        total = bias.reshape(1, channels, 1)
        for j, part in enumerate(parts):
            shifted = part.reshape(b, channels, t * stride)
            total = total + (kernels.pad(shifted, j * stride, (pieces - 1 - j) * stride) if pieces > 1 else shifted)
        length = total.shape[-1] - 2 * trim
        if length <= 0:
            return mint.zeros((b, channels, 0), dtype=x.dtype)
        return kernels.split(total, (trim, length, trim), -1)[1] if trim else total

    @staticmethod
    def snake_beta(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        alpha = mint.exp(alpha).reshape(1, -1, 1)
        beta = 1.0 / (mint.exp(beta).reshape(1, -1, 1) + 1e-9)
        return x + mint.square(mint.sin(x * alpha)) * beta

    @staticmethod
    def scale_channels(x: Tensor, scale: Tensor) -> Tensor:
        return x * scale

    @staticmethod
    def embedding(ids: Tensor, weight: Matrix, dtype: ms.Type | None = None) -> Tensor:
        return _rows_of_codes(ids, weight, dtype) if isinstance(weight, tuple) else kernels.embedding(ids, weight)

    @staticmethod
    def embedding_part(ids: Tensor, weight: Matrix, first: int, dtype: ms.Type | None = None) -> Tensor:
        local_index = ids.astype(ms.int32) - first
        count = weight[0].shape[0] if isinstance(weight, tuple) else weight.shape[0]
        inside = mint.logical_and(local_index >= 0, local_index < count)
        local_index = mint.where(inside, local_index, 0)
        if isinstance(weight, tuple):
            rows = _rows_of_codes(local_index, weight, dtype)
        else:
            rows = kernels.embedding(local_index, weight)
        return mint.where(inside.reshape(*ids.shape, 1), rows, 0.0)

    @staticmethod
    def gather_rows(x: Tensor, index: Tensor) -> Tensor:
        return mint.index_select(x, 0, index)

    @staticmethod
    def weighted_sum_rows(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        n, taps = index.shape
        return mint.bmm(weights.astype(x.dtype).reshape(n, 1, taps), kernels.embedding(index, x)).reshape(n, -1)

    @staticmethod
    def scatter_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        return kernels.index_copy(kernels.clone(x), index, rows)

    @staticmethod
    def add_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        return kernels.index_add(x, index, rows)

    @staticmethod
    def write_rows(buffer: Any, index: Tensor, rows: Tensor) -> Any:
        return kernels.index_copy(buffer, index, rows)

    @staticmethod
    def transpose(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        return kernels.transpose(x, axes)

    @staticmethod
    def argmax(x: Tensor) -> Tensor:
        return mint.argmax(x, -1).astype(ms.int32)

    @staticmethod
    def draw(logits: Tensor, noise: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
        size = logits.shape[-1] if top_k == 0 or top_k > logits.shape[-1] else top_k
        scores, ids = kernels.topk(logits.astype(ms.float32) / temperature, size)  # [B, k], descending
        probs = kernels.softmax(scores)
        before = mint.cumsum(probs, -1) - probs  # probability of likelier tokens
        total = mint.cumsum(mint.where(before < top_p, probs, 0.0), -1)
        target = noise * mint.max(total, -1, True)[0]
        index = mint.sum((total <= target).astype(ms.int32), -1, True)
        return mint.gather(ids, 1, mint.clamp(index, None, size - 1)).astype(ms.int32)

    @staticmethod
    def expert_load(logits: Tensor, k: int, mask: Tensor) -> tuple[Tensor, Tensor]:
        probs = kernels.softmax(logits.astype(ms.float32))  # [N, E]
        n, e = probs.shape
        indices = kernels.topk(probs, k)[1].reshape(-1)
        weights = ops.tile(mask.reshape(n, 1), (1, k)).reshape(-1)  # broadcast_to is a view
        counts = kernels.index_add(mint.zeros((e,), dtype=ms.float32), indices.astype(ms.int32), weights)
        return counts, mint.sum(probs * mask.reshape(n, 1), 0)

    # ---- other forms and the comparison on the device -----------------------------------------------------------------

    OTHER_FORMS: ClassVar = {
        "add_layer_norm": (_add_and_layer_norm,),
        "packed_attention": (ascend_attention.packed_attention_by_runs,),
        "paged_attention": (ascend_attention.paged_attention_gathered,),
        "experts": (ascend_moe.experts_of_all_pairs,),
    }
    WRONG_STEPS: ClassVar[frozenset] = frozenset()
    """(dtype, one of `STEPS`) that are replaced on this device, in a class that `settled` returns."""
    SETTLED: ClassVar[frozenset] = frozenset()
    """dtypes that the forms have been chosen for, in a class that `settled` returns."""

    @classmethod
    def settled(cls, dtype: ms.Type) -> type[Reference]:
        """The vocoder computes in float32 beside every other dtype."""
        wanted = cls.SETTLED | {dtype, ms.float32}
        base: Any = cls.__base__ if cls.SETTLED else cls
        return cls if wanted == cls.SETTLED else ascend_settle.settled(base, wanted)


def _rotated(x, cos, sin):
    """Every token has its own row of the tables, so batch and time are one axis for the kernel."""
    heads, d = x.shape[-2:]
    rows, tables = x.astype(ms.float32).reshape(1, -1, heads, d), (1, -1, 1, d)
    y = kernels.rotary_position_embedding(rows, cos.reshape(tables), sin.reshape(tables))
    return y.reshape(x.shape).astype(x.dtype)
