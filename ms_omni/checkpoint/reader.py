"""Tensors by name: of a checkpoint folder, whose files and index are compared on opening and read lazily, or of a state_dict."""

import hashlib
import json
import mmap
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.errors import CheckpointError, InputError
from ms_omni.files import read_text
from ms_omni.hub import resolve
from ms_omni.quantised import Quantised, Storage

from .safetensors import DTYPES, INDEX_FILE, NAMES, SINGLE_FILE, Entry, read_header

RANKS_INDEX = "ranks.index.json"
SHOWN_PROBLEMS = 50
SAMPLED_TENSORS, SAMPLED_ELEMENTS = 128, 64  # of a fingerprint
SAMPLED = 1 << 16  # elements of a parameter
MARKER = "ms_omni"  # metadata "format" of a checkpoint in our parameter names (see `convert`)


def report(problems: list[str], headline: str) -> CheckpointError:
    """One error with every problem (the first 50 written out)."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = problems[:SHOWN_PROBLEMS]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"... and {len(problems) - SHOWN_PROBLEMS} more")
    return CheckpointError(f"{headline}, {count}:\n  " + "\n  ".join(lines))


def check_finite(array: np.ndarray, name: str, every: bool = False) -> None:
    """Raises CheckpointError where a sample of an array holds NaN or infinities: all of a small one, of a large one what costs
    nothing beside reading it. What it misses, the first logits show. every: all of any array.
    """
    flat = array.reshape(-1)
    step = 1 if every else -(-flat.size // SAMPLED) or 1
    if not np.isfinite(flat[::step]).all():
        raise CheckpointError(f"{name} holds NaN or infinite numbers: the checkpoint is damaged; fetch it again.")


class Reader:
    """Tensors by name, numbers unless a reader says otherwise. folder: where they are, for messages; entries: what a header says of each.

    is_converted: whether they stand under our parameter names.
    """

    folder: Any
    entries: dict[str, Entry]

    @property
    def is_converted(self) -> bool:
        return False

    def array(self, name: str) -> np.ndarray:
        """A tensor; of codes the numbers that they stand for."""
        raise NotImplementedError

    def storage(self, name: str) -> Storage | None:
        """How a tensor is stored if it is codes with scales."""

    def codes(self, name: str) -> Quantised:
        """The codes of a tensor that is stored so, `[..., out, in]`."""
        raise KeyError(name)

    def release(self, name: str) -> None:
        """Drops from memory what is read again when it is needed."""


class ReaderView(Reader):
    """A reader of published names that shows what another one reads, changed."""

    def __init__(self, reader: Reader):
        self.reader, self.folder, self.entries = reader, reader.folder, reader.entries

    def array(self, name: str) -> np.ndarray:
        return self.reader.array(name)

    def release(self, name: str) -> None:
        self.reader.release(name)


class CheckpointReader(Reader):
    """The tensors of a checkpoint folder by name. Opening reads the headers only.

    variant: of the files' names ("fp16": model.fp16.safetensors, model.safetensors.index.fp16.json). renames: {regular
    expression: replacement}; the first that is found in a tensor's name is applied to it, as transformers' `key_mapping`.

    Raises CheckpointError for a folder without weights, and one that lists every missing shard, truncated file, corrupt
    header and disagreement between the index and the files.
    """

    def __init__(self, folder: str | Path, variant: str | None = None, renames: dict[str, str] | None = None):
        self.folder = resolve(folder)
        self.single, self.index = self._names(variant)
        self.entries: dict[str, Entry] = {}
        self.metadata: dict[str, dict] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._opening = threading.Lock()  # several threads read
        problems: list[str] = []
        expected = self._expected(problems)
        self.files = sorted(set(expected.values())) if expected is not None else [self.single]
        listed: dict[str, list[Entry]] = {}
        for file in self.files:
            if not os.path.isfile(self.folder / file):  # whatever the name is
                problems.append(f"{file:.200}: this shard is missing ({self.index} names it)")
                continue
            entries, self.metadata[file] = read_header(self.folder / file, problems)
            for entry in entries:
                listed.setdefault(entry.name, []).append(entry)
        if expected is not None:
            _compare_index(expected, listed, set(self.metadata), problems)
        for name, found in listed.items():
            if len(found) > 1:
                problems.append(f"{name}: stands in {len(found)} files: {', '.join(entry.file for entry in found)}")
            self.entries[name] = found[0]
        if renames:
            self.entries = _renamed(self.entries, renames, problems)
        if problems:
            raise report(problems, f"{self.folder} is damaged or incomplete")

    def _names(self, variant) -> tuple[str, str]:
        """Of a single file, and of an index."""
        if variant:
            return f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json"
        return SINGLE_FILE, INDEX_FILE

    def _expected(self, problems) -> dict[str, str] | None:
        """{tensor: file} of the index, or None for a single file."""
        single, index = (self.folder / self.single).is_file(), (self.folder / self.index).is_file()
        if not index:
            if not single:
                raise CheckpointError(_why_no_weights(self.folder, self.single, self.index))
            return None
        expected = _read_index(self.folder / self.index)
        if single and self.single not in expected.values():
            problems.append(f"holds both {self.single} and an index of other files; keep the one that is meant")
        return expected

    @property
    def is_converted(self) -> bool:
        """Whether the tensors stand under our parameter names, as `convert` writes them."""
        return any(metadata.get("format") == MARKER for metadata in self.metadata.values())

    def fingerprint(self) -> str:
        """Tells checkpoints apart: a hash of all names, types, shapes and places, and of some of the content."""
        state = hashlib.blake2b(digest_size=16)
        entries = self.stored
        names = sorted(entries)
        for name in names:
            entry = entries[name]
            state.update(f"{name} {entry.dtype} {entry.shape} {entry.file} {entry.begin}\n".encode())
        for entry in [entries[name] for name in names[:: -(-len(names) // SAMPLED_TENSORS)]]:
            state.update(self.view(entry).reshape(-1)[:SAMPLED_ELEMENTS].tobytes())
            self.drop(entry)
        return state.hexdigest()

    def array(self, name: str) -> np.ndarray:
        """A read-only view of the tensor in the file: nothing is read before it is used."""
        return self.view(self.entries[name])

    def view(self, entry: Entry) -> np.ndarray:
        """As `array`, of an entry of the files."""
        if entry.nbytes == 0:
            return np.empty(entry.shape, DTYPES[entry.dtype])
        flat = np.frombuffer(self._map(entry.file), np.uint8, entry.nbytes, entry.begin)
        return flat.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def release(self, name: str) -> None:
        """Drop the file's pages of this tensor from memory; they are read again when needed."""
        self.drop(self.entries[name])

    @property
    def stored(self) -> dict[str, Entry]:
        """All that the files hold, by name."""
        return self.entries

    def drop(self, entry: Entry) -> None:
        """As `release`, of an entry of the files."""
        if entry.nbytes and hasattr(mmap, "MADV_DONTNEED"):
            start = entry.begin - entry.begin % mmap.PAGESIZE
            self._map(entry.file).madvise(mmap.MADV_DONTNEED, start, entry.end - start)

    def _map(self, file: str) -> mmap.mmap:
        with self._opening:
            if file not in self._maps:
                with open(self.folder / file, "rb") as handle:
                    self._maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            return self._maps[file]


