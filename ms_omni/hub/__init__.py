"""Models by name: a folder of this machine, a cache of Hugging Face or of ModelScope, or a download. Imports neither MindSpore
nor transformers, so that a wrong name is an error at once; the client of a hub is imported for a download only.

The settings are downloaded first, then, once they have been checked, the weights. An interrupted download is continued, and of several
processes one downloads while the others wait.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ms_omni.errors import CheckpointError, InputError

from .names import (
    MAIN,
    as_path,
    cached_copies,
    chosen_hub,
    find_cached,
    hugging_face_cache,
    is_name,
    looks_like_a_path,
    missing_file,
    missing_folder,
    published_like,
)

_SETTINGS = (".json", ".jinja", ".txt", ".tiktoken", ".model")
WEIGHTS = ".safetensors"
TEMPLATES = "additional_chat_templates/"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".gguf")
TRIES = 5  # of a download that breaks off
PAUSE_S = 1.0
ANSWER_S = 15  # to wait for the hub's list of files


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
    path = as_path(name_or_path)
    if path.is_dir():
        return _inside(path, subfolder)
    if path.exists():
        raise CheckpointError(f"{path} is a file; expected the checkpoint's folder, the one that holds config.json.")
    name = str(path)
    if not is_name(name):
        raise missing_folder(path)
    folder = None if force_download else find_cached(name, weights, cache_dir, revision, subfolder)
    if folder is None:
        if looks_like_a_path(path):
            raise missing_folder(path)
        folder = fetch(
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
    return _inside(folder, subfolder)


def _inside(folder: Path, subfolder: str) -> Path:
    if not subfolder:
        return folder
    inside = folder / subfolder
    if not inside.is_dir():
        raise CheckpointError(f"{folder} has no subfolder {subfolder!r}.")
    return inside


def fetch(
    name: str,
    *,
    weights: bool = True,
    cache_dir: str | os.PathLike | None = None,
    local_dir: str | os.PathLike | None = None,
    revision: str | None = None,
    offline: str | None = None,
    force: bool = False,
    token: str | bool | None = None,
    proxies: dict | None = None,
    subfolder: str = "",
    progress: bool = True,
    hub: str | None = None,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Downloads the files of the model `name` that are needed and returns their folder; arguments as of `resolve`.

    local_dir: a folder for the files, instead of the cache. offline: what forbids to use the network, if something does.
    hub: "huggingface" or "modelscope", default: what MS_OMNI_HUB says.

    Raises:
        InputError: an unknown hub, or one whose package is not installed.
        CheckpointError: no such model or revision, no network, no room, or a download that broke off again and again.
    """
    client = {"huggingface": HuggingFace, "modelscope": ModelScope}[chosen_hub(hub)]
    if offline is None and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        offline = "HF_HUB_OFFLINE is set"

    def cached() -> Path | None:
        """The copy to use where the hub cannot be reached: settings need not be complete for that."""
        for folder in () if local_dir else cached_copies(name, cache_dir, revision):
            if missing_file(folder / subfolder, weights) is None or (
                not weights and (folder / subfolder / "config.json").is_file()
            ):
                return folder
        return None

    def cached_or_error(reason: str) -> Path:
        folder = cached()
        if folder is None:
            raise unreachable(name, reason, weights, cache_dir, revision, subfolder)
        return folder

    if offline is not None:
        return cached_or_error(offline)
    began = time.time()
    with _download_lock(name, cache_dir, local_dir) as waited, _through(proxies):
        if waited and local_dir is None and (not force or _is_newer(name, cache_dir, revision, began)):
            folder = find_cached(name, weights, cache_dir, revision, subfolder)
            if folder is not None:
                return folder
        try:
            source = client(name, revision, cache_dir, local_dir, force, token, subfolder, progress)
        except Unreachable as error:
            return cached_or_error(str(error))
        folder = source.download(weights=False)
        if check is not None:
            check(folder / subfolder)
        return source.download(weights=True) if weights else folder


class Unreachable(Exception):
    """The hub does not answer; says why."""


@dataclass
class Download:
    """What is downloaded, and where to; arguments as of `fetch`."""

    name: str
    revision: str | None
    cache_dir: str | os.PathLike | None
    local_dir: str | os.PathLike | None
    force: bool
    token: str | bool | None
    subfolder: str
    progress: bool


