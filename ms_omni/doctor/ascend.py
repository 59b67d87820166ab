"""Driver, firmware and CANN, read as `ms_omni/ascend.py` says where they stand, the NPUs, by their files and npu-smi, and MindSpore itself."""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..ascend import cann_versions, field, toolkit_folders
from .runner import Finding, Findings, Options, error, note, ok, one_line, warning

OLDEST_DRIVER = "24.1.RC3"  # that goes with MindSpore 2.7.1
INSTALL = "https://www.mindspore.cn/install names the packages that go together"
SMI_LIMIT_S = 20
VERSIONS = re.compile(r"^class AscendEnvChecker\b(?:(?!^class ).)*?self\.version = \[(.*?)\]", re.M | re.S)
NO_NPU = "no Ascend NPU and none of its software here: the model runs on CPU, in float32"


def order(version: str) -> tuple[int, ...]:
    """A key that sorts versions: "24.1.RC3" before "24.1.0" before "25.0.RC1"."""
    main, _, rest = version.lower().partition("rc")
    head = tuple(map(int, re.findall(r"\d+", main)))
    if rest:
        return (*head[:2], 0, *map(int, re.findall(r"^\d+", rest)))
    return (*head[:2], 1, *head[2:])


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version of CANN or of the driver: "8.3.RC1" -> (8, 3)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))


def is_present(options: Options) -> bool:
    """Whether anything says that this machine has, or should have, an NPU."""
    named = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    return bool(device_files() or shutil.which("npu-smi") or Path(options.ascend_root).exists() or named)


def device_files() -> list[Path]:
    """/dev/davinci0 and so on."""
    return sorted(Path("/dev").glob("davinci[0-9]*"))


def software(options: Options) -> Findings:
    """Findings on driver, firmware and CANN. Versions that nobody has tried together are warnings: whether MindSpore computes here
    is another check.
    """
    if not is_present(options):
        yield note(NO_NPU)
        return
    yield _driver(Path(options.ascend_root))
    firmware = field(Path(options.ascend_root) / "firmware" / "version.info")[0]
    yield ok(f"firmware {firmware}") if firmware else note("the firmware's version file is missing; npu-smi may tell")
    yield from _cann(options)


def mindspore_version() -> str:
    """Of the installed package, or "none"."""
    try:
        return metadata.version("mindspore")
    except metadata.PackageNotFoundError:
        return "none"


def accepted_cann() -> tuple[str, ...]:
    """The versions of CANN that the installed MindSpore names as its own, such as ("8.2", "8.3"); () where it names none.

    It warns about others. They stand in its source, which is read here, since it cannot be asked without being started.
    """
    spec = importlib.util.find_spec("mindspore")
    for folder in (spec and spec.submodule_search_locations) or ():
        with contextlib.suppress(OSError, ValueError):
            source = (Path(folder) / "run_check" / "_check_version.py").read_text(encoding="utf-8")
            named = VERSIONS.search(source)
            if named:
                return tuple(re.findall(r"[\d.]+", named[1]))
    return ()


def _driver(root: Path) -> Finding:
    found, problem = field(root / "driver" / "version.info")
    if found is None:
        return warning(
            f"the NPU driver's version cannot be read: {problem}",
            f"install driver {OLDEST_DRIVER} or newer ({INSTALL}); in a container, mount {root}/driver into it",
        )
    if order(found) < order(OLDEST_DRIVER):
        return warning(
            f"NPU driver {found} is older than {OLDEST_DRIVER}, the oldest that is known to go with MindSpore 2.7.1",
            f"install driver {OLDEST_DRIVER} or newer and its firmware, then restart the machine",
        )
    return ok(f"driver {found}")


def _cann(options: Options) -> Findings:
    homes, known = toolkit_folders(Path(options.ascend_root)), " or ".join(accepted_cann())
    wanted = f"install CANN {known or 'as MindSpore asks for'} (toolkit and kernels; {INSTALL}) and 'source .../set_env.sh'"
    home = next((home for home in homes if home.exists()), None)
    if home is None:
        yield error(f"CANN is not found in {' or '.join(map(str, homes))}", wanted)
        return
    versions, problem = cann_versions(home)
    shown = f"CANN {' = '.join(dict.fromkeys(versions))} in {home}"
    if not versions:
        yield warning(f"CANN's version cannot be read: {problem}", wanted)
    elif not known:
        yield warning(f"{shown}; the installed MindSpore does not say which CANN it was made for", f"compare with {INSTALL}")
    elif not {".".join(map(str, numbers(version)[:2])) for version in versions} & set(accepted_cann()):
        yield warning(f"{shown}; MindSpore {mindspore_version()} was made for {known}", f"if something fails, {wanted}")
    else:
        yield ok(shown)
    if not os.environ.get("ASCEND_OPP_PATH"):
        yield error("the environment of CANN is not set (ASCEND_OPP_PATH is empty)", f"source {home.parent}/set_env.sh")


