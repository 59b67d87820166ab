"""Which tensor of a published checkpoint fills which parameter: one table of invertible rules.

Source names are those of the published files and of transformers' `save_pretrained`, with the leading `thinker.`,
`talker.` or `code2wav.`. Each name matches exactly one row. A row says to which parameter it goes and how:

  KEEP           same name, same shape
  FLATTEN        [H, C, t, p, p] -> [H, C*t*p*p]: a convolution over whole patches is one linear layer
  GATE, UP, DOWN one expert's matrix, transposed, becomes one slice of the stacked parameter:
                 gate_up[e, :, :I] = gate_proj.T, gate_up[e, :, I:] = up_proj.T, down[e] = down_proj.T
  IGNORE         a constant that some versions save; the model computes it
"""

import math
import re
from dataclasses import dataclass
from typing import Any

KEEP, FLATTEN, GATE, UP, DOWN, IGNORE = "keep", "flatten", "gate", "up", "down", "ignore"
STACKED = (GATE, UP, DOWN)
COMPONENTS = ("thinker", "talker", "code2wav")


@dataclass(frozen=True)
class Rule:
    """One row: names that fully match `pattern` go to `target` (same name when None) by `transform`."""

    part: str  # the line of `ms-omni inspect` that counts it
    pattern: re.Pattern
    transform: str = KEEP
    target: str | None = None


@dataclass(frozen=True)
class Place:
    """Where one source tensor goes. `expert` is its index in the stack, for stacked transforms."""

    target: str
    transform: str
    part: str
    expert: int | None = None


@dataclass(frozen=True)
class Source:
    """One source tensor of a parameter: its published name and shape."""

    name: str
    shape: tuple[int, ...]
    transform: str
    expert: int | None = None


def _rows(part, *patterns, transform=KEEP, target=None):
    return [Rule(part, re.compile(pattern.replace("<n>", r"\d+")), transform, target) for pattern in patterns]


def _decoder_rows(part, stack, dense=True, head_norms=True):
    rows = _rows(
        part,
        stack + r"layers\.<n>\.(input|post_attention)_layernorm\.weight",
        stack + r"layers\.<n>\.self_attn\.[qkvo]_proj\.(weight|bias)",
        stack + r"norm\.weight",
    )
    if head_norms:
        rows += _rows(part, stack + r"layers\.<n>\.self_attn\.[qk]_norm\.weight")
    if dense:
        rows += _rows(part, stack + r"layers\.<n>\.mlp\.(gate|up|down)_proj\.weight")
    return rows


def _expert_rows(part, stack):
    rows = _rows(part, stack + r"layers\.<n>\.mlp\.gate\.weight")
    for matrix, transform, stacked in (("gate", GATE, "gate_up"), ("up", UP, "gate_up"), ("down", DOWN, "down")):
        rows += _rows(
            part,
            rf"(?P<experts>{stack}layers\.<n>\.mlp\.experts)\.(?P<e><n>)\.{matrix}_proj\.weight",
            transform=transform,
            target=r"{experts}." + stacked,
        )
    return rows


RULES: tuple[Rule, ...] = tuple(
    _rows("thinker decoder", r"thinker\.model\.embed_tokens\.weight")
    + _decoder_rows("thinker decoder", r"thinker\.model\.")
    + _expert_rows("thinker decoder", r"thinker\.model\.")
    + _rows("thinker head", r"thinker\.lm_head\.weight")
    + _rows(
        "audio encoder",
        r"thinker\.audio_tower\.conv2d[123]\.(weight|bias)",
        r"thinker\.audio_tower\.(conv_out|proj1|proj2|ln_post)\.(weight|bias)",
        r"thinker\.audio_tower\.layers\.<n>\.self_attn\.(q|k|v|out)_proj\.(weight|bias)",
        r"thinker\.audio_tower\.layers\.<n>\.(self_attn_layer_norm|final_layer_norm|fc1|fc2)\.(weight|bias)",
    )
    + _rows("vision encoder", r"thinker\.visual\.patch_embed\.proj\.weight", transform=FLATTEN)
    + _rows(
        "vision encoder",
        r"thinker\.visual\.patch_embed\.proj\.bias",
        r"thinker\.visual\.pos_embed\.weight",
        r"thinker\.visual\.blocks\.<n>\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.linear_fc[12])\.(weight|bias)",
        r"thinker\.visual\.(merger|merger_list\.<n>)\.(ln_q|mlp\.<n>)\.(weight|bias)",
    )
    + _rows("talker decoder", r"talker\.model\.codec_embedding\.weight")
    + _decoder_rows("talker decoder", r"talker\.model\.", dense=False)
    + _expert_rows("talker decoder", r"talker\.model\.")
    + _rows(
        "talker decoder",
        r"talker\.model\.layers\.<n>\.mlp\.shared_expert\.(gate|up|down)_proj\.weight",
        r"talker\.model\.layers\.<n>\.mlp\.shared_expert_gate\.weight",
    )
    + _rows("talker projections", r"talker\.(text|hidden)_projection\.linear_fc[12]\.(weight|bias)")
    + _rows("codec head", r"talker\.codec_head\.weight")
    + _decoder_rows("code predictor", r"talker\.code_predictor\.model\.")
    + _rows("code predictor", r"talker\.code_predictor\.(model\.codec_embedding|lm_head)\.<n>\.weight")
    + _decoder_rows("code2wav", r"code2wav\.pre_transformer\.", head_norms=False)
    + _rows(
        "code2wav",
        r"code2wav\.pre_transformer\.layers\.<n>\.(self_attn|mlp)_layer_scale\.scale",
        r"code2wav\.code_embedding\.weight",
        r"code2wav\.upsample\.<n>\.<n>\.((dwconv\.)?conv|norm|pwconv1|pwconv2)\.(weight|bias)",
        r"code2wav\.upsample\.<n>\.<n>\.gamma",
        r"code2wav\.decoder\.<n>\.(block\.<n>\.)?(conv1\.|conv2\.)?conv\.(weight|bias)",
        r"code2wav\.decoder\.<n>\.(block\.<n>\.)?(act1\.|act2\.)?(alpha|beta)",
    )
    + _rows(
        "constants",
        r"(thinker|talker|code2wav)\.(.+\.)?(original_)?inv_freq",
        r"thinker\.audio_tower\.positional_embedding\.positional_embedding",
        r"code2wav\.code_offset",
        transform=IGNORE,
    )
)


