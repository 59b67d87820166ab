"""Python, the installed packages against the versions that were tested, and the media libraries at work."""

import importlib
import io
import platform
import sys
from importlib import metadata

import numpy as np
from packaging.requirements import Requirement
from packaging.version import Version

from .finding import error, note, ok, one_line, warning

PYTHON = ((3, 10), (3, 13))
TESTED_MINDSPORE = Version("2.7.1")
MACHINES = ("x86_64", "aarch64")


def python_version(_):
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


def requirements():
    """What an installation of ms_omni asks for, extras left out: `[Requirement, ...]`, from its own metadata."""
    listed = map(Requirement, metadata.requires("ms-omni") or ())
    return [item for item in listed if item.marker is None or item.marker.evaluate({"extra": ""})]


def packages(_):
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


def media(_):
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
        file = io.BytesIO()
        image.new("RGB", (8, 8), (200, 0, 0)).save(file, kind)
        assert image.open(io.BytesIO(file.getvalue())).convert("RGB").size == (8, 8)


def _sound():
    soundfile = importlib.import_module("soundfile")
    for kind in ("WAV", "FLAC"):
        file = io.BytesIO()
        soundfile.write(file, np.zeros(160, np.float32), 16_000, format=kind)
        assert len(soundfile.read(io.BytesIO(file.getvalue()))[0]) == 160


def _resample():
    assert len(importlib.import_module("soxr").resample(np.zeros(480, np.float32), 48_000, 16_000)) == 160


def _video():
    av = importlib.import_module("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 32
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(io.BytesIO(file.getvalue())) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2
