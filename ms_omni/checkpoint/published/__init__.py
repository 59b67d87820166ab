"""Quantised checkpoints that others publish: which tool wrote one, by its configuration files, and its tensors in our terms.

AutoRound and GPTQ, AWQ, compressed-tensors (llm-compressor), FP8, msModelSlim, MLX; see the file of each layout.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.errors import CheckpointError, caller_level, warn_once
from ms_omni.files import read_text
from ms_omni.quantised import Quantised, Storage

from ..reader import CheckpointReader, report
from ..safetensors import DTYPES, Entry
from .compressed import CompressedTensors, Fp8
from .gptq import Awq, Gptq
from .matrix import Layout, Matrix, Misfit
from .mlx import FORMAT, Mlx, axes, published_name
from .modelslim import DESCRIPTION, WEIGHT_FILES, ModelSlim

READ = "AutoRound, GPTQ, AWQ (gemm), compressed-tensors, FP8, msModelSlim (W8A8, W8A16) and MLX (affine)"
SECTIONS = ((), ("thinker_config",), ("thinker_config", "text_config"), ("text_config",), ("talker_config",))
KEYS = ("quantization_config", "compression_config")
FILES = ("quantize_config.json", "quantization_config.json", "quant_config.json")  # of older GPTQ, auto-round, AWQ
ASCEND = "ascend"  # as vLLM calls msModelSlim
ROUND_PLAIN = ("auto_round", "auto_round:exllamav2", "auto_round:tritonv2")  # auto-round's own, zero points as they are
FUSED = re.compile(r"(.*\.experts\.(?:gate_up_proj|down_proj))(?:_(\w+))?")  # a parameter of its own in transformers 5
# Matrices of all experts in one tensor, and which rows of each are whose; None: those of the name.
STACKS: tuple[tuple[re.Pattern[str], tuple[str, ...] | None], ...] = (
    (re.compile(r"(.*\.mlp)\.switch_mlp\.(gate|up|down)_proj"), None),
    (re.compile(r"(.*\.mlp)\.experts\.(gate_up|down)_proj"), ("gate", "up")),
)
ROUNDED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def layout_of(folder: Path, config: Mapping) -> Layout | None:
    """How the matrices of a folder are written by the tool that quantised it, None where nothing says that one did.

    config: the content of config.json.

    Raises CheckpointError for a method that is not read, with its name.
    """
    settings, path = quantisation(folder, config)
    if settings is None:
        return None
    described = sorted(folder.glob(DESCRIPTION))
    if described and settings.get("quant_method") in (ASCEND, None):
        return ModelSlim(_json(described[0]))
    try:
        return _layout(settings, f"{path}: ")
    except (TypeError, ValueError, AttributeError) as error:  # CheckpointError is a ValueError too
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: what it says of quantised weights cannot be understood ({error}).") from None


def quantisation(folder: Path, config: Mapping) -> tuple[Mapping | None, Path | None]:
    """(what config.json or a file beside it says of how the weights were quantised, where), (None, None) without."""
    for section in SECTIONS:
        part: Any = config
        for key in section:
            part = part.get(key) if isinstance(part, Mapping) else None
        for key in KEYS if isinstance(part, Mapping) else ():
            if part.get(key):
                settings = part[key]
                if not isinstance(settings, Mapping):
                    raise CheckpointError(
                        f"{folder / 'config.json'}: {key} is {settings!r:.80}, expected an object with quant_method"
                    )
                if "quant_method" not in settings and isinstance(config.get("quantization"), Mapping):
                    break  # MLX writes both
                return settings, folder / "config.json"
    if isinstance(config.get("quantization"), Mapping):
        return {"quant_method": FORMAT, **config["quantization"]}, folder / "config.json"
    for name in (*FILES, "hf_quant_config.json"):
        if (folder / name).is_file():
            settings = _json(folder / name)
            return {"quant_method": _method_of(name, settings), **settings}, folder / name
    described = sorted(folder.glob(DESCRIPTION))
    return ({"quant_method": ASCEND}, described[0]) if described else (None, None)


def _method_of(name, settings) -> str:
    if name == "hf_quant_config.json":
        return str((settings.get("producer") or {}).get("name", "modelopt"))
    return "auto-round" if name == FILES[1] else "awq" if name == FILES[2] or "w_bit" in settings else "gptq"


def _layout(settings: Mapping, where: str) -> Layout:
    method = str(settings.get("quant_method", "unknown")).lower()
    if method in ("auto-round", "intel/auto-round", "autoround"):
        return _auto_round(settings, where)
    if method == "gptq":
        form = settings.get("checkpoint_format", settings.get("format", "gptq"))
        if form in ("gptq", "gptq_v2"):
            return Gptq(settings, "GPTQ", minus_one=form == "gptq")
        raise _not_read(f"GPTQ in form {form}", where)
    if method == "awq":
        form = str(settings.get("checkpoint_format", settings.get("format", settings.get("version", "gemm")))).lower()
        if form == "gemm":
            return Awq(settings, "AWQ")
        raise _not_read(f"AWQ in form {form}", where)
    if method == "compressed-tensors" or (method == "unknown" and "config_groups" in settings):
        return CompressedTensors(settings)
    if method in ("fp8", "fbgemm_fp8"):
        return Fp8(settings, method.upper())
    if method == FORMAT:
        return Mlx(settings)
    if method == ASCEND:
        raise CheckpointError(
            f"{where}the weights are quantised by msModelSlim, but quant_model_description.json is missing"
        )
    raise _not_read(method, where)


def _auto_round(settings, where) -> Layout:
    form = str(settings.get("packing_format", settings.get("backend", "auto_round:auto_gptq")))
    if "awq" in form:
        return Awq(settings, "AutoRound")
    if "gptq" in form or form in ROUND_PLAIN:
        return Gptq(settings, "AutoRound", minus_one="gptq" in form and "gptqmodel" not in form)
    raise _not_read(f"AutoRound in packing_format {form}", where)


def _not_read(method, where) -> CheckpointError:
    return CheckpointError(
        f"{where}the weights are quantised by a method that is not read: {method}. Read are {READ}; take a checkpoint in one of "
        "these, or the one that it was made from (it can be quantised with `ms-omni convert --quantize`)."
    )


def _json(path: Path) -> dict:
    try:
        content = json.loads(read_text(path))
        assert isinstance(content, dict)
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON object: {type(error).__name__}: {error}. Fetch it again.") from None
    return content


def dtype_of(config: Mapping) -> str | None:
    """The dtype that config.json names for the model."""
    sections: tuple[Any, ...] = config, config.get("thinker_config"), (config.get("thinker_config") or {}).get("text_config")
    for section in sections:
        for key in ("dtype", "torch_dtype") if isinstance(section, Mapping) else ():
            if section.get(key):
                return str(section[key])
    return None


@dataclass(frozen=True)
class Part:
    """One logical tensor: the module that holds it, or the stored tensor itself. index: of a stack; rows: of a matrix."""

    module: str | None
    stored: Entry | None = None
    index: int | None = None
    rows: tuple[int, int] | None = None


class PublishedReader(CheckpointReader):
    """Shows quantised matrices as `NAME.weight`, of the shape and dtype that they dequantise to; see `open.py`.

    A warning says once which are kept as they are and which are dequantised.

    layout: how they are written. dtype: of the model, by its configuration: what matrices are dequantised to; those that are kept as
    codes are float32, the numbers that the codes stand for.

    Raises CheckpointError, beside what a `CheckpointReader` does, that lists every matrix whose tensors do not belong together or
    contradict the configuration.
    """

    def __init__(
        self,
        folder: str | Path,
        variant: str | None = None,
        renames: dict[str, str] | None = None,
        *,
        layout: Layout,
        dtype: str | None = None,
    ):
        self.layout = layout
        super().__init__(folder, variant, renames)
        self.tensors, self.entries = self.entries, {}
        self.dropped: list[str] = []
        self._dtype = ROUNDED.get(str(dtype).rsplit(".", 1)[-1])
        self._parts: dict[str, Part] = {}
        self._modules: dict[str, dict[str, Entry]] = {}
        self._matrices: dict[str, Matrix] = {}
        self._transposed: dict[str, tuple[int, ...]] = {}
        problems: list[str] = []
        self._by_mlx = isinstance(layout, Mlx) and layout.wrote(self.tensors, self.metadata)
        for module, found in _modules(self.tensors, self._by_mlx).items():
            self._add(module, found, problems)
        if not problems and not self._matrices:
            problems.append("none of its matrices is quantised, although its configuration says so")
        if problems:
            raise report(problems, f"{self.folder} does not hold what {layout.title} writes")
        warn_once(self.summary(), stacklevel=caller_level())

    def _names(self, variant):
        """msModelSlim calls its files otherwise."""
        single, index = super()._names(variant)
        if isinstance(self.layout, ModelSlim):
            own = sorted(path.name for path in self.folder.glob(WEIGHT_FILES))
            indices = sorted(path.name for path in self.folder.glob(f"{WEIGHT_FILES}.index.json"))
            return own[0] if own else single, indices[0] if indices else index
        return single, index

    def _add(self, module, found, problems):
        stack = _stack(module, found.get("weight") or next(iter(found.values())))
        parts = {word: _of_one(entry) for word, entry in found.items()} if stack else found
        try:
            if self.layout.holds(parts):
                self._matrices[module] = matrix = self.layout.matrix(module, parts)
                if len(matrix.shape) != 2:
                    raise Misfit(f"is a matrix {list(matrix.shape)}, expected two axes")
                used = self.layout.uses(parts)
                self._modules[module] = {word: found[word] for word in used}
                nbytes = sum(found[word].nbytes for word in used)
                kind = "F32" if matrix.storage is not None else self._dtype or matrix.dtype
                self._enter(Part(module), f"{module}.weight", stack, kind, matrix.shape, nbytes)
                found = {word: entry for word, entry in found.items() if word not in used}
                self.dropped += [found[word].name for word in self.layout.dropped if word in found]
                found = {word: entry for word, entry in found.items() if word not in self.layout.dropped}
        except Misfit as error:
            problems.append(f"{module}: {error}")
            return
        except (TypeError, ValueError, AttributeError, KeyError, re.error) as error:  # fields of a type that nobody writes
            problems.append(f"{module}: the configuration says something that cannot be understood ({error})")
            return
        for word, entry in found.items():
            name = f"{module}.{word}" if module else word
            order = axes(name) if self._by_mlx else None
            shape = entry.shape
            if order is not None and len(order) == len(shape):
                self._transposed[name] = order
                shape = tuple(shape[axis] for axis in order)
            if stack and word == "weight":
                self._enter(Part(None, entry), name, stack, entry.dtype, shape[1:], entry.nbytes)
            else:
                self._enter(Part(None, entry), name, None, entry.dtype, shape, entry.nbytes)

    def _enter(self, part: Part, name, stack, dtype, shape, nbytes):
        for logical, index, rows in _slices(name, stack, shape) if stack else ((name, None, None),):
            shape_here = shape if rows is None else (rows[1] - rows[0], *shape[1:])
            self._parts[logical] = Part(part.module, part.stored, index, rows)
            share = nbytes if index is None else nbytes // stack[0] * shape_here[0] // shape[0]
            self.entries[logical] = Entry(logical, dtype, shape_here, "", 0, share)

    def array(self, name: str) -> np.ndarray:
        """The tensor, dequantised where it is stored as codes. Raises CheckpointError for values that contradict the configuration or
        are not finite.
        """
        part, dtype = self._parts[name], self.entries[name].dtype
        if part.stored is None:
            return self._decoded(name, Matrix.array)[_range(part.rows)].astype(DTYPES[dtype], copy=False)
        array = self.view(part.stored)
        array = array if part.index is None else array[part.index]
        return array[_range(part.rows)] if name not in self._transposed else array.transpose(self._transposed[name])

    def storage(self, name: str) -> Storage | None:
        """How `codes` gives the tensor; None: it is no matrix of codes, or is dequantised."""
        part = self._parts[name]
        return None if part.module is None else self._matrices[part.module].storage

    def codes(self, name: str) -> Quantised:
        """The matrix in our form. Raises CheckpointError, see `array`."""
        stored, rows = self._decoded(name, Matrix.codes), _range(self._parts[name].rows)
        return Quantised(*(None if array is None else array[rows] for array in stored))

    def _decoded(self, name, how):
        part = self._parts[name]
        assert part.module is not None
        arrays = {word: self.view(entry) for word, entry in self._modules[part.module].items()}
        if part.index is not None:
            arrays = {word: array[part.index] for word, array in arrays.items()}
        try:
            return how(self._matrices[part.module], arrays)
        except (Misfit, KeyError, IndexError, ValueError) as error:  # the last ones: of shapes that no tool writes
            raise report(
                [f"{part.module}: {error}"], f"{self.folder} does not hold what {self.layout.title} writes"
            ) from None

    def release(self, name: str) -> None:
        part = self._parts[name]
        for entry in [part.stored] if part.stored is not None else self._modules[part.module or ""].values():
            self.drop(entry)

    @property
    def stored(self) -> dict[str, Entry]:
        return self.tensors

    def summary(self) -> str:
        """What is kept as it is and what is dequantised, and why: a sentence for whoever loads it."""
        kept, widened = Counter(), Counter()
        for name, part in self._parts.items():
            if part.module is not None:
                matrix = self._matrices[part.module]
                if matrix.storage is not None:
                    kept[f"int{matrix.storage.bits}"] += 1
                else:
                    widened[f"{DTYPES[self.entries[name].dtype]} ({matrix.why})"] += 1
        phrases = [f"{count:,} are kept as {kind}" for kind, count in sorted(kept.items())]
        phrases += [f"{count:,} are dequantised to {kind}" for kind, count in sorted(widened.items())]
        total = kept.total() + widened.total()
        text = f"{self.folder}: of {total:,} matrices that {self.layout.title} quantised, {', '.join(phrases)}"
        if self.dropped:
            text += f"; {len(self.dropped):,} tensors that quantise activations are not used, these stay floating point"
        return text


def _range(rows: tuple[int, int] | None) -> slice:
    return slice(None) if rows is None else slice(*rows)


def _modules(entries: dict[str, Entry], renamed: bool) -> dict[str, dict[str, Entry]]:
    """The stored tensors by module and last word of their names."""
    modules: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        name = published_name(name) if renamed else name
        fused = FUSED.fullmatch(name)
        if fused:
            module, word = fused[1], f"weight_{fused[2]}" if fused[2] else "weight"
        else:
            module, _, word = name.rpartition(".")
        modules.setdefault(module, {})[word] = entry
    return modules


def _stack(module, entry) -> tuple[int, str, tuple[str, ...]] | None:
    """(experts, what stands before their numbers, whose rows) of a stack of experts, None for any other module."""
    for pattern, owners in STACKS:
        hit = pattern.fullmatch(module)
        if hit and len(entry.shape) == 3:
            return entry.shape[0], f"{hit[1]}.experts", owners if owners and hit[2] == "gate_up" else (hit[2],)
    return None


def _of_one(entry: Entry) -> Entry:
    """The header of one expert's slice."""
    return Entry(entry.name, entry.dtype, entry.shape[1:], entry.file, entry.begin, entry.end)


def _slices(name, stack, shape) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """(logical name, index in the stack, rows) of each expert's matrices."""
    experts, prefix, owners = stack
    rows = shape[0] // len(owners)
    for expert in range(experts):
        for index, owner in enumerate(owners):
            yield f"{prefix}.{expert}.{owner}_proj.weight", expert, (index * rows, (index + 1) * rows)
