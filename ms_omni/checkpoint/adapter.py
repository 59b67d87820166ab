"""Adapters in PEFT's layout merged into weights: LoRA, also rank-stabilised, decomposed (DoRA), of tables, and whole modules.

    adapter_config.json          r, lora_alpha, rank_pattern, alpha_pattern, use_rslora, ...
    adapter_model.safetensors    base_model.model.MODULE.lora_A.weight [r, in], MODULE.lora_B.weight [out, r], ...

    weight + scale * B @ A       scale = alpha / r, or alpha / sqrt(r) with use_rslora (peft/tuners/lora/layer.py)

With `lora_magnitude_vector` m the rows of that sum are scaled to the lengths m. MODULE is a module of the published model or, for an
adapter of the thinker alone, of that. Names that hold the adapter's own as well (lora_A.default.weight), as in a running model, are
taken too. `fan_in_fan_out` says how a layer of another kind stores its weights and changes nothing here.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ms_omni.errors import CheckpointError
from ms_omni.files import read_text

from .matching import file_root
from .names import COMPONENTS
from .reader import Reader, ReaderView, report
from .safetensors import DTYPES, WEIGHT_DTYPES, Entry, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)(?:\.(?:base_layer|modules_to_save(?:\.(?P<saved>[^.]+))?|original_module))*"
    r"\.(?:(?P<factor>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?"
    r"(?P<end>\.weight|\.bias)?|(?P<whole>weight|bias|scale|gamma))"
)
_REFUSED = {  # settings under which the adapter is more than an addition to the weights, and why
    "layer_replication": "it repeats layers",
    "target_parameters": "it changes stacked parameters; name the experts' modules instead",
    "trainable_token_indices": "it replaces single rows of tables",
    "alora_invocation_tokens": "it is active only behind certain tokens",
    "arrow_config": "it chooses among adapters for each token",
    "use_qalora": "it adds to groups of inputs",
    "use_bdlora": "its matrices are made of blocks",
    "kasa_config": "it cuts singular values off the model below",
}
_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")  # initialisations that also change the model below
_PATTERNS = ("rank_pattern", "alpha_pattern")


@dataclass
class Change:
    """What is done to one tensor: new, of its shape, replaces it; then `scale` times up `[..., r]` @ down `[r, ...]`, or added, is added.

    magnitude: lengths that the rows of the sum get. table: the factors are those of its transpose.
    """

    new: np.ndarray | None = None
    down: np.ndarray | None = None
    up: np.ndarray | None = None
    added: np.ndarray | None = None
    scale: float = 1.0
    magnitude: np.ndarray | None = None
    table: bool = False

    def shapes(self) -> set[tuple[int, ...]]:
        """Of the tensors that it fits: one, unless it contradicts itself."""
        found = {whole.shape for whole in (self.new, self.added) if whole is not None}
        if self.down is not None and self.up is not None:
            shape = (self.up.shape[0], *self.down.shape[1:])
            found.add(shape[::-1] if self.table else shape)
        return found

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The tensor with the change, in float32."""
        array = (array if self.new is None else self.new).astype(np.float32)
        if self.added is not None:
            array += self.scale * self.added.astype(np.float32)
        if self.down is not None and self.up is not None:
            up, down = (factor.astype(np.float32) for factor in (self.up, self.down))
            product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
            array += self.scale * (product.T if self.table else product).reshape(array.shape)
        if self.magnitude is not None:
            lengths = np.linalg.norm(array, axis=1)
            array *= np.divide(self.magnitude.reshape(-1), lengths, out=np.zeros_like(lengths), where=lengths > 0)[:, None]
        return array


class Merging(ReaderView):
    """Shows a reader of published names with an adapter's folder merged; tensors keep their dtypes.

    Raises:
        CheckpointError: one error that lists all settings of the adapter that cannot be merged, and all its tensors that are not in
            the checkpoint, or have another shape there.
    """

    def __init__(self, reader: Reader, adapter: str | Path):
        super().__init__(reader)
        root = file_root(reader.entries)
        stored = {root + name: name for name in reader.entries}
        changes, problems = _read(Path(adapter))
        for full, change in changes.items():
            if full not in stored:
                problems.append(f"{full}: is changed by the adapter, but the checkpoint has no such tensor")
            elif change.shapes() != {reader.entries[stored[full]].shape}:
                found = " and ".join(str(list(shape)) for shape in sorted(change.shapes()))
                problems.append(
                    f"{full}: is {list(reader.entries[stored[full]].shape)} in the checkpoint, {found} in the adapter"
                )
        if not problems and not changes:
            problems.append(f"{WEIGHTS} holds no tensors")
        if problems:
            raise report(problems, f"the adapter {adapter} cannot be merged into {reader.folder}")
        self.changes = {stored[full]: change for full, change in changes.items()}
        self.note = f"merged the adapter {adapter} into {len(changes):,} tensors"

    def array(self, name: str) -> np.ndarray:
        """The tensor, with what the adapter changes."""
        array = self.reader.array(name)
        change = self.changes.get(name)
        return array if change is None else change.apply(array).astype(array.dtype)


def _read(folder: Path) -> tuple[dict[str, Change], list[str]]:
    """`{full name of a published tensor: Change}` of an adapter, and what is wrong with it."""
    config = _config(folder)
    problems = _check_settings(config)
    entries, _ = read_header(folder / WEIGHTS, problems)
    found = _sorted_tensors(folder / WEIGHTS, entries, problems)
    whole = any(module.split(".", 1)[0] in COMPONENTS for module in found)
    changes = {}
    for module, tensors in found.items():
        made = _changes(module, tensors, config, problems)
        changes.update({f"{'' if whole else 'thinker.'}{module}.{word}": change for word, change in made.items()})
    return changes, problems


