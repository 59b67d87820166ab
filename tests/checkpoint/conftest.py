"""Checkpoints to read, to damage and to convert."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ms_omni.checkpoint import CheckpointReader
from ms_omni.checkpoint.safetensors import DTYPES, INDEX_FILE, Pending, dtype_name, write_shards


@pytest.fixture(scope="session")
def sharded(tmp_path_factory) -> Path:
    """A tiny checkpoint in bfloat16 with three shards. Tests must not change it."""
    from ms_omni.tiny import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("sharded") / "checkpoint"
    write_tiny_checkpoint(folder, seed=3, shards=3)
    return folder


@pytest.fixture
def damaged(sharded, tmp_path) -> Path:
    """A copy of it for a test to damage."""
    return Path(shutil.copytree(sharded, tmp_path / "checkpoint"))


def tensors_of(folder) -> dict[str, np.ndarray]:
    reader = CheckpointReader(folder)
    return {name: np.array(reader.array(name)) for name in reader.entries}


def rewrite(folder: Path, tensors: dict[str, np.ndarray], metadata=None, shards=1) -> None:
    """Replace the weights of `folder`."""
    for path in [*folder.glob("*.safetensors"), *folder.glob(INDEX_FILE)]:
        path.unlink()
    pending = [
        Pending(name, dtype_name(value.dtype), value.shape, lambda value=value: value) for name, value in tensors.items()
    ]
    write_shards(folder, pending, metadata or {"format": "pt"}, shards=shards)


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def edit_header(path: Path, change) -> None:
    """Change a weight file's JSON header and keep its data."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def lazy(cell_class, config):
    from mindspore.nn.utils import no_init_parameters

    with no_init_parameters():
        return cell_class(config)


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


__all__ = ["DTYPES", "bits", "edit_header", "edit_json", "lazy", "rewrite", "tensors_of"]
