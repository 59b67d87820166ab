"""The vision encoder: patches -> one vector per merged 2 x 2 block, plus deepstack features from inner layers.

pixels [N, C*t*p*p] --linear, + interpolated positions--> [N, D] --blocks, attention per frame--> [N, D]
    --merger--> [N/4, out]            after some blocks: --merger_list[i]--> [N/4, out] (deepstack)
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from ..errors import InputError
from ..outputs import VisionOutput
from . import ops
from .encoder import Encoder, Projector, check_kind, stored
from .forward import check_arguments, given_tensor
from .layer import Cell, has_hooks
from .layers import Embedding, LayerNorm, Linear, ProjectionMLP
from .ops.fused import EncoderLayerWeights
from .packing import patch_grids, segments_of
from .positions import axial_tables, inverse_frequencies

NORM_EPS = 1e-6


def grid_positions(grids: np.ndarray, merge: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column `[N]` each of every patch, in the order of merged blocks: all patches of a block in a row."""
    rows, columns = [], []
    for t, h, w in grids.tolist():
        blocks = (h // merge, merge, w // merge, merge)
        y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
        rows.append(np.tile(y.reshape(blocks).transpose(0, 2, 1, 3).reshape(-1), t))
        columns.append(np.tile(x.reshape(blocks).transpose(0, 2, 1, 3).reshape(-1), t))
    return np.concatenate(rows), np.concatenate(columns)


def interpolation_taps(index: np.ndarray, size: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear resampling of an axis of `side` learned positions to `size`, corners aligned.

    index `[N]`, size `[N]` -> neighbours `[N, 2]` and weights float32 `[N, 2]`.
    """
    source = index.astype(np.float32) * np.float32(side - 1) / np.maximum(size - 1, 1).astype(np.float32)
    low = np.floor(source)
    high_weight = source - low
    taps = np.clip(np.stack([low, low + 1], axis=-1).astype(np.int32), 0, side - 1)
    return taps, np.stack([1 - high_weight, high_weight], axis=-1)


@functools.lru_cache(maxsize=4)
def _positions(grids, merge, side, frequencies):
    """What depends on the grids `((t, h, w), ...)` alone, as many pictures have the same: where each patch finds the learned positions
    that it is between, int32 `[N, 4]`, and their shares `[N, 4]`; cos and sin of `axial_tables`.
    """
    grids = np.array(grids)
    rows, columns = grid_positions(grids, merge)
    sizes = np.repeat(grids[:, 1:], grids.prod(axis=1), axis=0)  # [N, 2]
    row_taps, row_weights = interpolation_taps(rows, sizes[:, 0], side)
    column_taps, column_weights = interpolation_taps(columns, sizes[:, 1], side)
    index = (row_taps[:, :, None] * side + column_taps[:, None, :]).reshape(-1, 4)
    weights = (row_weights[:, :, None] * column_weights[:, None, :]).reshape(-1, 4).astype(np.float32)
    return Tensor(index), Tensor(weights), axial_tables(rows, columns, np.array(frequencies, np.float32))


class VisionAttention(Cell):
    """Full attention inside each frame, `[N, D]` -> `[N, D]`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.scale = (config.hidden_size // config.num_heads) ** -0.5
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def construct(self, x: Tensor, segments: tuple[tuple[int, int], ...], rope: ops.Pair) -> Tensor:
        qkv = ops.transpose(
            self.qkv(x).reshape(x.shape[0], 3, self.heads, -1), (1, 0, 2, 3)
        )  # parts that kernels need not copy
        q, k, v = (qkv[i] for i in range(3))  # [N, H, D]
        q, k = ops.rotary(q, *rope), ops.rotary(k, *rope)
        return self.proj(ops.packed_attention(q, k, v, segments, self.scale))


class VisionBlock(Cell):
    """Pre-norm transformer block on packed patches."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, NORM_EPS)
        self.norm2 = LayerNorm(config.hidden_size, NORM_EPS)
        self.attn = VisionAttention(config)
        self.mlp = ProjectionMLP(config.hidden_size, config.intermediate_size, config.hidden_size, config.hidden_act)

    def construct(self, x: Tensor, segments: tuple[tuple[int, int], ...], rope: ops.Pair) -> Tensor:
        x = x + self.attn(self.norm1(x), segments, rope)
        return x + self.mlp(self.norm2(x))

    def weights(self) -> EncoderLayerWeights:
        """`EncoderLayerWeights`. Raises `CellsOnly`."""
        attn, mlp = self.attn, self.mlp
        for kind, cell in ((VisionBlock, self), (VisionAttention, attn), (ProjectionMLP, mlp)):
            check_kind(kind, cell)
        norm1, norm2 = stored(LayerNorm, self.norm1, self.norm2)
        qkv, out, up, down = stored(Linear, attn.qkv, attn.proj, mlp.linear_fc1, mlp.linear_fc2)
        return EncoderLayerWeights(norm1, (qkv,), out, norm2, up, down)

    def settings(self) -> tuple[int, float, float, Callable[[Tensor], Tensor]]:
        """What `EncoderWeights` has beside the layers."""
        return self.attn.heads, self.attn.scale, NORM_EPS, self.mlp.act_fn


class PatchEmbed(Cell):
    """The 3-D convolution whose kernel equals its stride, as the one linear layer that it is."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.width = config.in_channels * config.temporal_patch_size * config.patch_size**2
        self.proj = Linear(self.width, config.hidden_size)

    def construct(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PatchMerger(Projector):
    """Merges `merge * merge` neighbouring patches: `[N, D]` -> `[N / merge^2, out]`."""

    def __init__(self, config: Any, use_postshuffle_norm: bool) -> None:
        super().__init__()
        self.merged = config.hidden_size * config.spatial_merge_size**2
        self.use_postshuffle_norm = use_postshuffle_norm
        self.ln_q = LayerNorm(self.merged if use_postshuffle_norm else config.hidden_size, NORM_EPS)
        self.mlp = nn.CellList([Linear(self.merged, self.merged), Gelu(), Linear(self.merged, config.out_hidden_size)])

    def construct(self, x: Tensor) -> Tensor:
        fc1, activation, fc2 = self.mlp
        if type(activation) is Gelu and not has_hooks(activation) and not ops.recording():
            activation = ops.gelu
        if self.use_postshuffle_norm:
            x = x.reshape(-1, self.merged)
        return self.project(x, self.merged, self.ln_q, fc1, activation, fc2)


class Gelu(Cell):
    """Keeps the numbering of the checkpoint: `mlp.0` and `mlp.2` are linear, `mlp.1` is this."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class VisionEncoder(Encoder):
    """Mirrors `Qwen3OmniMoeVisionEncoder`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.spatial_merge_size = config.spatial_merge_size
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = Embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.CellList([VisionBlock(config) for _ in range(config.depth)])
        self.merger = PatchMerger(config, use_postshuffle_norm=False)
        self.merger_list = nn.CellList([PatchMerger(config, True) for _ in config.deepstack_visual_indexes])
        self.side = round(config.num_position_embeddings**0.5)
        head_dim = config.hidden_size // config.num_heads
        self.inv_freq = inverse_frequencies(config.rope_theta, head_dim // 2)

    @property
    def stacked(self) -> nn.CellList:
        return self.blocks

    @property
    def input_layer(self) -> Cell:
        return self.patch_embed

    @property
    def deepstack_merger_list(self) -> nn.CellList:
        """The reference's other name of `merger_list`."""
        return self.merger_list

    def construct(
        self,
        hidden_states: Any,
        grid_thw: Any,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> VisionOutput:
        """hidden_states `[N, C*t*p*p]` pixels of all images or frames, grid_thw `[n, 3]` in patches -> `VisionOutput`: the merged
        features `[N / merge^2, out]` and the list of deepstack features of the same shape.

        Raises `InputError` for patches of another size, numbers that are not finite, and grids that do not cover the patches.
        """
        check_arguments(output_attentions)
        pixels = given_tensor(hidden_states, "pixel values", ("patches", self.patch_embed.width))
        grids = self.check_grids(grid_thw, hidden_states.shape[0])
        segments = segments_of(np.repeat(grids[:, 1] * grids[:, 2], grids[:, 0]))
        settings = self.spatial_merge_size, self.side, tuple(self.inv_freq.tolist())
        index, weights, rope = _positions(tuple(map(tuple, grids.tolist())), *settings)
        index, table = self.pos_embed.rows(index)
        x = self.patch_embed(pixels.astype(self.patch_embed.proj.dtype))
        x = x + ops.weighted_sum_rows(table, index, weights)
        return self.encode(x, segments, rope, output_hidden_states)

    def check_grids(self, grids: Any, patches: int) -> np.ndarray:
        grids = patch_grids(grids, "grid_thw", self.spatial_merge_size)
        if grids.prod(axis=1).sum() != patches:
            raise InputError(
                f"grid_thw {grids.tolist()} describes {grids.prod(axis=1).sum()} patches, "
                f"but pixel values have {patches} rows"
            )
        return grids

    def encode(
        self, x: Tensor, segments: tuple[tuple[int, int], ...], rope: ops.Pair, watched: bool | None = False
    ) -> VisionOutput:
        """The blocks on embedded patches `[N, D]`; watched: their inputs and the last output are returned too."""
        mergers = {
            layer + 1: merger for layer, merger in zip(self.config.deepstack_visual_indexes, self.merger_list, strict=True)
        }
        wanted = sorted({*range(len(self.blocks) + 1)} if watched else {*mergers, len(self.blocks)})
        deepstack, states = [], []
        passed = zip(wanted, self.states(x, segments, rope, wanted), strict=True)
        for number, x in passed:
            if watched:
                states.append(x)
            if number in mergers:
                deepstack.append(mergers[number](x))
        return VisionOutput(self.merger(x), deepstack, x, tuple(states) if watched else None)
