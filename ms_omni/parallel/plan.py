"""Plans as tables: which ranks hold which part of every parameter. No MindSpore here, only names and numbers.

One table drives loading (a rank reads its slices), the prediction of memory (`ms-omni plan`) and export
(`ms-omni convert --shards`). Names are full names, with the leading `thinker.`, `talker.` or `code2wav.`.

A parameter is cut along one axis (`Placement`), or, for ZeRO-3, into equal runs of its elements in row-major order (`Flat`). Where
the first axis divides, a run is a slice of rows, as mindone has it; where it does not, only the last run is padded, by fewer than N
elements. So nothing is ever replicated, and a gather puts the runs behind one another without moving anything.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:  # supervisors import this package, and stay small
    import numpy as np

Shape = tuple[int, ...]
STRATEGIES = ("ep", "zero3")
SHOWN = 10


@dataclass(frozen=True)
class Placement:
    """How one parameter is spread over N ranks.

    axis None: every rank holds all of it. Otherwise this axis is cut at multiples of `unit` into N / `copies` parts, as
    equal as can be, each held by `copies` neighbouring ranks. once: rank 0 holds the values and the others zeros, so that a
    sum over ranks has them once.
    """

    axis: int | None = None
    unit: int = 1
    copies: int = 1
    once: bool = False

    def slice(self, shape: Shape, rank: int, size: int) -> "Slice":
        """The `Slice` of rank `rank` among `size`. Raises `InputError` where a rank would have nothing to hold."""
        if self.once and rank:
            return Slice(tuple(shape), 0, 0, 0, shape[0])
        if self.axis is None:
            return Slice(tuple(shape))
        units, rest = divmod(shape[self.axis], self.unit)
        parts, unequal = divmod(size, self.copies)
        if rest or unequal or units < parts:
            raise InputError(f"an axis of {shape[self.axis]} in units of {self.unit} cannot be cut into {parts} parts")
        part = rank // self.copies
        start, stop = (self.unit * (units * index // parts) for index in (part, part + 1))
        return Slice(tuple(shape), self.axis, start, stop, stop - start)


@dataclass(frozen=True)
class Slice:
    """A rank's part of a parameter of `shape`: `[start, stop)` of `axis` (None: all of it), followed by zeros up to
    `length`.
    """

    shape: Shape
    axis: int | None = None
    start: int = 0
    stop: int = 0
    length: int = 0
    flat = False  # a `Run` counts elements instead

    @property
    def local_shape(self) -> Shape:
        """The shape that the rank holds."""
        return tuple(self.length if axis == self.axis else n for axis, n in enumerate(self.shape))

    @property
    def is_whole(self) -> bool:
        """Whether the rank holds the parameter as it is."""
        return self.axis is None or (self.start, self.stop, self.length) == (0, *(self.shape[self.axis],) * 2)

    @property
    def index(self) -> tuple[slice, ...]:
        """What to read: an index into the whole parameter."""
        return tuple(slice(self.start, self.stop) if axis == self.axis else slice(None) for axis in range(len(self.shape)))

    @property
    def filled(self) -> tuple[slice, ...]:
        """Where it goes: an index into the local array; the rest of that is zeros."""
        read = self.stop - self.start
        return tuple(slice(read) if axis == self.axis else slice(None) for axis in range(len(self.shape)))

    def put(self, whole: "np.ndarray", local: "np.ndarray") -> None:
        """Writes the rank's part `local` to where it belongs in the numpy array of the whole parameter."""
        whole[self.index] = local[self.filled]


