"""Versions of the software under MindSpore on a machine with NPUs, read without MindSpore.

Where they stand (CANN software installation guide, "Querying the Software Package Version"):
    driver     ROOT/driver/version.info, `Version=`             ROOT: /usr/local/Ascend
    firmware   ROOT/firmware/version.info, `Version=`
    CANN       TOOLKIT/<arch>-linux/ascend_toolkit_install.info, `version=`; TOOLKIT: $ASCEND_HOME_PATH or
               ROOT/ascend-toolkit/latest (ROOT/cann from 8.5 on); else TOOLKIT/compiler/version.info, as MindSpore reads it
"""

import os
import platform
import re
from pathlib import Path

ROOT = Path("/usr/local/Ascend")


def versions() -> dict[str, str]:
    """ "cann" and "driver" as they are installed, "unknown" where they cannot be read."""
    home = next((home for home in toolkit_folders(ROOT) if home.exists()), None)
    cann = cann_versions(home)[0] if home else []
    return {"cann": " = ".join(cann) or "unknown", "driver": field(ROOT / "driver" / "version.info")[0] or "unknown"}


def toolkit_folders(root: Path) -> list[Path]:
    """Where CANN may be, the most telling first."""
    named = [os.environ.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")]
    return [
        *dict.fromkeys(Path(name) for name in named if name),
        root / "ascend-toolkit" / "latest",
        root / "cann",
        root / "nnae" / "latest",
    ]


def cann_versions(home: Path) -> tuple[list[str], str | None]:
    """(versions, why there is none): of the package, and of the compiler, by which MindSpore goes; they may differ in form."""
    files = [
        home / f"{platform.machine()}-linux" / "ascend_toolkit_install.info",
        home / "ascend_nnae_install.info",
        home / "compiler" / "version.info",
    ]
    answers = [field(file) for file in files]
    return [version for version, _ in answers if version], answers[0][1]


def field(path: Path) -> tuple[str | None, str | None]:
    """(the value of `version=value` in a file, None) or (None, why there is none)."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as reason:
        return None, f"{path}: {reason.strerror or reason}"
    for line in lines:
        key, _, value = line.partition("=")
        if key.strip().lower() == "version" and re.search(r"\d", value):
            return value.strip().strip("[]"), None
    return None, f"{path} has no line 'version='"