def _why_no_weights(folder: Path, single: str, index: str) -> str:
    names = sorted(item.name for item in folder.iterdir())
    if RANKS_INDEX in names:
        return (
            f"{folder} is cut for several ranks and cannot be read as a whole: start as many processes with msrun, or "
            "convert it back with `ms-omni convert`."
        )
    expected = f"expected {single}, or {index} with the shards it names"
    if any(re.fullmatch(r".*\.(bin|pt|pth|ckpt)(\.index\.json)?", name) for name in names):
        pickled = [name for name in names if re.search(r"\.(bin|pt|pth|ckpt)", name)]
        return (
            f"{folder} holds weights in another format ({', '.join(pickled[:4])}); {expected}. Save the checkpoint as "
            "safetensors first."
        )
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards:
        return f"{folder} holds {', '.join(shards[:4])} but no {index}; {expected}."
    return f"{folder} holds no weights (it holds: {', '.join(names[:8]) or 'nothing'}); {expected}."


def _renamed(entries: dict[str, Entry], renames: dict[str, str], problems: list[str]) -> dict[str, Entry]:
    renamed: dict[str, Entry] = {}
    for name, entry in entries.items():
        new = next((re.sub(old, new, name) for old, new in renames.items() if re.search(old, name)), name)
        if new in renamed:
            problems.append(f"{name}: key_mapping makes it {new}, as {renamed[new].name}")
        renamed[new] = entry
    return renamed


def _read_index(path: Path) -> dict[str, str]:
    try:
        table = json.loads(read_text(path))["weight_map"]
        plain = all(
            isinstance(file, str) and file == os.path.basename(file) and file.endswith(".safetensors")
            for file in table.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not an index (JSON object with a weight_map from tensor to file): "
            f"{type(error).__name__}: {error}. Fetch it again."
        ) from None
    if not table or not plain:
        raise CheckpointError(f"{path}: weight_map is empty or names something that is no .safetensors file beside it.")
    return table


def _compare_index(expected, listed, readable, problems):
    for name, file in expected.items():
        where = [entry.file for entry in listed.get(name, [])]
        if file in readable and file not in where:
            problems.append(
                f"{name}: the index says {file}, but " + (f"it stands in {where[0]}" if where else "no file holds it")
            )
    for name, found in listed.items():
        if name not in expected:
            problems.append(f"{name}: stands in {found[0].file}, but the index does not name it")


class StateReader(Reader):
    """Arrays by name that a program holds already, in published or in our names: transformers' `state_dict=`.

    state: numpy arrays, tensors or parameters of MindSpore, or tensors of another library that have `numpy()`.
    Raises InputError for what is none of these.
    """

    folder = "the state_dict"

    def __init__(self, state: Mapping[str, Any]):
        if not isinstance(state, Mapping) or not state:
            raise InputError(f"state_dict is a {type(state).__name__}, expected a dict of arrays by name, with at least one")
        self.arrays = {str(name): _array(name, value) for name, value in state.items()}
        self.entries = {
            name: Entry(name, NAMES[array.dtype], array.shape, "", 0, array.nbytes) for name, array in self.arrays.items()
        }

    @property
    def is_converted(self) -> bool:
        """Whether the arrays stand under our parameter names."""
        # No published name ends so.
        return any(name.endswith(".experts.gate_up") for name in self.arrays)

    def array(self, name: str) -> np.ndarray:
        """The array itself."""
        return self.arrays[name]


def _array(name, value) -> np.ndarray:
    if hasattr(value, "detach") and "bfloat16" in str(getattr(value, "dtype", "")):  # numpy does not know PyTorch's
        value = value.detach().float()
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    elif hasattr(value, "asnumpy"):
        value = value.asnumpy()
    array = np.asarray(value)
    if array.dtype not in NAMES:
        raise InputError(f"state_dict[{name!r}] has dtype {array.dtype}, expected one of {', '.join(map(str, NAMES))}")
    return array
