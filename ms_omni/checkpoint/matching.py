"""Which stored tensors fill which parameter, by name and shape, before anything is read; and whether the configuration fits them."""

import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from ms_omni.errors import CheckpointError

from .names import COMPONENTS, FLATTEN, IGNORE, KEEP, Source, place, sources
from .reader import Reader, report
from .safetensors import WEIGHT_DTYPES

SHOWN_PER_KIND = 25
HEAD, EMBEDDING = "thinker.lm_head.weight", "thinker.model.embed_tokens.weight"
_SAVED_ALONE = {  # beginnings of names in a checkpoint of one component, which are written without its prefix
    "thinker.": ("audio_tower.", "visual.", "lm_head."),
    "talker.": ("code_predictor.", "codec_head.", "text_projection.", "hidden_projection."),
    "code2wav.": ("pre_transformer.", "code_embedding.", "upsample."),
}
# Numbers of the configuration (of a list: how long it is), what they count among the full names, and how many more those are.
COUNTS = (
    ("thinker_config.text_config.num_hidden_layers", r"thinker\.model\.layers\.(\d+)\.", 0),
    ("thinker_config.audio_config.encoder_layers", r"thinker\.audio_tower\.layers\.(\d+)\.", 0),
    ("thinker_config.vision_config.depth", r"thinker\.visual\.blocks\.(\d+)\.", 0),
    ("thinker_config.vision_config.deepstack_visual_indexes", r"thinker\.visual\.merger_list\.(\d+)\.", 0),
    ("talker_config.text_config.num_hidden_layers", r"talker\.model\.layers\.(\d+)\.", 0),
    ("talker_config.code_predictor_config.num_hidden_layers", r"talker\.code_predictor\.model\.layers\.(\d+)\.", 0),
    ("talker_config.num_code_groups", r"talker\.code_predictor\.lm_head\.(\d+)\.", -1),
    ("code2wav_config.num_hidden_layers", r"code2wav\.pre_transformer\.layers\.(\d+)\.", 0),
    ("code2wav_config.upsampling_ratios", r"code2wav\.upsample\.(\d+)\.", 0),
    ("code2wav_config.upsample_rates", r"code2wav\.decoder\.(\d+)\.", 3),  # convolution; blocks; activation, convolution
)
LAYERS = ("num_hidden_layers", "encoder_layers", "depth")
ROUTERS = (
    ("thinker_config.text_config", r"thinker\.model\.layers\.\d+\.mlp\.gate\.weight"),
    ("talker_config.text_config", r"talker\.model\.layers\.\d+\.mlp\.gate\.weight"),
)


@dataclass(frozen=True)
class Fill:
    """One parameter (the cell's own name) and the stored tensors that fill it, in order."""

    parameter: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, Source], ...]


@dataclass
class Problems:
    """What does not fit, by kind; every kind is listed in one error."""

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def raise_if_any(self, folder: Any) -> None:
        """Raises CheckpointError with all of them."""
        kinds = (
            ("missing tensors", self.missing),
            ("tensors that the model does not have", self.extra),
            ("tensors of another shape", self.misshapen),
            ("tensors of an unsupported dtype", self.dtypes),
            ("contradictions", self.other),
        )
        lines = []
        for title, names in kinds:
            if names:
                lines.append(f"  {len(names)} {title}:" if len(names) > 1 else f"  1 of {title}:")
                lines += [f"    {name}" for name in names[:SHOWN_PER_KIND]]
                if len(names) > SHOWN_PER_KIND:
                    lines.append(f"    ... and {len(names) - SHOWN_PER_KIND} more")
        if lines:
            raise CheckpointError(f"{folder} does not fit the model that its config.json describes:\n" + "\n".join(lines))


def file_root(names: Iterable[str]) -> str:
    """What stands before each stored name to make it a full name: "" normally, "thinker." for a thinker saved alone."""
    if any(name.split(".", 1)[0] in COMPONENTS for name in names):
        return ""
    for root, beginnings in _SAVED_ALONE.items():
        if any(name.startswith(beginnings) for name in names):
            return root
    return ""


