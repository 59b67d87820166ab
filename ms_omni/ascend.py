"""What is particular to Ascend and can be asked without MindSpore: the codes that its kernels multiply with, and installed versions.

    matrices            aclnnWeightQuantBatchMatmulV2   8 or 4 bits; a scale per output, or per group of inputs with any offsets
    stacks of experts   aclnnGroupedMatmulV4            8 bits: a scale per output; 4 bits: also per group, then without offsets

Read in CANN's pages of these kernels for Atlas A2 and A3, which MindSpore passes the arguments on to. Whatever else is stored is
bfloat16 on the card.

Where versions stand (CANN software installation guide, "Querying the Software Package Version"):
    driver     ROOT/driver/version.info, `Version=`             ROOT: /usr/local/Ascend
    firmware   ROOT/firmware/version.info, `Version=`
    CANN       TOOLKIT/<arch>-linux/ascend_toolkit_install.info, `version=`; TOOLKIT: $ASCEND_HOME_PATH or
               ROOT/ascend-toolkit/latest (ROOT/cann from 8.5 on); else TOOLKIT/compiler/version.info, as MindSpore reads it
"""

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .quantised import Storage

MOST = 65535  # outputs of one product of a matrix; more are several products
LINE_BYTES = 32  # that rows and columns of a matrix have to fill
DTYPE = "bfloat16"


def refusal(storage: Storage, shape: tuple[int, ...]) -> str | None:
    """Why no kernel multiplies with codes of a matrix `[out, in]`, or of stacked ones `[E, out, in]`; None where one does."""
    *experts, outputs, inputs = shape
    group = inputs if storage.group is None else storage.group
    in_groups = group != inputs
    if not experts:
        line = LINE_BYTES * 8 // storage.bits
        if outputs % line or inputs % LINE_BYTES:
            return f"CANN multiplies with matrices of {storage.bits} bits whose outputs are a multiple of {line} and inputs of {LINE_BYTES}"
        if in_groups and group % 32:
            return "CANN has groups of multiples of 32 inputs"
    elif in_groups and storage.bits == 8:
        return "CANN multiplies with experts of 8 bits that have one scale per output, not per group"
    elif in_groups and storage.offset is not None:
        return "CANN multiplies with experts of 4 bits in groups that have no offsets (zero points)"
    elif storage.bits == 4 and outputs % 2:
        return "CANN multiplies with experts of 4 bits that have an even number of outputs"
    return None


def launches(outputs: int) -> int:
    """Of the product with a matrix of codes of so many outputs: one, or of several pieces that are put together."""
    pieces = -(-outputs // MOST)
    return 1 if pieces == 1 else pieces + 1


def on_card(storage: Storage, shape: tuple[int, ...]) -> Storage | None:
    """What a matrix that is stored so is on a card: codes with scales in what is computed in, or None for numbers of that.

    Args:
        shape: of the matrix, `[out, in]`, or `[E, out, in]` of experts.
    """
    if refusal(storage, shape) is not None:
        return None
    return replace(storage, scale=DTYPE, offset=DTYPE if storage.offset is not None else None)


def kept_whole(storages: Mapping[str, Storage], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """`{reason: [names]}` of the matrices that are no codes on a card. shapes: of the matrices, `[..., out, in]`."""
    found: dict[str, list[str]] = {}
    for name, storage in storages.items():
        reason = refusal(storage, shapes[name])
        if reason is not None:
            found.setdefault(reason, []).append(name)
    return found


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
