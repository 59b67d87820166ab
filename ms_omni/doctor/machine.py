"""Memory, disk, and the folders that are written to."""

import os
import shutil
import tempfile
from pathlib import Path

from ..errors import OmniError
from ..memory import free_memory_gb
from . import ascend
from .finding import error, note, ok, one_line, warning

SELF_CHECK_GB = 2.0  # memory that importing MindSpore and the tiny model take, with room
DISK_GB = 0.5  # kernels, temporary files, the tiny model
CPU_GROWTH = 1.1  # on CPU matrices lie in memory as in the files; the vocoder and other convolutions are widened to float32
PUBLISHED_GB = {"bfloat16": 70.5, "int8": 37.2, "int4": 21.1}  # `ms-omni plan --config instruct --quantize int8` and int4


def memory(options):
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
    from ..ascend_storage import kept_whole
    from ..checkpoint.choice import storages
    from ..checkpoint.open import open_checkpoint
    from ..checkpoint.plan import plan_loading
    from ..checkpoint.shapes import parameter_shapes
    from ..checkpoint.storage import matrix_shape
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


def disk(_):
    """Findings on the cache folder, where compiled kernels are kept, and the temporary folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    yield _folder(
        base / "ms_omni",
        "cache folder",
        warning,
        "kernels of the CPU cannot be kept, so each process compiles its own",
        "set XDG_CACHE_HOME to a folder that you may write to",
    )
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError as reason:
        yield error(f"there is no temporary folder: {one_line(reason)}", "set TMPDIR to a folder that you may write to")
        return
    asked = os.environ.get("TMPDIR")
    if asked and not temporary.samefile(asked if os.path.isdir(asked) else "/"):
        yield warning(
            f"TMPDIR names {asked}, which cannot be written to; {temporary} is used instead",
            "set TMPDIR to a folder that you may write to",
        )
    yield _folder(
        temporary,
        "temporary folder",
        error,
        "MindSpore and msrun need one",
        "set TMPDIR to a folder that you may write to and that has room",
    )


def _folder(path, name, level, why, do):
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
