"""Opening a checkpoint folder with the reader that its config.json asks for: of plain tensors, or of codes with scales, ours or others'.

A reader of codes shows the matrices that they stand for. Beside what a `CheckpointReader` has (`entries`, `array`, `release`) it tells
how a tensor is stored: `storage(name)`, a `Storage` or None, and gives `codes(name)`, a `Quantised` of arrays `[..., out, in]`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ms_omni.config import CONFIG_FILE, read_config_json
from ms_omni.hub import resolve

from .published import PublishedReader, dtype_of, layout_of
from .quantised_reader import QuantisedReader
from .reader import CheckpointReader
from .storage import METHOD


def reader_of(folder: str | Path) -> Callable[..., CheckpointReader]:
    """What reads a folder, by its settings alone. Raises `CheckpointError` for weights that are quantised by a method that nobody reads."""
    folder = Path(folder)
    content = read_config_json(folder)[0] if (folder / CONFIG_FILE).is_file() else {}
    found = content.get("quantization_config")
    if isinstance(found, Mapping) and found.get("quant_method") == METHOD:
        return QuantisedReader
    layout = layout_of(folder, content)
    return CheckpointReader if layout is None else partial(PublishedReader, layout=layout, dtype=dtype_of(content))


def open_checkpoint(
    folder: str | Path, variant: str | None = None, renames: dict[str, str] | None = None
) -> CheckpointReader:
    """The reader of a folder; see `CheckpointReader` for the arguments and for what is raised, and `reader_of`."""
    folder = resolve(folder)
    return reader_of(folder)(folder, variant, renames)
