"""A checkpoint whose matrices are rounded to codes while they are read, one published matrix after the other."""

import re

import numpy as np

from ms_omni import __version__
from ms_omni.errors import CheckpointError, InputError
from ms_omni.quantised import BLOCK, Quantised, Storage

from .parameters import gather
from .plan import file_root
from .rounding import rounded
from .scaling import Observed, Scaled
from .storage import ASKED, Scheme, matrix_shape, row_of, scheme

ROUNDING = "to nearest, scales searched for the smallest squared error"


class Quantising:
    """Shows a reader of published names as one whose matrices are stored as codes; `array` is not for those.

    Args:
        reader: of numbers, in published names.
        quantize, group, embeddings: see `scheme`.
        observed: what the matrices get to see; then their inputs are scaled before, see `scaling.py`.

    Raises:
        CheckpointError: the reader does not fit Qwen3-Omni.
        InputError: see `scheme`.
    """

    is_converted = False

    def __init__(
        self, reader, quantize: str, group: int | None = None, embeddings: bool = False, observed: Observed | None = None
    ):
        self.reader, self.folder, self.entries = reader, reader.folder, reader.entries
        self.scaled: Scaled | None = None
        root, fills = file_root(reader.entries), gather(reader)
        shapes = {root + fill.parameter: fill.shape for fill in fills}
        self.scheme: Scheme = scheme(shapes, quantize, group, embeddings)
        storages = self.scheme.storages(shapes)
        self.storages: dict[str, Storage] = {
            stored: storages[root + fill.parameter]
            for fill in fills
            if root + fill.parameter in storages
            for stored, _ in fill.parts
        }
        self.coarse = [
            name
            for name, storage in storages.items()
            if (self.scheme.bits, storage.bits) == (4, 8)
            and row_of(name).stored == ASKED
            and matrix_shape(name, shapes[name])[-1] % BLOCK
        ]  # have 8 bits although 4 were asked for

        if observed is not None:
            self.reader = self.scaled = Scaled(reader, observed.inputs, self.storages)

    def storage(self, name: str) -> Storage | None:
        """How a tensor is stored."""
        return self.storages.get(name)

    def codes(self, name: str) -> Quantised:
        """A matrix, rounded now. Raises `CheckpointError` for one that holds NaN or infinities."""
        try:
            array, storage = self.reader.array(name), self.storages[name]
            if self.scaled is None:
                return rounded(array, storage)
            return rounded(array, storage, self.scaled.importance.get(name), self.scaled.moments(name))
        except InputError as error:
            raise CheckpointError(f"{self.folder}: {name} {error}: the checkpoint is damaged; fetch it again.") from None

    def array(self, name: str) -> np.ndarray:
        """A tensor that stays as it is."""
        return self.reader.array(name)

    def release(self, name: str) -> None:
        """See `CheckpointReader`."""
        self.reader.release(name)

    def describe(self, **how) -> dict:
        """The entry `quantization_config` of config.json. how: more about how it was made."""
        return self.scheme.describe(rounding=ROUNDING, made_by=f"ms_omni {__version__}", **how)

    def notes(self) -> tuple[str, ...]:
        """What there is to say about it, in sentences."""
        group = f" in groups of {self.scheme.group}" if self.scheme.group else ""
        said = [f"int{self.scheme.bits}{group}: {len(self.storages):,} matrices"]
        if self.coarse:
            names = sorted({re.sub(r"\.layers\.\d+\.", ".layers.*.", name) for name in self.coarse})
            said.append(f"8 bits instead of 4 where {BLOCK} does not divide the number of inputs: {', '.join(names)}")
        return tuple(said)