def _config(folder: Path) -> dict:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}; expected the folder of an adapter in PEFT's layout.")
    try:
        config = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, expected a JSON object.")
    if not (folder / WEIGHTS).is_file():
        names = ", ".join(sorted(item.name for item in folder.glob("adapter_model*"))) or "no weights"
        raise CheckpointError(f"{folder} holds {names}, expected {WEIGHTS}; save the adapter as safetensors.")
    return config


def _check_settings(config) -> list[str]:
    problems = []
    kind = config.get("peft_type")
    if kind != "LORA":
        problems.append(f"peft_type is {kind!r}, expected 'LORA': other kinds of adapters cannot be merged")
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if not _is_number(value):
            problems.append(f"{key} is {value!r}, expected a number over 0")
    for key in _PATTERNS:
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            problems.append(f"{key} is {patterns!r:.80}, expected an object of numbers by regular expression")
            config[key] = patterns = {}
        for pattern, value in patterns.items():
            if not _is_number(value) or not _is_pattern(pattern):
                problems.append(f"{key} says {value!r} for {pattern!r}, expected a number over 0 for a regular expression")
    problems += [f"{key} is set: {why}" for key, why in _REFUSED.items() if config.get(key)]
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGED_BASE):
        problems.append(
            f"init_lora_weights is {start!r}, which changes the model below as well; convert it to a plain LoRA with PEFT "
            "(path_initial_model_for_weight_conversion)"
        )
    return problems


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _is_pattern(pattern) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _sorted_tensors(path: Path, entries: list[Entry], problems) -> dict[str, dict[str, np.ndarray]]:
    """`{module: {"lora_A": array, ...}}`."""
    found, adapters = {}, set()
    for entry in entries:
        hit = _TENSOR.fullmatch(entry.name)
        if hit is None:
            problems.append(f"{entry.name}: no tensor of a LoRA adapter has such a name")
        elif entry.dtype not in WEIGHT_DTYPES or entry.nbytes == 0:
            problems.append(
                f"{entry.name}: is {entry.dtype} {list(entry.shape)}, expected {', '.join(WEIGHT_DTYPES)} and no empty axis"
            )
        else:
            array = (
                np.memmap(path, np.uint8, "r", entry.begin, (entry.nbytes,)).view(DTYPES[entry.dtype]).reshape(entry.shape)
            )
            if not np.isfinite(array.astype(np.float32)).all():
                problems.append(f"{entry.name}: holds NaN or infinite numbers")
            adapters.add(hit["adapter"] or hit["saved"])
            word = hit["whole"] or hit["factor"] + (".bias" if hit["end"] == ".bias" else "")
            if word in found.setdefault(hit["module"], {}):
                problems.append(f"{entry.name}: is the second {word} of {hit['module']}")
            found[hit["module"]][word] = array
    names = sorted(adapters - {None})
    if len(names) > 1:
        problems.append(f"{path.name} holds the adapters {', '.join(names)}, expected one; save each in a folder of its own")
    return found


def _changes(module, tensors, config, problems) -> dict[str, Change]:
    """What is done to the tensors of one module, by the last words of their names; a tensor of the whole shape replaces it."""
    changes = {word: Change(new=array) for word, array in tensors.items() if not word.startswith("lora_")}
    factors = {word: array for word, array in tensors.items() if word.startswith("lora_")}
    if not factors:
        return changes
    table = "lora_embedding_A" in factors or "lora_embedding_B" in factors
    down, up = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A", "lora_B")
    known = {down, up} if table else {down, up, f"{up}.bias", "lora_magnitude_vector"}
    if not {down, up} <= factors.keys() <= known:
        problems.append(f"{module}: has {', '.join(sorted(factors))}, expected {down} and {up}")
        return changes
    if bool(config.get("use_dora")) != ("lora_magnitude_vector" in factors):
        has = "has" if "lora_magnitude_vector" in factors else "has no"
        problems.append(f"{module}: {has} lora_magnitude_vector, but use_dora is {config.get('use_dora')!r}")
    a, b, magnitude = factors[down], factors[up], factors.get("lora_magnitude_vector")
    rank = _of_pattern(config, "rank_pattern", module, config.get("r"))
    alpha = _of_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if a.ndim < 2 or b.ndim < 2 or not a.shape[0] == math.prod(b.shape[1:]) == rank:
        problems.append(
            f"{module}: {down} is {list(a.shape)} and {up} {list(b.shape)}, expected [{rank}, inputs] and [outputs, {rank}]"
        )
        return changes
    if magnitude is not None and (a.ndim != 2 or magnitude.size != len(b)):
        problems.append(
            f"{module}: lora_magnitude_vector is {list(magnitude.shape)}, expected [{len(b)}] for a matrix of as many outputs"
        )
        return changes
    scale = (
        alpha / (math.sqrt(rank) if config.get("use_rslora") else rank) if _is_number(alpha) and _is_number(rank) else 1.0
    )
    new = changes["weight"].new if "weight" in changes else None  # of a table, which PEFT writes beside its factors
    changes["weight"] = Change(new, a, b, None, scale, magnitude, table)
    if f"{up}.bias" in factors:
        changes["bias"] = Change(
            changes["bias"].new if "bias" in changes else None, added=factors[f"{up}.bias"], scale=scale
        )
    return changes


def _of_pattern(config, key, module, default):
    """The value of the first pattern that ends the module's name (peft/utils/other.py: get_pattern_key)."""
    patterns = {pattern: value for pattern, value in (config.get(key) or {}).items() if _is_pattern(pattern)}
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)
