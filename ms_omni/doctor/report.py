"""One text file of all findings, for a bug report: what was found and with which versions, but not on whose machine."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from .finding import MARKS
from .scrub import identities, is_hidden, scrub

ASKED = re.compile(r"(MS|MINDSPORE|ASCEND|HCCL|LCAL|GLOG|OMP|RANK|DEVICE)_|(RANK|CXX|LD_LIBRARY_PATH|PYTHONPATH)$")
"""Variables of the environment that may explain something."""
PACKAGES = (
    "ms-omni",
    "mindspore",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "mindone",
    "ml_dtypes",
    "te",
    "hccl",
)
HEAD = "ms-omni doctor: report without names, paths and addresses; read it before you send it"


def text_of(found, options) -> str:
    """The report. found: `[(check, findings), ...]`."""
    lines = [HEAD, "", *_machine(), "", *_environment()]
    for check, findings in found:
        lines += ["", f"[{check.name}]"]
        for finding in findings:
            lines += [f"{MARKS[finding.level]} {finding.what}", *([f"   -> {finding.do}"] if finding.do else [])]
    model = options.model and (options.model, Path(options.model).name)
    return scrub("\n".join(lines) + "\n", identities(options.ascend_root, *model or ()))


def _machine():
    kernel = re.match(r"[\d.]*", platform.release())[0]
    yield f"Python {platform.python_version()}, {platform.system()} {kernel}, {platform.machine()}"
    yield f"{_first('/proc/cpuinfo', 'model name', 'Model')}, {os.cpu_count()} cores; {_first('/etc/os-release', 'PRETTY_NAME')}"
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} none")
    yield ", ".join(versions)


def _first(path, *names):
    """The value of the first line `name: value` or `name=value` of a file."""
    try:
        pairs = [re.split(r"\s*[:=]\s*", line, maxsplit=1) for line in Path(path).read_text(errors="replace").splitlines()]
    except OSError:
        pairs = []
    return next((pair[1].strip('" ') for pair in pairs if len(pair) == 2 and pair[0] in names), "unknown")


def _environment():
    """Variables that are set, without those that only say where or who."""
    yield "environment:"
    for name in sorted(os.environ):
        if ASKED.match(name):
            yield f"  {name}={'(set)' if is_hidden(name, os.environ[name]) else os.environ[name]}"
