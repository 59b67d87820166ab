"""Python, the installed packages against the versions that were tested, media libraries at work, memory, and folders to write to."""

import importlib
import io
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement
from packaging.version import Version

from ..errors import OmniError
from ..runtime import free_memory_gb
from . import ascend
from .runner import Finding, Findings, Options, error, note, ok, one_line, warning

PYTHON = ((3, 10), (3, 13))
TESTED_MINDSPORE = Version("2.7.1")
MACHINES = ("x86_64", "aarch64")
SELF_CHECK_GB = 2.0  # memory that importing MindSpore and the tiny model take, with room
DISK_GB = 0.5  # kernels, temporary files, the tiny model
CPU_GROWTH = 1.1  # on CPU matrices lie in memory as in the files; the vocoder and other convolutions are widened to float32
PUBLISHED_GB = {"bfloat16": 70.5, "int8": 37.2, "int4": 21.1}  # `ms-omni plan --config instruct --quantize int8` and int4
WRITABLE = "to a folder that you may write to"


def python_version(_: Any) -> Findings:
    """Findings on the interpreter."""
    found, machine = sys.version_info[:2], platform.machine()
    name = f"Python {platform.python_version()} on {platform.system()} {machine}"
    if not PYTHON[0] <= found < PYTHON[1]:
        yield error(
            f"{name}: expected Python 3.10, 3.11 or 3.12", "make an environment with Python 3.11 and install ms_omni there"
        )
    elif platform.system() != "Linux" or machine not in MACHINES:
        yield warning(f"{name}: tested on Linux, x86_64 and aarch64", "use such a machine if something fails")
    else:
        yield ok(name)


def requirements() -> list[Requirement]:
    """What an installation of ms_omni asks for, extras left out, from its own metadata."""
    listed = map(Requirement, metadata.requires("ms-omni") or ())
    return [item for item in listed if item.marker is None or item.marker.evaluate({"extra": ""})]


def packages(_: Any) -> Findings:
    """Findings on versions, read from the installed metadata and without an import."""
    try:
        wanted = requirements()
    except metadata.PackageNotFoundError:
        yield warning("ms_omni runs from a folder and is not installed, so nobody checked its packages", "pip install .")
        return
    good = []
    for item in wanted:
        named = f"{item.name}{item.specifier}"
        try:
            found = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            yield error(f"{item.name} is not installed", f"pip install '{named}'")
            continue
        if not item.specifier.contains(found, prereleases=True):
            yield error(f"{item.name} {found} is installed, expected {named}", f"pip install '{named}'")
            continue
        good.append(f"{item.name} {found}")
        if item.name == "mindspore" and Version(found) != TESTED_MINDSPORE:
            yield note(f"mindspore {found} works on CPU; on Ascend 2.7.1 is the version that the operators were written for")
    if good:
        yield ok(", ".join(good))


def media(_: Any) -> Findings:
    """Findings on pictures, sounds and videos: each library reads what it has just written."""
    bad = 0
    for what, package, attempt in (
        ("pictures", "pillow", _picture),
        ("sounds", "soundfile", _sound),
        ("resampling of sounds", "soxr", _resample),
        ("videos", "av", _video),
    ):
        try:
            attempt()
        except Exception as reason:  # from ImportError to errors of the C library behind it
            bad += 1
            yield error(
                f"{what} cannot be read: {type(reason).__name__}: {one_line(reason)}",
                f"pip install --force-reinstall --no-deps {package}",
            )
    if not bad:
        yield ok("pictures (JPEG, PNG), sounds (WAV, FLAC), resampling, videos (MP4)")


def _picture():
    image = importlib.import_module("PIL.Image")
    for kind in ("JPEG", "PNG"):
        image.new("RGB", (8, 8), (200, 0, 0)).save(file := io.BytesIO(), kind)
        assert image.open(file).convert("RGB").size == (8, 8)


def _sound():
    soundfile = importlib.import_module("soundfile")
    for kind in ("WAV", "FLAC"):
        soundfile.write(file := io.BytesIO(), np.zeros(160, np.float32), 16_000, format=kind)
        assert len(soundfile.read(io.BytesIO(file.getvalue()))[0]) == 160


def _resample():
    assert len(importlib.import_module("soxr").resample(np.zeros(480, np.float32), 48_000, 16_000)) == 160