def place(name: str) -> Place | None:
    """Where the tensor `name` goes, or None when no rule knows it. Raises AssertionError when two rules do."""
    found = [(rule, hit) for rule in RULES if (hit := rule.pattern.fullmatch(name))]
    if not found:
        return None
    assert len(found) == 1, f"{name} matches {len(found)} rules"
    rule, hit = found[0]
    if rule.target is None:
        return Place(name, rule.transform, rule.part)
    return Place(rule.target.format(**hit.groupdict()), rule.transform, rule.part, int(hit["e"]))


def part_of(parameter: str) -> str | None:
    """The line of `ms-omni inspect` that counts the parameter (our name), or None when no rule makes it."""
    probe = parameter
    for stacked, source in (
        (".experts.gate_up", ".experts.0.gate_proj.weight"),
        (".experts.down", ".experts.0.down_proj.weight"),
    ):
        if parameter.endswith(stacked):
            probe = parameter[: -len(stacked)] + source
    spot = place(probe)
    return spot.part if spot and spot.target == parameter else None


def sources(parameter: str, shape: tuple[int, ...], patch_shape: tuple[int, ...] | None = None) -> list[Source]:
    """The inverse: which source tensors make up the parameter, in the order of the stack.

    Args:
        parameter: our name, with the leading `thinker.`, `talker.` or `code2wav.`.
        shape: its shape.
        patch_shape: (C, t, p, p) of the vision encoder, see `patch_shape_of`; without it the patch embedding's source
            shape is given flat, as the parameter's.
    """
    if parameter.endswith(".experts.gate_up"):
        experts, width, twice = shape
        stem, matrix = parameter[: -len(".gate_up")], (twice // 2, width)
        return [Source(f"{stem}.{e}.{kind}_proj.weight", matrix, kind, e) for e in range(experts) for kind in (GATE, UP)]
    if parameter.endswith(".experts.down"):
        experts, inner, width = shape
        stem = parameter[: -len(".down")]
        return [Source(f"{stem}.{e}.down_proj.weight", (width, inner), DOWN, e) for e in range(experts)]
    if parameter.endswith("visual.patch_embed.proj.weight"):
        if patch_shape is None or math.prod(patch_shape) != shape[1]:
            return [Source(parameter, tuple(shape), FLATTEN)]
        return [Source(parameter, (shape[0], *patch_shape), FLATTEN)]
    return [Source(parameter, tuple(shape), KEEP)]


def patch_shape_of(vision_config: Any) -> tuple[int, int, int, int]:
    """(C, t, p, p) of a vision configuration: the trailing axes of the published patch embedding."""
    return (
        vision_config.in_channels,
        vision_config.temporal_patch_size,
        vision_config.patch_size,
        vision_config.patch_size,
    )


def region(source: Source, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Which part of a parameter of `shape` the source fills: `(start, stop)` per axis."""
    whole = [(0, n) for n in shape]
    if source.expert is None:
        return whole
    inner = shape[2] // 2
    columns = {GATE: (0, inner), UP: (inner, shape[2]), DOWN: whole[2]}[source.transform]
    return [(source.expert, source.expert + 1), whole[1], columns]


def slot(source: Source, buffer: Any) -> Any:
    """The view of the parameter's `buffer` that `source` fills, laid out as the source tensor is (transposed back)."""
    if source.transform == KEEP:
        return buffer
    if source.transform == FLATTEN:
        return buffer.reshape(source.shape)
    stack = buffer[source.expert]  # [D, 2I] or [I, D]
    if source.transform == DOWN:
        return stack.T  # [D, I]
    inner = stack.shape[1] // 2
    return (stack[:, :inner] if source.transform == GATE else stack[:, inner:]).T  # [I, D]
