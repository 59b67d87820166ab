"""What of the model is stored how when its weights are quantised: one table, with the reasons.

"int8" and "int4" name what most weights become. Codes of 8 bits share a scale per output, those of 4 bits per group of inputs;
scales are bfloat16. A matrix whose inputs no block of codes of 4 bits divides has 8 bits under "int4" as well.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ms_omni.arrays import MODEL_TYPES
from ms_omni.errors import InputError, caller_level, warn_once
from ms_omni.quantised import BLOCK, GROUPS, Storage

from .matching import Fill
from .reader import Reader

METHOD = "ms_omni"  # `quant_method` in config.json
BITS = {"int8": 8, "int4": 4}
ASKED, EIGHT, OPTION, KEPT = "as asked", "8 bits", "8 bits by option", "as it is"
STACKS = (".experts.gate_up", ".experts.down")  # parameters `[E, in, out]`, stored as codes `[E, out, in]`
SCALE, OFFSET = "_scale", "_offset"  # behind the name of a matrix that is stored as codes: its scales and offsets
_Axis = TypeVar("_Axis")
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Row:
    """Parameters whose full name matches `pattern` (`<n>` is a number) are stored so, unless an earlier row has them."""

    pattern: str
    stored: str
    reason: str

    def matches(self, name: str) -> bool:
        return re.fullmatch(self.pattern.replace("<n>", r"\d+"), name) is not None


TABLE = (
    Row(
        r"(thinker|talker)\.model\.layers\.<n>\.mlp\.experts\.(gate_up|down)",
        ASKED,
        "nine tenths of the weights, and most of what a token reads",
    ),
    Row(
        r"(thinker|talker)\.model\.layers\.<n>\.self_attn\.[qkvo]_proj\.weight",
        ASKED,
        "a third of what a token reads",
    ),
    Row(
        r"(thinker|talker)\.model\.layers\.<n>\.mlp\.(shared_expert\.)?(gate|up|down)_proj\.weight",
        ASKED,
        "read for every token, as an expert is",
    ),
    Row(
        r"thinker\.lm_head\.weight",
        EIGHT,
        "its rounding reaches the choice of a token with nothing behind it to even it out; 8 bits halve what is read",
    ),
    Row(
        r"thinker\.model\.embed_tokens\.weight",
        OPTION,
        "a token reads one row, so rounding saves memory (0.9 % of the weights) and no time; where it is the head as well, it "
        "reaches the choice of a token too",
    ),
    Row(
        r"(thinker|talker)\.model\.layers\.<n>\.mlp\.(gate|shared_expert_gate)\.weight",
        KEPT,
        "the router is small, and a rounded one sends tokens to other experts",
    ),
    Row(
        r"talker\.code_predictor\..*",
        KEPT,
        "makes each frame's codes in a row, one from the other, and speech suffers when it is rounded; 0.4 % of the weights",
    ),
    Row(
        r"talker\.(codec_head|model\.codec_embedding|(text|hidden)_projection\.linear_fc[12])\.weight",
        KEPT,
        "small, and between text and sound",
    ),
    Row(
        r"thinker\.(audio_tower|visual)\..*",
        KEPT,
        "3 % of the weights, read once for a picture or a second of sound; everything seen and heard passes through",
    ),
    Row(r"code2wav\..*", KEPT, "mostly convolutions; what it loses is noise in the sound"),
    Row(r".*", KEPT, "norms and biases: vectors"),
)


def row_of(parameter: str) -> Row:
    """The row of a parameter's full name."""
    return next(row for row in TABLE if row.matches(parameter))


def is_quantised(parameters: Iterable[str]) -> bool:
    """Whether any of these full names is one whose matrix is stored as codes: a vocoder or an encoder alone has none."""
    return any(row_of(name).stored in (ASKED, EIGHT) for name in parameters)


def matrix_shape(parameter: str, shape: Sequence[_Axis]) -> tuple[_Axis, ...]:
    """`[..., out, in]` of a parameter of `shape` (or what stands for each axis): stacks of experts are `[E, in, out]`."""
    return (*shape[:-2], shape[-1], shape[-2]) if parameter.endswith(STACKS) else tuple(shape)


def storage_of(
    parameter: str, shape: tuple[int, ...], bits: int, group: int | None = None, *, embeddings: bool = False
) -> Storage | None:
    """How a parameter is stored, None for as it is.

    Args:
        parameter: our full name, with the leading `thinker.`, `talker.` or `code2wav.`.
        shape: of the parameter, see `shapes.py` (of experts `[E, in, out]`).
        bits: 8 or 4, what is asked for; group: inputs that share a scale of codes of 4 bits, one of `GROUPS`.
        embeddings: whether the table of tokens is quantised too.

    Raises:
        InputError: for codes of 4 bits of a matrix that `group` does not divide, though a smaller one would.
    """
    stored = row_of(parameter).stored
    if stored == KEPT or (stored == OPTION and not embeddings):
        return None
    inputs = matrix_shape(parameter, shape)[-1]
    if bits == 8 or stored != ASKED or inputs % BLOCK:
        return Storage(8)
    if group not in GROUPS or inputs % group:
        raise InputError(
            f"{parameter} has {inputs} inputs, which are no whole groups of {group}; take one of "
            + ", ".join(str(smaller) for smaller in GROUPS if inputs % smaller == 0)
        )
    return Storage(4, group if inputs > group else None)  # a single group is what no group means