@dataclass
class HuggingFace(Download):
    """One model on the Hugging Face hub (or on HF_ENDPOINT), by `huggingface_hub`. Raises `Unreachable`."""

    def __post_init__(self) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

        name, revision = self.name, self.revision
        self.folder = None if self.local_dir is None else Path(self.local_dir).expanduser()
        self.cache = _cache(self.cache_dir)
        self.options = {"revision": revision, "force_download": self.force, "token": self.token}
        self.options |= {"cache_dir": self.cache} if self.folder is None else {"local_dir": self.folder}
        try:
            self.info = HfApi(token=self.token).model_info(name, revision=revision, files_metadata=True, timeout=ANSWER_S)
        except RevisionNotFoundError:
            raise CheckpointError(f"{name} has no revision {revision!r} (a branch, a tag or a commit).") from None
        except GatedRepoError:
            raise CheckpointError(
                f"{name} asks for consent on its page before it can be downloaded; then pass token=, or log in (hf auth login)."
            ) from None
        except RepositoryNotFoundError:
            raise no_such_model(name) from None
        except HfHubHTTPError as error:
            raise Unreachable(f"the hub answered: {_one_line(error)}") from None
        except Exception as error:  # of whichever package the client talks HTTP with
            address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
            raise Unreachable(f"{address} cannot be reached ({_one_line(_cause(error))})") from None
        self.sizes = {file.rfilename: file.size or 0 for file in self.info.siblings or ()}

    def download(self, weights: bool) -> Path:
        """Downloads what is not there yet and returns the folder."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        files = [file for file in self.sizes if is_wanted(file, self.subfolder, weights)]
        self._check(files, weights)
        quiet = not self.progress and not are_progress_bars_disabled()
        if quiet:
            disable_progress_bars()
        try:
            for attempt in range(TRIES):
                try:
                    folder = Path(snapshot_download(self.name, allow_patterns=files, **self.options))
                    if all((folder / file).is_file() for file in files):
                        return folder
                    problem = "some files did not come"
                except Exception as error:
                    problem = _one_line(error)
                    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
                        raise CheckpointError(f"the hub refuses files of {self.name}: {problem}") from None
                if attempt < TRIES - 1:
                    time.sleep(PAUSE_S * attempt)
        finally:
            if quiet:
                enable_progress_bars()
        raise CheckpointError(
            f"the download of {self.name} broke off {TRIES} times, the last time with: {problem}. Files that have come "
            "whole are kept: the same call goes on with the others."
        )

    def _check(self, files: list[str], weights: bool) -> None:
        """Raises CheckpointError for a repository without weights that we read, and for a disk without room."""
        if weights and not any(file.endswith(WEIGHTS) for file in files):
            other = [file for file in self.sizes if file.endswith(PICKLED)]
            raise CheckpointError(
                f"{self.name} holds no safetensors{' but ' + ', '.join(other[:4]) if other else ''}; only those are read."
            )
        there = self.folder or self._repository() / "snapshots" / (self.info.sha or "")
        missing = sum(self.sizes[file] for file in files if not (there / file).is_file())
        missing -= sum(part.stat().st_size for part in self._repository().glob("blobs/*.incomplete"))
        target = self.folder or self.cache
        free = shutil.disk_usage(next(folder for folder in (target, *target.absolute().parents) if folder.is_dir())).free
        if missing > free:
            raise CheckpointError(
                f"{self.name} takes {missing / 1e9:.1f} GB more, and {target} has {free / 1e9:.1f} GB free. Choose another "
                "disk with HF_HOME, cache_dir= or `ms-omni download --local-dir`."
            )

    def _repository(self) -> Path:
        return self.cache / _folder_name(self.name)


@dataclass
class ModelScope(Download):
    """One model on ModelScope, by the package `modelscope`. Raises `InputError` where it is not installed."""

    def __post_init__(self) -> None:
        try:
            from modelscope import snapshot_download
        except ImportError as error:
            raise InputError(
                f"MS_OMNI_HUB=modelscope needs the package modelscope ({error}). Install it with: pip install modelscope"
            ) from None
        root = f"{self.subfolder}/" if self.subfolder else ""
        self.settings = [f"{root}*{suffix}" for suffix in _SETTINGS]
        self.weights = [*self.settings, f"{root}*{WEIGHTS}"]
        options = {key: getattr(self, key) for key in ("revision", "cache_dir", "local_dir", "token")}
        self.options = {key: value for key, value in options.items() if value is not None}
        self._snapshot_download = snapshot_download

    def download(self, weights: bool) -> Path:
        """Downloads what is not there yet and returns the folder."""
        try:
            patterns = self.weights if weights else self.settings
            return Path(self._snapshot_download(self.name, allow_patterns=patterns, **self.options))
        except Exception as error:  # its errors have no common base
            raise CheckpointError(f"{self.name} cannot be downloaded from ModelScope: {_one_line(error)}") from None


def is_wanted(file: str, subfolder: str, weights: bool) -> bool:
    """Whether a file of a repository belongs to the checkpoint: settings and, with `weights`, safetensors; never pickles."""
    root = f"{subfolder.strip('/')}/" if subfolder else ""
    if not file.startswith(root):
        return False
    name = file[len(root) :].removeprefix(TEMPLATES)
    return "/" not in name and name.endswith((*_SETTINGS, WEIGHTS) if weights else _SETTINGS)


def unreachable(
    name: str,
    reason: str,
    weights: bool,
    cache_dir: str | os.PathLike | None = None,
    revision: str | None = None,
    subfolder: str = "",
) -> CheckpointError:
    """The error for a model that is not here while the hub cannot be asked, with the commands of both hubs."""
    parts = [(folder, missing_file(folder / subfolder, weights)) for folder in cached_copies(name, cache_dir, revision)]
    state = (
        f"{parts[0][0]} holds a part of it only ({parts[0][1]} is missing)" if parts else "it is in no cache of this machine"
    )
    option = f" --revision {revision}" if revision else ""
    return CheckpointError(
        f"{name} is not a folder here, {state}, and nothing can be downloaded: {reason}. "
        f"Fetch it where there is a network, with one of\n  hf download {name}{option}\n"
        f"  modelscope download --model {name}{option}\nand pass the folder, or keep it in the hub's cache."
    )


def no_such_model(name: str) -> CheckpointError:
    """The error for a name that the hub does not know."""
    near = [found for found in published_like(name) if found != name]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return CheckpointError(
        f"{name!r} is neither a folder on this machine nor a model on the hub (or a private one: pass token=).{hint}"
    )


@contextlib.contextmanager
def _download_lock(name: str, cache_dir: str | os.PathLike | None, local_dir: str | os.PathLike | None) -> Iterator[bool]:
    """Holds the lock of the model's download; gives whether another process was waited for."""
    from huggingface_hub.utils import WeakFileLock

    if local_dir is not None:  # the client locks each file
        yield False
        return
    cache = _cache(cache_dir)
    lock = cache / ".locks" / _folder_name(name) / "ms_omni.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{name} cannot be kept in {cache}: {error.strerror}. Choose another folder with HF_HOME or cache_dir=."
        ) from None
    began = time.monotonic()
    with WeakFileLock(lock):
        yield time.monotonic() - began > 0.05


