"""A checkpoint whose matrices are rounded to codes while they are read, one published matrix after the other.

Where their inputs were observed, these are scaled first, so that what matters more is rounded finer (AWQ, Lin et al. 2023,
arXiv:2306.00978):

    W x = (W diag(s)) (x / s)        s = mean |x| ^ exponent, for each input

1 / s is folded into what makes x, so the stored model computes the same and has no operator more:

    norm               -> q, k, v;  experts' and shared expert's gate and up, or the dense ones, and the routers, which stay numbers
    rows of v          -> o         one number for all query heads that read a head of v
    rows of up         -> down      for each expert

The exponent is searched for each of these: the one whose rounded matrices give the smallest error of the output, where it pays. Mean
squares also weigh the search of scales, and products of neighbouring inputs say how an error of one is made up for by the next (see
`rounding.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ms_omni import __version__
from ms_omni.errors import CheckpointError, InputError
from ms_omni.quantised import BLOCK, Quantised, Storage, dequantised

from .matching import file_root, gather
from .reader import Reader, ReaderView
from .rounding import rounded
from .safetensors import DTYPES, Entry
from .storage import ASKED, Scheme, matrix_shape, row_of, scheme

ROUNDING = "to nearest, scales searched for the smallest squared error"
WORTH = 0.9  # of the error without scaling: less is within what a sample can say
EXPONENTS = (0.0, 0.25, 0.5, 0.75)
SAMPLED_ROWS, SAMPLED_MATRICES = 64, 12  # of what shares an exponent, in the search
_LAYER = re.compile(r"(?P<layer>.*model\.layers\.\d+)\.(?P<rest>.+)\.weight")


@dataclass
class Inputs:
    """What was seen of the inputs of one matrix `[N, K]`: sums over rows of magnitudes and of squares `[K]`, and of products of
    neighbours `[K / 32, 32, 32]` where 32 divides K; and how many rows.
    """

    magnitudes: np.ndarray
    squares: np.ndarray
    products: np.ndarray | None
    rows: int = 0

    @classmethod
    def of(cls, rows: np.ndarray) -> "Inputs":
        """Of rows `[R, K]`."""
        blocks = rows.reshape(len(rows), -1, BLOCK).transpose(1, 2, 0) if rows.shape[1] % BLOCK == 0 else None
        products = None if blocks is None else blocks @ blocks.transpose(0, 2, 1)
        return cls(np.abs(rows).sum(0, dtype=np.float64), np.square(rows, dtype=np.float64).sum(0), products, len(rows))

    def add(self, other: "Inputs") -> None:
        """What was seen of the same inputs elsewhere."""
        self.magnitudes = self.magnitudes + other.magnitudes
        self.squares = self.squares + other.squares
        if self.products is not None and other.products is not None:
            self.products = self.products + other.products
        self.rows += other.rows

    @property
    def importance(self) -> np.ndarray:
        """Mean square of each input."""
        return (self.squares / self.rows).astype(np.float32)

    def moments(self, factors: np.ndarray | None = None) -> np.ndarray | None:
        """Mean products of neighbouring inputs `[K / 32, 32, 32]`, divided by factors `[K]`, where they are known."""
        if self.products is None or factors is None:
            return None if self.products is None else self.products / self.rows
        blocks = factors.reshape(-1, BLOCK)
        return self.products / (self.rows * blocks[:, :, None] * blocks[:, None, :])


class Observed(NamedTuple):
    """inputs: `{stored name: Inputs}`; description: what it was found with, for the folder's description."""

    inputs: dict[str, Inputs]
    description: dict


@dataclass
class Group:
    """What shares a scaling: matrices whose columns are multiplied, and tensors whose rows are divided to make up for it."""

    columns: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    repeats: int = 1  # query heads that read a head of v
    width: int = 1  # of a head, where they repeat