def plan_loading(
    shapes: dict[str, tuple[int, ...]], reader: Reader, prefix: str = "", spare: Container[str] = ()
) -> tuple[list[Fill], list[str]]:
    """Which stored tensors fill which parameter.

    Args:
        shapes: {parameter name in the cell: shape}.
        reader: the opened checkpoint, in published or in our names.
        prefix: what stands before the cell's names in a full checkpoint, such as "thinker.".
        spare: full names that may be left aside.

    Returns:
        One Fill per parameter, and the stored names that are not used: other components, saved constants and spare ones.

    Raises:
        CheckpointError: with every missing, extra and misshapen tensor.
    """
    root = file_root(reader.entries)
    stored = {root + name: name for name in reader.entries}
    expected = {
        prefix + name: _expected_sources(prefix + name, shape, reader.is_converted) for name, shape in shapes.items()
    }
    wanted = {source.name for parts in expected.values() for source in parts}
    problems = Problems()
    unused = _sort_out_rest(stored, wanted, expected, reader, problems, spare)
    fills = []
    for name, shape in shapes.items():
        parts = []
        for source in expected[prefix + name]:
            if source.name in stored:
                parts.append((stored[source.name], _fit(source, reader.entries[stored[source.name]], problems)))
            else:
                problems.missing.append(f"{source.name.removeprefix(root)} {list(source.shape)}")
        fills.append(Fill(name, tuple(shape), tuple(parts)))
    problems.raise_if_any(reader.folder)
    return fills, unused


def _expected_sources(parameter, shape, converted) -> list[Source]:
    return [Source(parameter, tuple(shape), KEEP)] if converted else sources(parameter, shape)


def _fit(source: Source, entry, problems: Problems) -> Source:
    """`source` with the stored shape, which may have a patch embedding's trailing axes apart."""
    if entry.dtype not in WEIGHT_DTYPES:
        problems.dtypes.append(f"{entry.name}: got {entry.dtype}, expected one of {', '.join(WEIGHT_DTYPES)}")
    same = entry.shape == source.shape
    if source.transform == FLATTEN and len(entry.shape) == 5:
        same = (entry.shape[0], math.prod(entry.shape[1:])) == source.shape
    if not same:
        problems.misshapen.append(f"{entry.name}: got {list(entry.shape)}, expected {list(source.shape)}")
    return Source(source.name, entry.shape, source.transform, source.expert)


def _sort_out_rest(stored, wanted, expected, reader, problems, spare) -> list[str]:
    """Stored names that no parameter wants: those that may be left aside are returned, the others are problems."""
    components, unused = {name.split(".", 1)[0] for name in expected}, []
    for full, name in stored.items():
        if full in wanted:
            continue
        spot = place(full)
        elsewhere = full.split(".", 1)[0] in COMPONENTS and full.split(".", 1)[0] not in components
        if elsewhere or full in spare or (spot is not None and spot.transform == IGNORE):
            unused.append(name)
        elif full == HEAD and EMBEDDING in expected and EMBEDDING in stored:
            unused.append(name)
            _check_tied(name, stored[EMBEDDING], reader, problems)
        else:
            problems.extra.append(f"{name} {list(reader.entries[name].shape)}")
    return unused


def _check_tied(head, embedding, reader, problems):
    """A head that is stored although config.json ties it to the embedding must be the embedding."""
    first, second = reader.array(head), reader.array(embedding)
    rows = 4096
    same = (
        first.shape == second.shape
        and first.dtype == second.dtype
        and all(first[at : at + rows].tobytes() == second[at : at + rows].tobytes() for at in range(0, len(first), rows))
    )
    if not same:
        problems.other.append(f"{head}: differs from {embedding}, but config.json says tie_word_embeddings; set it to false")
    reader.release(head)
    reader.release(embedding)


