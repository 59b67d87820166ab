"""Models by name: a folder of this machine, a cache of Hugging Face or of ModelScope, or a download. Imports neither MindSpore
nor transformers, so that a wrong name is told at once.
"""

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

from ms_omni.errors import CheckpointError, InputError

from . import caches

PUBLISHED = tuple(f"Qwen/Qwen3-Omni-30B-A3B-{kind}" for kind in ("Instruct", "Thinking", "Captioner"))
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ADDRESS = re.compile(rf"https?://[^/]+/(?:models/)?({NAME.pattern})(?:/.*)?")
LONGEST_NAME = 96
HUBS = ("huggingface", "modelscope")
SHOWN = 3


def resolve(
    name_or_path: str | os.PathLike,
    *,
    weights: bool = True,
    cache_dir: str | os.PathLike | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
    proxies: dict | None = None,
    subfolder: str = "",
    progress: bool = True,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """The checkpoint folder that is meant: an existing folder, else the model of that name on a hub.

    A name ("Qwen/Qwen3-Omni-30B-A3B-Instruct") is looked up in the Hugging Face cache (`cache_dir`, or that of HF_HOME and
    HF_HUB_CACHE), then in ModelScope's; only a complete copy counts, and then no network is used. What is in neither is
    downloaded from Hugging Face, or from ModelScope with MS_OMNI_HUB=modelscope.

    Args:
        name_or_path: a folder, or OWNER/NAME.
        weights: False asks for configuration, tokenizer and settings only (some 15 MB).
        revision: branch, tag or commit; default: the hub's own.
        local_files_only: never download.
        force_download: download again what is cached.
        token, proxies: for the hub, as `huggingface_hub` takes them.
        subfolder: where in the folder or repository the checkpoint stands.
        progress: whether a download shows bars.
        check: called with the folder once it holds the settings, before the weights are downloaded; raises for another model.

    Raises:
        InputError: no name and no path.
        CheckpointError: no such folder or model, no network, or no room on the disk; each says what to do.
    """
    path = _as_path(name_or_path)
    if path.is_dir():
        return _inside(path, subfolder)
    if path.exists():
        raise CheckpointError(f"{path} is a file; expected the checkpoint's folder, the one that holds config.json.")
    name = str(path)
    if not is_name(name):
        raise missing_folder(path)
    found = None if force_download else caches.find(name, weights, cache_dir, revision, subfolder)
    if found is None:
        if _looks_like_a_path(path):
            raise missing_folder(path)
        from .download import fetch  # the client of a hub is imported for a download only

        found = fetch(
            name,
            weights=weights,
            cache_dir=cache_dir,
            revision=revision,
            offline="local_files_only=True" if local_files_only else None,
            force=force_download,
            token=token,
            proxies=proxies,
            subfolder=subfolder,
            progress=progress,
            check=check,
        )
    return _inside(found, subfolder)


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


def _as_path(name_or_path: str | os.PathLike) -> Path:
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


def _inside(folder: Path, subfolder: str) -> Path:
    if not subfolder:
        return folder
    inside = folder / subfolder
    if not inside.is_dir():
        raise CheckpointError(f"{folder} has no subfolder {subfolder!r}.")
    return inside


def _looks_like_a_path(path: Path) -> bool:
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
