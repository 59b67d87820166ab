"""Matching a checkpoint's tensors with a cell's parameters, by name and shape, before anything is read."""

import math
from collections.abc import Container
from dataclasses import dataclass, field

from ms_omni.errors import CheckpointError

from .header import WEIGHT_DTYPES
from .names import COMPONENTS, FLATTEN, IGNORE, KEEP, Source, place, sources
from .reader import CheckpointReader

SHOWN_PER_KIND = 25
HEAD, EMBEDDING = "thinker.lm_head.weight", "thinker.model.embed_tokens.weight"
_SAVED_ALONE = {  # beginnings of names in a checkpoint of one component, which are written without its prefix
    "thinker.": ("audio_tower.", "visual.", "lm_head."),
    "talker.": ("code_predictor.", "codec_head.", "text_projection.", "hidden_projection."),
    "code2wav.": ("pre_transformer.", "code_embedding.", "upsample."),
}


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

    def raise_if_any(self, folder) -> None:
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


def file_root(names) -> str:
    """What stands before each stored name to make it a full name: "" normally, "thinker." for a thinker saved alone."""
    if any(name.split(".", 1)[0] in COMPONENTS for name in names):
        return ""
    for root, beginnings in _SAVED_ALONE.items():
        if any(name.startswith(beginnings) for name in names):
            return root
    return ""


def plan_loading(
    shapes: dict[str, tuple[int, ...]], reader: CheckpointReader, prefix: str = "", spare: Container[str] = ()
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