def _video():
    av = importlib.import_module("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 32
        frames = [av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24") for _ in range(2)]
        for frame in (*frames, None):
            container.mux(stream.encode(frame))
    with av.open(io.BytesIO(file.getvalue())) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2


def memory(options: Options) -> Findings:
    """Findings on the memory of the host: what is free for this process, whatever limits it."""
    free, why = free_memory_gb()
    if free < SELF_CHECK_GB:
        yield error(
            f"{free:.1f} GB of memory are free ({why}); even a tiny model needs {SELF_CHECK_GB:.0f} GB",
            "end other programs, or raise the limit of this shell or container",
        )
        return
    yield ok(f"{free:.1f} GB free ({why})")
    if options.model is None:
        yield note(
            f"the published checkpoint takes {', '.join(f'{gb:.0f} GB in {kind}' for kind, gb in PUBLISHED_GB.items())} "
            "('ms-omni convert --quantize'); 'ms-omni doctor --model DIR' tells whether yours fits"
        )
        return
    size = sum(file.stat().st_size for file in Path(options.model).glob("*.safetensors")) / 1e9
    if not size:
        yield error(f"{options.model} holds no *.safetensors files", "pass the folder of a checkpoint as --model")
    elif size * CPU_GROWTH > free:
        yield warning(
            f"{options.model} is {size:.1f} GB of weights; on CPU they take up to {size * CPU_GROWTH:.1f} GB, more than are free here",
            "quantise it ('ms-omni convert --quantize int4'), use NPUs, or a host with more memory",
        )
    else:
        yield ok(f"{options.model}: {size:.1f} GB of weights fit")
    if ascend.is_present(options):
        yield from _codes_on_cards(options.model)


def _codes_on_cards(folder):
    """What of a quantised checkpoint no card multiplies with as it is stored; other checks say what is wrong with the folder."""
    from ..ascend import kept_whole
    from ..checkpoint.matching import plan_loading
    from ..checkpoint.open import open_checkpoint
    from ..checkpoint.shapes import parameter_shapes
    from ..checkpoint.storage import matrix_shape, storages
    from ..config import Qwen3OmniMoeConfig

    try:
        shapes, reader = parameter_shapes(Qwen3OmniMoeConfig.from_pretrained(folder)), open_checkpoint(folder)
        codes = storages(plan_loading(shapes, reader)[0], reader, None, "")
    except OmniError:
        return
    if not codes:
        return
    whole = kept_whole(codes, {name: matrix_shape(name, shapes[name]) for name in codes})
    bits = " and ".join(sorted({str(storage.bits) for storage in codes.values()}))
    count = len(codes) - sum(map(len, whole.values()))
    yield ok(f"on a card {count} of its {len(codes)} matrices in {bits} bits stay so")
    for reason, names in whole.items():
        yield note(f"{len(names)} such as {names[0]} become bfloat16 there: {reason}")


def disk(_: Any) -> Findings:
    """Findings on the cache folder, where compiled kernels are stored, and the temporary folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "ms_omni"
    why = "kernels of the CPU cannot be kept, so each process compiles its own"
    yield _folder(cache, "cache folder", warning, why, f"set XDG_CACHE_HOME {WRITABLE}")
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError as reason:
        yield error(f"there is no temporary folder: {one_line(reason)}", f"set TMPDIR {WRITABLE}")
        return
    named = os.environ.get("TMPDIR")
    if named and not temporary.samefile(named if os.path.isdir(named) else "/"):
        yield warning(
            f"TMPDIR names {named}, which cannot be written to; {temporary} is used instead", f"set TMPDIR {WRITABLE}"
        )
    do = f"set TMPDIR {WRITABLE} and that has room"
    yield _folder(temporary, "temporary folder", error, "MindSpore and msrun need one", do)


def _folder(path: Path, name: str, level: Callable[[str, str], Finding], why: str, do: str) -> Finding:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path) as file:
            file.write(bytes(1 << 16))
            file.flush()
        free = shutil.disk_usage(path).free / 1e9
    except OSError as reason:
        return level(f"the {name} {path} cannot be written to ({reason.strerror or reason}): {why}", do)
    if free < DISK_GB:
        return level(f"the {name} {path} has {free:.2f} GB free, {DISK_GB} are needed: {why}", do)
    return ok(f"{name} {path}: {free:.0f} GB free")
