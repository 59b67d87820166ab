"""Where the hubs' own tools keep what they have downloaded, and whether a copy is whole.

Hugging Face   CACHE/models--OWNER--NAME/refs/REVISION holds a commit, CACHE/models--OWNER--NAME/snapshots/COMMIT/ the files
ModelScope     CACHE/models/OWNER/NAME (or without models/; a dot of NAME may be "___"), CACHE/models/OWNER--NAME/snapshots/REVISION
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

MAIN = ("main", "master")  # what the hubs call the revision that is meant when none is named
SINGLE_FILE, INDEX_FILE, RANKS_INDEX = "model.safetensors", "model.safetensors.index.json", "ranks.index.json"
MODELSLIM = "quant_model_weight*.safetensors"  # msModelSlim's name of either
SETTINGS = (  # one file of each row
    ("config.json",),
    ("tokenizer_config.json",),
    ("tokenizer.json", "vocab.json"),
    ("preprocessor_config.json", "processor_config.json"),
    ("chat_template.json", "chat_template.jinja"),
)


def find(name: str, weights: bool, cache_dir=None, revision: str | None = None, subfolder: str = "") -> Path | None:
    """The first complete copy of the model in a cache, or None. weights: whether it must hold them."""
    for folder in copies(name, cache_dir, revision):
        if lacks(folder / subfolder, weights) is None:
            return folder
    return None


def copies(name: str, cache_dir=None, revision: str | None = None) -> Iterator[Path]:
    """The folders in which a copy of the model may stand, complete or not: Hugging Face's first."""
    hugging_face = [cache_dir] if cache_dir is not None else [hugging_face_cache()]
    for cache in map(_path, hugging_face):
        yield from _snapshots(cache / f"models--{name.replace('/', '--')}", revision or MAIN[0])
    owner, title = name.split("/")
    for cache in map(_path, [cache_dir] if cache_dir is not None else model_scope_caches()):
        for parent in (cache / "models", cache):
            for spelling in dict.fromkeys((title, title.replace(".", "___"))):
                if (parent / owner / spelling).is_dir() and _is_revision(parent / owner / spelling, revision):
                    yield parent / owner / spelling
            for wanted in [revision] if revision else MAIN[::-1]:
                snapshot = parent / f"{owner}--{title}" / "snapshots" / wanted
                if snapshot.is_dir():
                    yield snapshot


def hugging_face_cache() -> Path:
    """The folder of Hugging Face's cache, as its own tools find it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return _path(os.environ[variable])
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _path(os.environ.get("HF_HOME") or Path(base) / "huggingface") / "hub"


def model_scope_caches() -> list[Path]:
    """The folders of ModelScope's cache: older versions of its tool use the second of the default ones."""
    if os.environ.get("MODELSCOPE_CACHE"):
        root = _path(os.environ["MODELSCOPE_CACHE"])
        return [root, root / "hub"]
    return [_path("~/.cache/modelscope/hub"), _path("~/.cache/modelscope")]


def lacks(folder: Path, weights: bool) -> str | None:
    """What a copy lacks, or None for a complete one. weights: they and config.json count, else the settings do."""
    if not weights:
        return next((row[0] for row in SETTINGS if not any((folder / name).is_file() for name in row)), None)
    if not (folder / "config.json").is_file():
        return "config.json"
    index = next((path for path in (folder / INDEX_FILE, *folder.glob(f"{MODELSLIM}.index.json")) if path.is_file()), None)
    if index is not None:
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return index.name
    elif (folder / RANKS_INDEX).is_file():
        return None  # a missing rank is that rank's error
    else:
        files = [next((path.name for path in folder.glob(MODELSLIM)), SINGLE_FILE)]
    return next((name for name in files if not os.path.isfile(folder / name)), None)  # whatever the names are


def _snapshots(repository: Path, revision: str) -> Iterator[Path]:
    try:
        commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    if (repository / "snapshots" / commit).is_dir():
        yield repository / "snapshots" / commit


def _is_revision(folder: Path, revision: str | None) -> bool:
    """Whether ModelScope's flat folder holds the revision: its tool notes it in `.mv`."""
    if revision is None or revision in MAIN:
        return True
    try:
        return (folder / ".mv").read_text(encoding="utf-8").startswith(f"Revision:{revision},")
    except (OSError, UnicodeDecodeError):
        return False


def _path(text) -> Path:
    return Path(os.path.expandvars(text)).expanduser()
