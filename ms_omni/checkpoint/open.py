"""Opening a checkpoint folder with the reader that its config.json asks for: of plain tensors, or of codes with scales.

A reader of codes shows the matrices that they stand for. Beside what a `CheckpointReader` has (`entries`, `array`, `release`) it tells
how a tensor is stored: `storage(name)`, a `Storage` or None, and gives `codes(name)`, a `Quantised` of arrays `[..., out, in]`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from ms_omni.config import CONFIG_FILE, read_config_json
from ms_omni.errors import ConfigError
from ms_omni.hub import resolve

from .quantised_reader import QuantisedReader
from .reader import CheckpointReader
from .storage import METHOD

READERS = {METHOD: QuantisedReader}
"""By the `quant_method` of config.json's `quantization_config`."""


def reader_of(folder: str | Path) -> Callable[..., CheckpointReader]:
    """What reads a folder, by its config.json alone. Raises `ConfigError` for weights that are quantised by a method that nobody reads."""
    if not (Path(folder) / CONFIG_FILE).is_file():
        return CheckpointReader
    content, path = read_config_json(folder)
    found = content.get("quantization_config")
    if not found:
        return CheckpointReader
    method = found.get("quant_method") if isinstance(found, Mapping) else found
    if not isinstance(method, str) or method not in READERS:
        raise ConfigError(
            f"{path}: the weights are quantised by {method!r:.60}, which is not read here; known are {', '.join(READERS)}. Take the "
            "checkpoint that it was made from."
        )
    return READERS[method]


def open_checkpoint(
    folder: str | Path, variant: str | None = None, renames: dict[str, str] | None = None
) -> CheckpointReader:
    """The reader of a folder; see `CheckpointReader` for the arguments and for what is raised, and `reader_of`."""
    folder = resolve(folder)
    return reader_of(folder)(folder, variant, renames)
