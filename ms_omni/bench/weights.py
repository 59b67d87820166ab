"""The weights that are measured: a checkpoint that is there, or seeded ones of a named geometry."""

from pathlib import Path

from ..checkpoint import inspect_checkpoint
from ..config import named_configurations
from ..errors import InputError

FILES = ("model.safetensors", "model.safetensors.index.json")


def weights_of(geometry, folder, seed, say=lambda text: None, may_write=True):
    """Folder of the weights of `geometry` (see `--geometry`); writes them below `folder` unless they stand there.

    Raises `InputError` for a name that is neither a geometry nor a folder, and for weights that are not there when
    `may_write` is False.
    """
    if geometry not in named_configurations():
        path = Path(geometry)
        if not (path / "config.json").is_file():
            raise InputError(
                f"--geometry {geometry}: this is neither a folder with a config.json nor one of "
                f"{', '.join(named_configurations())}"
            )
        if any((path / name).is_file() for name in FILES):
            return path
    target = folder / f"{Path(geometry).name}-seed{seed}"
    if not (target / "config.json").is_file():
        if not may_write:
            raise InputError(
                f"several processes do not write weights: run 'ms-omni tiny DIR --geometry {geometry}' first and "
                "pass that folder as --geometry DIR"
            )
        from ..tiny import write_tiny_checkpoint

        say(f"writing weights to {target}")
        write_tiny_checkpoint(target, geometry=geometry, seed=seed)
    return target


def parameters_of(folder):
    """Number of parameters, as one says it: "0.99 billion"."""
    elements = inspect_checkpoint(folder).elements
    return f"{elements / 1e9:.2f} billion" if elements >= 1e8 else f"{elements / 1e6:.1f} million"
