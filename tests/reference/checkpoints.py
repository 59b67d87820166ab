"""The tiny checkpoints that recorded values belong to: `python -m tests.reference.checkpoints GEOMETRY FOLDER`."""

import sys
from pathlib import Path

GEOMETRIES = ("tiny", "odd")
SEED = 20


def write(geometry: str, folder: Path):
    """Seeded float32 weights, configuration and tokenizer in the published format; `folder` must be new."""
    from ms_omni.tiny import write_tiny_checkpoint

    write_tiny_checkpoint(folder, geometry=geometry, seed=SEED, dtype="float32")


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