def devices(options: Options) -> Findings:
    """Findings on the NPUs: files, permissions, what npu-smi says about each, free memory."""
    if not is_present(options):
        yield ok(f"CPU, {os.cpu_count()} cores")
        return
    files = device_files()
    shut = [file for file in files if not os.access(file, os.R_OK | os.W_OK)]
    if shut:
        yield error(f"{shut[0]} may not be opened by this user", "add the user to the group HwHiAiUser and log in again")
    if not files:
        yield error(
            "there is no /dev/davinci*: the driver sees no NPU, or this container was given none",
            "check 'npu-smi info' on the host; pass --device /dev/davinci0 ... to the container",
        )
    if shutil.which("npu-smi") is None:
        yield warning(
            "npu-smi is not on PATH, so nothing more is known about the NPUs",
            f"add {options.ascend_root}/driver/tools or /usr/local/bin to PATH",
        )
        return
    listing, problem = _npu_smi("-l")
    if problem:
        yield error(f"npu-smi info -l {problem}", "see dmesg and the driver's log in /var/log/npu; restart the machine")
        return
    for npu in _values(listing, "NPU ID"):
        yield _npu(npu)


def _npu(npu: str) -> Finding:
    board, problem = _npu_smi("-t", "board", "-i", npu)
    if problem:
        return error(f"NPU {npu}: npu-smi {problem}", "see 'npu-smi info'; another process may hold the NPU")
    versions = ", ".join(
        f"{name.lower()} {value}" for name in ("Software Version", "Firmware Version") for value in _values(board, name)[:1]
    )
    if _values(board, "Compatibility")[:1] == ["NOK"]:
        return error(
            f"NPU {npu}: driver and firmware do not go together ({versions})",
            "install the firmware of the same release as the driver and restart the machine",
        )
    usage, problem = _npu_smi("-t", "usages", "-i", npu)
    sizes, rates = _values(usage, "HBM Capacity(MB)"), _values(usage, "HBM Usage Rate(%)")
    if problem or not sizes or not rates:
        return note(f"NPU {npu}: {versions}; its free memory is unknown")
    free = float(sizes[0]) * (1 - float(rates[0]) / 100) / 1e3
    return ok(f"NPU {npu}: {versions}, {free:.1f} of {float(sizes[0]) / 1e3:.1f} GB free")


def _npu_smi(*arguments: str) -> tuple[str, str | None]:
    """(output, None) of `npu-smi info ...`, or ("", what went wrong)."""
    try:
        done = subprocess.run(["npu-smi", "info", *arguments], capture_output=True, text=True, timeout=SMI_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as reason:
        return "", "did not answer" if isinstance(reason, subprocess.TimeoutExpired) else f"cannot be run: {reason}"
    return (done.stdout, None) if done.returncode == 0 else ("", f"fails: {one_line(done.stdout + done.stderr, 120)}")


def _values(text: str, name: str) -> list[str]:
    """Of the lines `name : value`."""
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for key, _, value in pairs if key.strip().lower() == name.lower()]


def mindspore_computes(_: Any) -> Findings:
    """Findings on an import of MindSpore, the device that it took, and one sum."""
    try:
        import mindspore
    except Exception as reason:  # anything from ImportError to errors of the dynamic linker
        numpy = "numpy" in str(reason).lower() or "_ARRAY_API" in str(reason)
        do = "pip install 'numpy<2'" if numpy else "pip install --force-reinstall mindspore==2.7.1"
        yield error(f"MindSpore cannot be imported: {type(reason).__name__}: {one_line(reason)}", do)
        return
    device = mindspore.get_context("device_target")
    found, where = getattr(mindspore, "__version__", "without a version"), getattr(mindspore, "__file__", None)
    installed = metadata.version("mindspore")
    if found != installed:
        yield error(
            f"the MindSpore that is imported is {found} ({where}), the installed one {installed}",
            "remove that folder from PYTHONPATH or from the current folder",
        )
        return
    if device == "CPU" and device_files():
        yield error(
            "MindSpore computes on CPU although there is an NPU: it could not load its Ascend library",
            "source CANN's set_env.sh and import mindspore again; its warnings name the library that is missing",
        )
    one = mindspore.Tensor(np.ones(4, np.float32))
    if not np.array_equal((one + one).asnumpy(), np.full(4, 2, np.float32)):
        yield error(f"MindSpore {found} computes 1 + 1 wrongly on {device}", "reinstall mindspore and CANN")
        return
    yield ok(f"MindSpore {found} computes on {device}")