class Scaled(ReaderView):
    """Shows a reader of published names with inputs scaled; `importance`: of the inputs of each matrix, `{stored name: [K]}`.

    inputs: `{stored name: Inputs}`; storages: `{stored name: Storage}` of the matrices that are to be rounded.
    """

    def __init__(self, reader: Reader, inputs: Mapping[str, Inputs], storages: Mapping[str, Storage]):
        super().__init__(reader)
        self.columns: dict[str, np.ndarray] = {}
        self.rows: dict[str, np.ndarray] = {}
        seen = {name: found for name, found in inputs.items() if found.rows and name in storages}
        self.exponents: list[float] = []
        for group in groups(reader.entries):
            self._scale(group, seen, storages)
        self.importance = {
            name: found.importance / np.square(self.columns.get(name, np.float32(1))) for name, found in seen.items()
        }
        self.seen = seen

    def moments(self, name: str) -> np.ndarray | None:
        """Mean products of neighbouring inputs `[K / 32, 32, 32]` of a matrix as it is scaled, where they are known."""
        found = self.seen.get(name)
        return None if found is None else found.moments(self.columns.get(name))

    def _scale(self, group: Group, seen, storages) -> None:
        known = [name for name in group.columns if name in seen]
        if not known:
            return
        mean = _mean(seen[name] for name in known)
        if group.repeats > 1:  # [kv, repeats, width] -> what all heads of a group share
            mean = mean.reshape(-1, group.repeats, group.width).mean(1, keepdims=True).repeat(group.repeats, 1).reshape(-1)
        sample = known[:: -(-len(known) // SAMPLED_MATRICES)]
        exponent, factors = self._search(sample, mean, seen, storages)
        self.exponents.append(exponent)
        if exponent == 0:
            return
        factors = self._fold(group, factors)
        for name in group.columns:
            self.columns[name] = factors

    def _search(self, names, mean, seen, storages):
        """(exponent, factors `[K]`) with the smallest error."""
        best = plain = None
        sampled = {name: self._sampled(name) for name in names}
        for exponent in EXPONENTS:
            factors = np.maximum(mean, 1e-4 * mean.max()) ** exponent
            factors = (factors / np.sqrt(factors.max() * factors.min())).astype(np.float32)
            error = 0.0
            for name, matrix in sampled.items():
                importance, moments = seen[name].importance / np.square(factors), seen[name].moments(factors)
                scaled = matrix * factors
                change = dequantised(rounded(scaled, storages[name], importance, moments)) - scaled
                error += seen[name].rows * _loss(change, importance, moments)
            plain = error if plain is None else plain
            if best is None or error < min(best[0], WORTH * plain):
                best = error, exponent, factors
        assert best is not None
        return best[1:]

    def _sampled(self, name):
        matrix = self.reader.array(name)
        matrix = np.array(matrix[:: -(-len(matrix) // SAMPLED_ROWS)], np.float32)
        self.reader.release(name)
        columns = self.columns.get(name)
        return matrix if columns is None else matrix * columns

    def _fold(self, group, factors):
        """Divides the rows of what makes the inputs, and returns the factors as they are then: a norm has few digits."""
        divided = factors
        if group.repeats > 1:
            divided = factors.reshape(-1, group.repeats, group.width)[:, 0].reshape(-1)
        for name in group.rows:
            if name.endswith("norm.weight"):
                before = np.array(self.reader.array(name), np.float32)
                after = (before / divided).astype(DTYPES[self.entries[name].dtype]).astype(np.float32)
                whole = np.isfinite(after) & (after != 0)
                divided = factors = np.divide(before, after, out=np.ones_like(before), where=whole)
            self.rows[name] = divided
        return factors

    def array(self, name: str) -> np.ndarray:
        """The tensor; a scaled matrix in float32, what stays a number in its own dtype."""
        array, columns, rows = self.reader.array(name), self.columns.get(name), self.rows.get(name)
        if columns is None and rows is None:
            return array
        array = array.astype(np.float32)
        if rows is not None:
            array /= rows.reshape(-1, *[1] * (array.ndim - 1))
        if columns is not None:
            array *= columns
        return array if name in self.importance else array.astype(DTYPES[self.entries[name].dtype])


def _loss(change, importance, moments) -> float:
    """Mean square of what a change of a matrix `[N, K]` does to its outputs, blocks of inputs taken as uncorrelated, or each of them."""
    if moments is None:
        return float((np.square(change) @ importance).sum())
    blocks = change.reshape(len(change), -1, BLOCK).transpose(1, 0, 2)
    return float(((blocks @ moments.astype(np.float32)) * blocks).sum())


def _mean(found) -> np.ndarray:
    """Mean magnitude of inputs that several matrices see, as often as each sees them."""
    found = list(found)
    return np.sum([inputs.magnitudes for inputs in found], axis=0) / sum(inputs.rows for inputs in found)


def groups(entries: Mapping[str, Entry]) -> list[Group]:
    """The groups of a checkpoint's published tensors, layer by layer: those of thinker and talker, not of the code predictor."""
    layers: dict[str, set[str]] = {}
    for name in entries:
        hit = _LAYER.fullmatch(name)
        if hit and "code_predictor" not in name and not name.startswith("code2wav"):
            layers.setdefault(hit["layer"], set()).add(hit["rest"])
    found = []
    for layer, parts in layers.items():
        if "self_attn.o_proj" not in parts or "post_attention_layernorm" not in parts:
            continue
        attention = [f"self_attn.{part}_proj" for part in "qkv"]
        mlp = sorted(part for part in parts if re.fullmatch(r"mlp\.(.+\.)?(gate|up)_proj|mlp\.(shared_expert_)?gate", part))
        downs = sorted(part for part in parts if re.fullmatch(r"mlp\.(.+\.)?down_proj", part))
        own = [
            Group(attention, ["input_layernorm"]),
            Group(mlp, ["post_attention_layernorm"]),
            *(Group([down], [down.replace("down_proj", "up_proj")]) for down in downs),
        ]
        for group in own:
            group.columns = [f"{layer}.{part}.weight" for part in group.columns]
            group.rows = [f"{layer}.{part}.weight" for part in group.rows]
        found += [own[0], _values(entries, layer), *own[1:]]
    return found


def _values(entries, layer) -> Group:
    """Rows of v and columns of o: a head of v is read by several query heads, which stand beside each other."""
    stem = f"{layer}.self_attn"
    heads, kv = entries[f"{stem}.o_proj.weight"].shape[1], entries[f"{stem}.v_proj.weight"].shape[0]
    norm = entries.get(f"{stem}.q_norm.weight")
    width = norm.shape[0] if norm is not None else kv
    rows = [name for name in (f"{stem}.v_proj.weight", f"{stem}.v_proj.bias") if name in entries]
    return Group([f"{stem}.o_proj.weight"], rows, heads // kv, width)


class Quantising(ReaderView):
    """Shows a reader of published names as one whose matrices are stored as codes; `array` is not for those.

    Args:
        reader: of numbers, in published names.
        quantize, group, embeddings: see `scheme`.
        observed: what the matrices get to see; then their inputs are scaled before, see above.

    Raises:
        CheckpointError: the reader does not fit Qwen3-Omni.
        InputError: see `scheme`.
    """

    def __init__(
        self,
        reader: Reader,
        quantize: str,
        group: int | None = None,
        embeddings: bool = False,
        observed: Observed | None = None,
    ):
        super().__init__(reader)
        self.scaled: Scaled | None = None
        root, fills = file_root(reader.entries), gather(reader)
        shapes = {root + fill.parameter: fill.shape for fill in fills}
        self.scheme: Scheme = scheme(shapes, quantize, group, embeddings)
        storages = self.scheme.storages(shapes)
        self.storages: dict[str, Storage] = {
            stored: storages[root + fill.parameter]
            for fill in fills
            if root + fill.parameter in storages
            for stored, _ in fill.parts
        }
        self.coarse = [
            name
            for name, storage in storages.items()
            if (self.scheme.bits, storage.bits) == (4, 8)
            and row_of(name).stored == ASKED
            and matrix_shape(name, shapes[name])[-1] % BLOCK
        ]  # have 8 bits although 4 were asked for

        if observed is not None:
            self.reader = self.scaled = Scaled(reader, observed.inputs, self.storages)

    def storage(self, name: str) -> Storage | None:
        """How a tensor is stored."""
        return self.storages.get(name)

    def codes(self, name: str) -> Quantised:
        """A matrix, rounded now. Raises `CheckpointError` for one that holds NaN or infinities."""
        try:
            array, storage = self.reader.array(name), self.storages[name]
            if self.scaled is None:
                return rounded(array, storage)
            return rounded(array, storage, self.scaled.importance.get(name), self.scaled.moments(name))
        except InputError as error:
            raise CheckpointError(f"{self.folder}: {name} {error}: the checkpoint is damaged; fetch it again.") from None

    def describe(self, **how: Any) -> dict:
        """The entry `quantization_config` of config.json. how: more about how it was made."""
        return self.scheme.describe(rounding=ROUNDING, made_by=f"ms_omni {__version__}", **how)

    def notes(self) -> tuple[str, ...]:
        """What there is to say about it, in sentences."""
        group = f" in groups of {self.scheme.group}" if self.scheme.group else ""
        notes = [f"int{self.scheme.bits}{group}: {len(self.storages):,} matrices"]
        if self.coarse:
            names = sorted({re.sub(r"\.layers\.\d+\.", ".layers.*.", name) for name in self.coarse})
            notes.append(f"8 bits instead of 4 where {BLOCK} does not divide the number of inputs: {', '.join(names)}")
        return tuple(notes)