def stored_bytes(parameter: str, shape: tuple[int, ...], storage: Storage | None, itemsize: int = 2) -> int:
    """Bytes of a parameter of `shape` with its scales. itemsize: of a number of what is stored as it is."""
    if storage is None:
        return itemsize * math.prod(shape)
    codes, scales = storage.shapes(matrix_shape(parameter, shape))
    per_group = sum(MODEL_TYPES[dtype].itemsize for dtype in (storage.scale, storage.offset) if dtype is not None)
    return math.prod(codes) + per_group * math.prod(scales)


@dataclass(frozen=True)
class Scheme:
    """What a quantised folder's `quantization_config` says of its numbers. group: of codes of 4 bits, None for 8."""

    bits: int
    group: int | None = None
    embeddings: bool = False

    def storages(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Storage]:
        """`{full name: Storage}` of those parameters in `{full name: shape}` that are stored as codes."""
        found = {
            name: storage_of(name, shape, self.bits, self.group, embeddings=self.embeddings)
            for name, shape in shapes.items()
        }
        return {name: storage for name, storage in found.items() if storage is not None}

    def describe(self, **how: Any) -> dict:
        """The entry `quantization_config` of config.json. how: how the numbers were found."""
        return {
            "quant_method": METHOD,
            "bits": self.bits,
            "group_size": self.group or -1,
            "scale_dtype": "bfloat16",
            "embeddings": self.embeddings,
            **how,
        }


def scheme(
    shapes: Mapping[str, tuple[int, ...]], quantize: str, group: int | None = None, embeddings: bool = False
) -> Scheme:
    """The scheme that is meant for a model of the parameters `{full name: shape}`.

    Args:
        quantize: "int8" or "int4".
        group: of codes of 4 bits; by default the largest of `GROUPS` that divides all matrices.

    Raises:
        InputError: one error that lists all matrices that `group` does not divide; other words; nothing that has 4 bits.
    """
    if quantize not in BITS:
        raise InputError(f"quantize is {quantize!r}, expected one of {', '.join(BITS)}")
    if BITS[quantize] == 8:
        if group is not None:
            raise InputError("group is for int4; weights of 8 bits have one scale per output")
        if not is_quantised(shapes):
            raise InputError("there is nothing to quantise: no layers of a thinker or a talker")
        return Scheme(8, None, embeddings)
    inputs = {
        name: matrix_shape(name, shape)[-1] for name, shape in shapes.items() if row_of(name).stored == ASKED
    }  # of each matrix that is to have 4 bits
    inputs = {name: number for name, number in inputs.items() if number % BLOCK == 0}
    if not inputs:
        raise InputError(f"no matrix has a number of inputs that {BLOCK} divides, as codes of 4 bits need; take int8")
    divisor = math.gcd(*inputs.values())
    fitting = [number for number in GROUPS if divisor % number == 0]
    if group is None:
        return Scheme(4, fitting[0], embeddings)
    if group not in GROUPS:
        raise InputError(f"group is {group!r}, expected one of {', '.join(map(str, GROUPS))}")
    if group not in fitting:
        raise InputError(_indivisible(inputs, group, fitting))
    return Scheme(4, group, embeddings)


def _indivisible(inputs: Mapping[str, int], group: int, fitting: Iterable[int]) -> str:
    """The message about matrices that `group` does not divide; layers that are alike are named once."""
    alike: dict[tuple[str, int], int] = {}
    for name, number in inputs.items():
        if number % group:
            key = re.sub(r"\.layers\.\d+\.", ".layers.*.", name), number
            alike[key] = alike.get(key, 0) + 1
    lines = [f"{name} ({count} of them): {number} inputs" for (name, number), count in alike.items()]
    return (
        f"groups of {group} do not divide the inputs of these matrices; take group {' or '.join(map(str, fitting))}:\n  "
        + ("\n  ".join(lines))
    )


def storages(fills: Iterable[Fill], reader: Reader, scheme: Scheme | None, prefix: str) -> dict[str, Storage]:
    """`{parameter: Storage}` of those that are codes: as their stored tensors are, where those are alike; else by `scheme`, or None.

    A parameter whose tensors are not stored alike gets the numbers that they stand for, which is said in one warning. Raises
    `InputError` for a scheme where the folder is quantised already.
    """
    kinds = {fill.parameter: {reader.storage(stored) for stored, _ in fill.parts} for fill in fills}
    if scheme is not None:
        if any(found != {None} for found in kinds.values()):
            raise InputError(
                f"{reader.folder} is quantised already; leave quantize= out, or take the checkpoint that it was made from"
            )
        shapes = {prefix + fill.parameter: fill.shape for fill in fills}
        return {name.removeprefix(prefix): storage for name, storage in scheme.storages(shapes).items()}
    mixed = [name for name, found in kinds.items() if len(found) > 1]
    if mixed:
        warn_once(f"{reader.folder}: {mixed_note(mixed)}", stacklevel=caller_level())
    return {name: storage for name, found in kinds.items() if len(found) == 1 and (storage := next(iter(found)))}


def mixed_note(names: Sequence[str]) -> str:
    """Of parameters whose tensors are not stored alike."""
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return f"the tensors of {shown} are stored in different ways, and are held as the numbers that these stand for"


def stored_in(fills: Iterable[Fill], reader: Reader, dtype: str) -> set[str]:
    """The parameters whose stored tensors are all numbers of this dtype, by its name in the files, or codes of such."""
    return {fill.parameter for fill in fills if all(reader.entries[stored].dtype == dtype for stored, _ in fill.parts)}
