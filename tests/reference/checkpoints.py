"""The tiny checkpoints that recorded values belong to: `python -m tests.reference.checkpoints GEOMETRY FOLDER`."""

import sys
from pathlib import Path

GEOMETRIES = ("tiny", "odd")
SEED = 20


def write(geometry: str, folder: Path):
    """Seeded float32 weights, configuration and tokenizer in the published format; `folder` must be new."""
    from ms_omni.config import load_named_config
    from ms_omni.tiny import write_tiny_checkpoint

    config = load_named_config(geometry).to_dict()
    if geometry == "odd":
        # The reference counts 13 tokens per chunk whatever n_window says, so it can compute with 50 only. 300 mel
        # frames per attention window: an 11 s clip has four of them.
        config["thinker_config"]["audio_config"]["n_window"] = 50
        config["thinker_config"]["audio_config"]["n_window_infer"] = 300
    write_tiny_checkpoint(folder, geometry=config, seed=SEED, dtype="float32")


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