def gather(reader: Reader) -> list[Fill]:
    """Which tensors of a reader of published names make which parameter (named without what `file_root` puts before it).

    Raises:
        CheckpointError: one error that lists all tensors that no rule knows and all stacks that lack experts.
    """
    root, gathered, problems = file_root(reader.entries), {}, []
    for name in reader.entries:
        spot = place(root + name)
        if spot is None:
            problems.append(f"{name}: no tensor of this name in Qwen3-Omni")
        else:
            gathered.setdefault(spot.target, []).append((spot, name))
    fills = []
    for target, parts in gathered.items():
        parts.sort(key=lambda part: (part[0].expert or 0, part[0].transform != "gate"))
        shape = _stacked_shape(target, parts, reader, problems)
        if shape is not None:
            made = tuple((name, _source(reader, spot, name)) for spot, name in parts)
            fills.append(Fill(target.removeprefix(root), shape, made))
    if problems:
        raise report(problems, f"{reader.folder} cannot be converted")
    return fills


def _source(reader, spot, name) -> Source:
    transform = KEEP if spot.transform == IGNORE else spot.transform
    return Source(name, reader.entries[name].shape, transform, spot.expert)


def _stacked_shape(target, parts, reader, problems) -> tuple[int, ...] | None:
    """Shape of the parameter that the parts make; None, with a problem noted, when parts are absent or differ."""
    spot, first = parts[0]
    shape = reader.entries[first].shape
    if spot.transform in (KEEP, IGNORE):
        return shape
    if spot.transform == FLATTEN:
        return (shape[0], math.prod(shape[1:]))
    per_expert = 2 if target.endswith(".gate_up") else 1
    experts = max(part.expert for part, _ in parts) + 1
    if len(parts) != per_expert * experts:
        problems.append(f"{target}: {len(parts)} expert matrices, expected {per_expert} for each of {experts} experts")
        return None
    if len(shape) != 2 or any(reader.entries[name].shape != shape for _, name in parts):
        problems.append(f"{target}: its expert matrices differ in shape, or have not two axes")
        return None
    return (experts, shape[1], per_expert * shape[0])


def check_counts(config: Any, stored: Mapping[str, tuple[int, ...]], prefix: str, folder: Any) -> None:
    """Compares layers, blocks, code groups and experts of `config` with what is stored.

    Args:
        config: of a whole model (prefix ""), or of the component `prefix`, such as "thinker.".
        stored: {full name: shape}, in published or in our names.
        folder: for the message.

    Raises:
        CheckpointError: numbers larger than the names allow; a smaller one shows as tensors left over.
    """
    problems = []
    for path, pattern, more in COUNTS:
        configured = _value(config, path, prefix)
        if configured is not None:
            names = {hit[1] for name in stored if (hit := re.match(pattern, name))}
            found = max(0, len(names) - more) if names else 0
            number = configured if isinstance(configured, int) else len(configured)
            if number > found:
                problems.append(f"{path} says {number}, the weights have {found}")
    for path, pattern in () if problems else ROUTERS:  # the number of layers is believed by now
        text = _value(config, path, prefix)
        if text is not None and any(map(text.is_sparse_layer, range(text.num_hidden_layers))):
            found = max((shape[0] for name, shape in stored.items() if shape and re.fullmatch(pattern, name)), default=0)
            if text.num_experts > found:
                problems.append(f"{path}.num_experts says {text.num_experts}, the weights have {found}")
    if problems:
        raise CheckpointError(
            f"{folder} does not fit the model that its configuration describes:\n  " + "\n  ".join(problems)
        )


def layers_beyond(config: Any, stored: Iterable[str], prefix: str) -> set[str]:
    """The full names among `stored` that belong to layers behind the last one that `config` counts; arguments as above."""
    beyond = set()
    for path, pattern, _ in COUNTS:
        number = _value(config, path, prefix) if path.endswith(LAYERS) else None
        if number is not None:
            beyond |= {name for name in stored if (hit := re.match(pattern, name)) and int(hit[1]) >= number}
    return beyond


def _value(config, path, prefix):
    """What stands at `path` of a whole model's configuration; None for a part that this one is not, or leaves out."""
    section, _, inner = path.partition(".")
    if prefix and section != f"{prefix[:-1]}_config":
        return None
    owner = config if prefix else getattr(config, section, None)
    return None if owner is None else attrgetter(inner)(owner)
