"""What a model is called: folders, names on a hub, and the caches of the hubs' own tools, with or without a complete copy.

Hugging Face   CACHE/models--OWNER--NAME/refs/REVISION holds a commit, CACHE/models--OWNER--NAME/snapshots/COMMIT/ the files
ModelScope     CACHE/models/OWNER/NAME (or without models/; a dot of NAME may be "___"), CACHE/models/OWNER--NAME/snapshots/REVISION
"""

import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ms_omni.errors import CheckpointError, InputError

PUBLISHED = tuple(f"Qwen/Qwen3-Omni-30B-A3B-{kind}" for kind in ("Instruct", "Thinking", "Captioner"))
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ADDRESS = re.compile(rf"https?://[^/]+/(?:models/)?({NAME.pattern})(?:/.*)?")
LONGEST_NAME = 96
HUBS = ("huggingface", "modelscope")
SHOWN = 3
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


def chosen_hub(hub: str | None = None) -> str:
    """The hub to download from: `hub`, or what MS_OMNI_HUB says, or Hugging Face. Raises `InputError` for another."""
    wanted = hub or os.environ.get("MS_OMNI_HUB") or HUBS[0]
    if wanted.lower() not in HUBS:
        raise InputError(f"the hub is {wanted!r} (MS_OMNI_HUB or --hub), expected one of {', '.join(HUBS)}")
    return wanted.lower()


def is_name(text: str) -> bool:
    """Whether `text` can be the name of a model on a hub: OWNER/NAME."""
    return bool(NAME.fullmatch(text)) and len(text) <= LONGEST_NAME and ".." not in text and "--" not in text


def missing_folder(path: str | os.PathLike) -> CheckpointError:
    """The error for a folder that does not exist and is no name on a hub; names what is close to it."""
    path = Path(path)
    near = [str(found) for found in _near(path)] + published_like(str(path))
    hint = f" Did you mean {' or '.join(near[:SHOWN])}?" if near else ""
    return CheckpointError(
        f"{str(path)!r} is not a folder on this machine.{hint} Expected a checkpoint's folder, or a model's name on a hub, "
        f"such as {PUBLISHED[0]}."
    )


def published_like(text: str) -> list[str]:
    """The published name that `text` may mean, with or without its owner, if any."""
    names = {name.lower(): name for name in PUBLISHED} | {name.split("/")[1].lower(): name for name in PUBLISHED}
    return [names[item] for item in difflib.get_close_matches(text.lower(), names, 1, 0.8)]


def as_path(name_or_path: str | os.PathLike) -> Path:
    """The path that is meant. Raises `InputError` for what is neither a folder nor the name of a model."""
    if not isinstance(name_or_path, (str, os.PathLike)) or not str(name_or_path).strip():
        raise InputError(f"got {name_or_path!r} as a checkpoint; expected a folder, or a name such as {PUBLISHED[0]}")
    text = os.fspath(name_or_path)
    address = ADDRESS.fullmatch(text)
    if address:
        raise InputError(f"{text} is an address; give the model's name alone: {address[1]}")
    if "\0" in text:
        raise InputError(f"{text!r} is not a path: it holds a null character")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~user of an unknown user
        return Path(text)


def looks_like_a_path(path: Path) -> bool:
    """Whether an unknown OWNER/NAME is a mistyped path: its first part is a folder here, or much like one that has the second.

    The publisher's own name is not, so that one of its models can stand in a folder here while another is asked for.
    """
    owner = path.parts[0]
    published = {name.split("/")[0] for name in PUBLISHED}
    return owner not in published and (Path(owner).is_dir() or bool(_near(path)))


def _near(path: Path) -> list[Path]:
    """Existing folders that `path` may mean: the first part that does not exist is taken for mistyped."""
    there = Path(path.anchor)
    for index, part in enumerate(path.parts[1:] if path.anchor else path.parts):
        if (there / part).is_dir():
            there = there / part
            continue
        try:
            names = {item.name.lower(): item.name for item in there.iterdir() if item.is_dir()}
        except OSError:
            return []
        rest = path.parts[index + 1 + bool(path.anchor) :]
        close = difflib.get_close_matches(part.lower(), names, SHOWN, 0.7)
        return [found for name in close if (found := there.joinpath(names[name], *rest)).is_dir()]
    return []


def find_cached(
    name: str, weights: bool, cache_dir: str | os.PathLike | None = None, revision: str | None = None, subfolder: str = ""
) -> Path | None:
    """The first complete copy of the model in a cache, or None. weights: whether it must hold them."""
    for folder in cached_copies(name, cache_dir, revision):
        if missing_file(folder / subfolder, weights) is None:
            return folder
    return None


def cached_copies(name: str, cache_dir: str | os.PathLike | None = None, revision: str | None = None) -> Iterator[Path]:
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


def missing_file(folder: Path, weights: bool) -> str | None:
    """The first file that a copy lacks, or None for a complete one. weights: they and config.json count, else the settings do."""
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
    return next((name for name in files if not os.path.isfile(folder / name)), None)  # an index may hold any names


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


def _path(text: str | os.PathLike) -> Path:
    return Path(os.path.expandvars(text)).expanduser()
