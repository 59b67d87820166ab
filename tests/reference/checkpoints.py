"""The tiny checkpoints that recorded values belong to. `python -m tests.reference.checkpoints GEOMETRY FOLDER` writes one."""

import sys
from pathlib import Path

GEOMETRIES = ("tiny", "odd")
SEED = 20