@dataclass(frozen=True)
class Run:
    """A rank's elements `[start, stop)` of a parameter of `shape`, followed by zeros up to `length` elements."""

    shape: Shape
    start: int
    stop: int
    length: int

    flat = True  # elements, not indices of an axis

    @property
    def is_whole(self) -> bool:
        """Whether the rank holds the parameter as it is."""
        return self.length == self.elements and self.in_rows

    @property
    def row(self) -> int:
        """Elements of a row, which is what the first axis counts."""
        return math.prod(self.shape[1:])

    @property
    def elements(self) -> int:
        """Elements of the whole parameter."""
        return math.prod(self.shape)

    @property
    def in_rows(self) -> bool:
        """Whether runs begin and end with rows."""
        return self.length % self.row == 0

    @property
    def local_shape(self) -> Shape:
        """The shape that the rank holds: whole rows, or one axis of elements."""
        return (self.length // self.row, *self.shape[1:]) if self.in_rows else (self.length,)

    def cut(self, whole: "np.ndarray") -> "np.ndarray":
        """The rank's part of the parameter as a numpy array, a copy."""
        import numpy as np

        part = np.zeros(self.length, whole.dtype)
        part[: self.stop - self.start] = whole.reshape(-1)[self.start : self.stop]
        return part.reshape(self.local_shape)

    def put(self, whole: "np.ndarray", local: "np.ndarray") -> None:
        """Writes the rank's part `local` to where it belongs in the numpy array of the whole parameter."""
        whole.reshape(-1)[self.start : self.stop] = local.reshape(-1)[: self.stop - self.start]

    def join(self, parts: Any) -> Any:
        """The parameter out of the parts of all ranks behind one another, `[ranks * n, ...]` or flat (tensor or array)."""
        if self.in_rows:
            return parts.reshape(-1, *self.shape[1:])[: self.shape[0]]
        return parts.reshape(-1)[: self.elements].reshape(self.shape)


@dataclass(frozen=True)
class Flat:
    """The placement: N equal runs. by_rows keeps rows whole, for tables that are read row by row."""

    by_rows: bool = False

    def slice(self, shape: Shape, rank: int, size: int) -> Run:
        """The `Run` of rank `rank` among `size`."""
        elements, unit = math.prod(shape), math.prod(shape[1:]) if self.by_rows else 1
        length = -(-elements // (unit * size)) * unit
        start = min(rank * length, elements)
        return Run(tuple(shape), start, min(start + length, elements), length)


@dataclass(frozen=True)
class Row:
    """Parameters whose full name matches `pattern` (a regular expression; `<n>` is a number) are placed so."""

    pattern: str
    placement: Placement | Flat

    def match(self, name: str) -> "re.Match[str] | None":
        """The match of the pattern with a full name, or None."""
        return re.fullmatch(self.pattern.replace("<n>", r"\d+"), name)


@dataclass(frozen=True)
class Plan:
    """A named table. Each parameter is placed by exactly one row, and each row places at least one.

    pieces: whether it cuts arrays, so that what is stored as codes is placed array by array; else codes, scales and offsets go with
    the matrix that they are.
    """

    name: str
    rows: tuple[Row, ...]
    pieces: bool = False

    def placements(self, names: Iterable[str]) -> dict[str, Placement | Flat]:
        """`{name: Placement}`. Raises `InputError` that lists parameters placed by no row or several, and idle rows."""
        found: dict[str, Placement | Flat] = {}
        used, problems = set(), []
        for name in names:
            hits = [row for row in self.rows if row.match(name)]
            if len(hits) == 1:
                found[name] = hits[0].placement
                used.add(hits[0].pattern)
            else:
                problems.append(f"{name}: placed by {len(hits) or 'no'} rows")
        problems += [f"row {row.pattern}: matches no parameter" for row in self.rows if row.pattern not in used]
        if problems:
            more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            raise InputError(f"the plan {self.name!r} does not fit this model:\n  " + "\n  ".join(problems[:SHOWN] + more))
        return found

    def slices(
        self, shapes: Mapping[str, Shape], rank: int, size: int, arrays: Mapping[str, Mapping[str, Shape]] | None = None
    ) -> dict[str, Any]:
        """`{name: Slice or Run}` of one rank, from `{name: shape}`. Raises `InputError` for a number of ranks that cannot be.

        arrays: `{name: {name of an array: shape}}` of those parameters that are stored as several.
        """
        slices: dict[str, Any] = {}
        if self.pieces:
            shapes = dict(item for name, shape in shapes.items() for item in (arrays or {}).get(name, {name: shape}).items())
        for name, placement in self.placements(shapes).items():
            try:
                slices[name] = placement.slice(shapes[name], rank, size)
            except InputError as error:
                raise InputError(f"{name} over {size} ranks (plan {self.name!r}): {error}") from None
        return slices


REPLICATE = Placement()
ONCE = Placement(once=True)


def split(axis: int, unit: int = 1, copies: int = 1) -> Placement:
    """Cut along `axis`; see `Placement`."""
    return Placement(axis, unit, copies)


def make_plan(strategy: str, config: Any, shapes: Mapping[str, Shape], size: int, **options: Any) -> Plan:
    """The plan of a strategy, "ep" or "zero3", for `size` ranks. options: of the strategy's plan. Raises `InputError`."""
    return expert_parallel_plan(config, size, **options) if strategy == "ep" else zero3_plan(shapes, **options)


LAYER = r"thinker\.model\.layers\.<n>\."


def expert_parallel_plan(config: Any, size: int, split_heads: bool | None = None) -> Plan:
    """The plan "ep" of a configuration (of the whole model or of a part) for `size` ranks: in the thinker experts are spread, and so
    are attention heads and the vocabulary head.

    Every rank sees all tokens and adds up its part of each block; one all-reduce per attention and one per mixture of experts
    complete the sum. Encoders, embedding, norms, router, dense layers and everything that speaks are on every rank.

    split_heads: None splits attention heads where their numbers divide, True insists, False keeps attention whole.
    Raises `InputError` for a model that `size` ranks cannot share.
    """
    thinker = getattr(config, "thinker_config", config)
    if not hasattr(thinker, "audio_config"):
        return Plan("ep", (Row(r"(talker|code2wav)\..+", REPLICATE),))
    text = thinker.text_config
    _check_sizes(text, size)
    rows = [
        Row(r"thinker\.(audio_tower|visual)\..+", REPLICATE),
        Row(r"thinker\.model\.(embed_tokens|norm)\.weight", REPLICATE),
        Row(LAYER + r"(input|post_attention)_layernorm\.weight", REPLICATE),
        *_attention_rows(text, size, split_heads),
        *_mlp_rows(text),
    ]
    if not text.tie_word_embeddings:
        rows.append(Row(r"thinker\.lm_head\.weight", split(0)))
    if getattr(config, "enable_audio_output", False):
        rows.append(Row(r"(talker|code2wav)\..+", REPLICATE))
    return Plan("ep", tuple(rows))


def splits_heads(text: Any, size: int, wanted: bool | None = None) -> bool:
    """Whether the attention heads of a text configuration are split over `size` ranks; wanted: see `expert_parallel_plan`."""
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    divides = heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
    if wanted and not divides:
        raise InputError(
            f"{heads} attention heads with {kv_heads} kv heads cannot be split over {size} ranks; leave "
            "split_heads to the model, or set it to False"
        )
    return divides and wanted is not False


def _check_sizes(text: Any, size: int) -> None:
    sparse = any(text.is_sparse_layer(layer) for layer in range(text.num_hidden_layers))
    if sparse and text.num_experts < size:
        raise InputError(f"{text.num_experts} experts cannot be shared by {size} ranks; start at most {text.num_experts}")
    if text.vocab_size < size:
        raise InputError(f"a vocabulary of {text.vocab_size} cannot be shared by {size} ranks")


def _attention_rows(text: Any, size: int, split_heads: bool | None) -> list[Row]:
    heads = kv = across = output_bias = REPLICATE
    if splits_heads(text, size, split_heads):
        width, copies = text.head_dim, max(size // text.num_key_value_heads, 1)
        heads, kv, across, output_bias = split(0, width), split(0, width, copies), split(1, width), ONCE
    rows = [
        Row(LAYER + r"self_attn\.q_proj\.weight", heads),
        Row(LAYER + r"self_attn\.[kv]_proj\.weight", kv),
        Row(LAYER + r"self_attn\.o_proj\.weight", across),
        Row(LAYER + r"self_attn\.[qk]_norm\.weight", REPLICATE),
    ]
    if text.attention_bias:
        rows += [
            Row(LAYER + r"self_attn\.q_proj\.bias", heads),
            Row(LAYER + r"self_attn\.[kv]_proj\.bias", kv),
            Row(LAYER + r"self_attn\.o_proj\.bias", output_bias),
        ]
    return rows


def _mlp_rows(text: Any) -> list[Row]:
    kinds = {text.is_sparse_layer(layer) for layer in range(text.num_hidden_layers)}
    rows = []
    if True in kinds:
        rows += [Row(LAYER + r"mlp\.gate\.weight", REPLICATE), Row(LAYER + r"mlp\.experts\.(gate_up|down)", split(0))]
    if False in kinds:
        rows.append(Row(LAYER + r"mlp\.(gate|up|down)_proj\.weight", REPLICATE))
    return rows


BUNDLE_BYTES = 1 << 20
"""Parameters of up to this size share one gather per block: starting a collective takes as long as sending that much."""

# `block` names the cell around which the weights are gathered. `(?!...)` leaves out what another row places.
ZERO3_ROWS = (
    Row(r"thinker\.model\.embed_tokens\.weight(_scale|_offset)?", Flat(by_rows=True)),
    Row(r"(?P<block>thinker\.model\.layers\.<n>)\..+", Flat()),
    Row(r"(?P<block>thinker\.(model\.norm|lm_head))\.weight(_scale|_offset)?", Flat()),
    Row(r"(?P<block>thinker\.audio_tower\.layers\.<n>)\..+", Flat()),
    Row(r"(?P<block>thinker\.audio_tower)\.(?!layers\.).+", Flat()),
    Row(r"(?P<block>thinker\.visual\.(blocks\.<n>|merger|merger_list\.<n>))\..+", Flat()),
    Row(r"(?P<block>thinker\.visual)\.(patch_embed|pos_embed)\..+", Flat()),
    Row(r"talker\.(code_predictor\.)?model\.codec_embedding\.(<n>\.)?weight(_scale|_offset)?", Flat(by_rows=True)),
    Row(r"(?P<block>talker\.model\.layers\.<n>)\..+", Flat()),
    Row(r"(?P<block>talker\.(model\.norm|codec_head))\.weight(_scale|_offset)?", Flat()),
    Row(r"(?P<block>talker\.(text|hidden)_projection)\..+", Flat()),
    Row(r"(?P<block>talker\.code_predictor)\.(?!model\.codec_embedding\.).+", Flat()),  # once per frame, not per code
    Row(r"code2wav\.code_embedding\.weight(_scale|_offset)?", Flat(by_rows=True)),
    Row(r"(?P<block>code2wav\.pre_transformer\.(layers\.<n>|norm))\..+", Flat()),
    Row(r"(?P<block>code2wav\.upsample\.<n>\.<n>)\..+", Flat()),
    Row(r"(?P<block>code2wav\.decoder\.<n>)\..+", Flat()),
)


def zero3_plan(names: Iterable[str]) -> Plan:
    """The plan "zero3" of the components that parameters (by full name) belong to: every rank holds an N-th of every parameter,
    gathered block by block (`zero3.py`). For any model and size.
    """
    parts = {name.split(".", 1)[0] for name in names}
    rows = [row for row in ZERO3_ROWS if row.pattern.replace("(?P<block>", "").lstrip("(").split("\\", 1)[0] in parts]
    return Plan("zero3", tuple(rows), pieces=True)


def block_of(name: str) -> str | None:
    """The name of the cell around which a parameter (full name) is gathered, or None for tables read by row."""
    return next(hit for row in ZERO3_ROWS if (hit := row.match(name))).groupdict().get("block")


def bundles(sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Splits `{name: bytes of the whole parameter}` into tuples of names that are gathered together."""
    small = tuple(name for name, nbytes in sizes.items() if nbytes <= BUNDLE_BYTES)
    return [*((name,) for name in sizes if name not in small), *([small] if small else [])]