def _is_newer(name: str, cache_dir: str | os.PathLike | None, revision: str | None, began: float) -> bool:
    """Whether another process has asked the hub for the revision since then."""
    reference = _cache(cache_dir) / _folder_name(name) / "refs" / (revision or MAIN[0])
    return reference.is_file() and reference.stat().st_mtime >= began


def _cache(cache_dir: str | os.PathLike | None) -> Path:
    return hugging_face_cache() if cache_dir is None else Path(cache_dir).expanduser()


def _folder_name(name: str) -> str:
    return f"models--{name.replace('/', '--')}"


@contextlib.contextmanager
def _through(proxies: Mapping[str, str] | None) -> Iterator[None]:
    """Inside this context the hub is asked through these proxies ({"https": address}); versions 1 and up take no argument."""
    from huggingface_hub import utils

    names = {f"{scheme.partition(':')[0]}_proxy": address for scheme, address in (proxies or {}).items()}
    before = {name: os.environ.get(name) for name in names}
    renew: Callable = getattr(utils, "close_session", None) or getattr(utils, "reset_sessions")  # noqa: B009  (by version)
    os.environ.update(names)
    if names:
        renew()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        if names:
            renew()


def _cause(error: BaseException) -> BaseException:
    """The system's own error, below those of several libraries."""
    inner = error.__cause__ or error.__context__
    return error if inner is None else _cause(inner)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text[:300]}"
