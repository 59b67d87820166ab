"""MLX's affine layout (`mx.quantize`), and mlx-vlm's names of Qwen3-Omni.

    weight uint32 [N, K bits / 32]   scales, biases bfloat16 or float16 [N, K / group]
    weight[n, k] = q * scales[n, k // group] + biases[n, k // group]        q: 0 to 2^bits - 1

The numbers of a row are a stream of bits, lowest first. config.json says `quantization`: {group_size, bits, and the same of single
modules by name}. mlx-vlm (`mlx_vlm/models/qwen3_omni_moe`) stacks experts, names parts of the thinker otherwise and transposes the
kernels of convolutions; that is undone here.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from ms_omni.errors import CheckpointError

from .matrix import Decoded, Matrix, Misfit, Parts, expect, expect_scales, need, storage_for, two_axes, unpack_bits, words_of

BITS = (2, 3, 4, 5, 6, 8)
FORMAT = "mlx"  # in the metadata of a file
RENAMES = (
    (r"^thinker\.language_model\.", "thinker."),
    (r"^thinker\.vision_tower\.", "thinker.visual."),
    (r"^thinker\.visual\.deepstack_merger_list\.", "thinker.visual.merger_list."),
    (r"^(thinker\.visual\.merger(?:_list\.\d+)?)\.norm\.", r"\1.ln_q."),
    (r"^(thinker\.visual\.merger(?:_list\.\d+)?)\.linear_fc1\.", r"\1.mlp.0."),
    (r"^(thinker\.visual\.merger(?:_list\.\d+)?)\.linear_fc2\.", r"\1.mlp.2."),
)
TRANSPOSED = (  # kernels: MLX has channels last; the axes that put them back
    (r"thinker\.audio_tower\.conv2d\d\.weight", (0, 3, 1, 2)),
    (r"thinker\.visual\.patch_embed\.proj\.weight", (0, 4, 1, 2, 3)),
    (
        r"code2wav\.(upsample\.\d+\.0\.conv|decoder\.\d+\.block\.1\.conv)\.weight",
        (2, 0, 1),
    ),  # they upsample: [out, width, in]
    (r"code2wav\..*conv\.weight", (0, 2, 1)),
)


def published_name(name: str) -> str:
    """The name that a tensor has in the published checkpoint; experts stay stacked."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def axes(name: str) -> tuple[int, ...] | None:
    """The axes that put a kernel back as it was published (its published name), None for what was not transposed."""
    return next((order for pattern, order in TRANSPOSED if re.fullmatch(pattern, name)), None)


class Mlx:
    """config: `quantization` of config.json. Raises CheckpointError for another mode than affine."""

    title = "MLX"
    dropped: tuple[str, ...] = ()

    def __init__(self, config: Mapping):
        modes = {config.get("mode", "affine")} | {
            fields.get("mode", "affine") for fields in config.values() if isinstance(fields, Mapping)
        }
        if modes != {"affine"}:
            raise CheckpointError(
                f"the weights are quantised by MLX in mode {', '.join(sorted(modes - {'affine'}))}, which is not read; take a "
                "checkpoint in mode affine, or the one that it was made from."
            )
        self.config = {published_name(f"{name}.").removesuffix("."): settings for name, settings in config.items()}

    def wrote(self, names: Iterable[str], metadata: Mapping[str, Mapping]) -> bool:
        """Whether mlx-vlm wrote the files, with its names and kernels."""
        return any(settings.get("format") == FORMAT for settings in metadata.values()) or any(
            published_name(name) != name for name in names
        )

    def holds(self, parts: Parts) -> bool:
        return "scales" in parts or "biases" in parts or ("weight" in parts and parts["weight"].dtype == "U32")

    def uses(self, parts: Parts) -> set[str]:
        return {"weight", "scales", "biases"} & parts.keys()

    def matrix(self, module: str, parts: Parts) -> Matrix:
        need(parts, "weight", "scales", "biases")
        own = self.config.get(module)
        settings = {**self.config, **own} if isinstance(own, Mapping) else self.config
        bits, group = settings.get("bits"), settings.get("group_size")
        if bits not in BITS or not isinstance(group, int) or group < 1:
            raise Misfit(f"{bits!r} bits in groups of {group!r}, expected one of {', '.join(map(str, BITS))} in groups")
        (outputs, _), (_, groups) = two_axes(parts, "weight"), two_axes(parts, "scales")
        inputs = groups * group
        scale = expect_scales(parts, "scales", (outputs, groups))
        expect(parts, "biases", (scale,), (outputs, groups))
        expect(parts, "weight", ("U32",), (outputs, words_of(inputs, bits)))
        offset = scale if bits in (2, 3, 5, 6) else "F32"
        storage, why = storage_for(bits, (outputs, inputs), groups, scale, offset)
        return Matrix((outputs, inputs), scale, storage, why, partial(_decode, bits=bits, inputs=inputs))


def _decode(arrays, bits, inputs):
    """Codes as they are where int4 or int8 hold them, else less half their range, which goes to the offsets (in float32)."""
    numbers, scales, offsets = unpack_bits(arrays["weight"], bits, inputs), arrays["scales"], arrays["biases"]
    if bits in (4, 8):
        middle = 1 << (bits - 1)
        numbers, offsets = numbers.astype(np.int16) - middle, offsets.astype(np.float32) + middle * scales.astype(np.float32)
    return Decoded(numbers.astype(np.int8), scales, offsets)
