"""Whether the weights of a model, and the operators, are still those that something was computed with."""

from collections.abc import Iterable
from typing import Any

from ..modeling import ops
from ..modeling.encoder import Encoder
from ..modeling.ops import dispatch


class Weights:
    """Those of some cells as they are now, where they are used (see `ops.place`); whatever packs them is prepared before.

    `changed` notices cells and parameters that were exchanged, values that were set, and training; not a value that was assigned
    in its place, of which nothing is to be seen.
    """

    def __init__(self, cells: Iterable[Any]):
        cells, self.tables = list(cells), []
        while cells:
            cell = cells.pop()
            if isinstance(cell, Encoder):
                cell.ready()
            self.tables += [cell._params, cell._cells]
            cells += [part for part in cell._cells.values() if part is not None]
        self.parts = [part for table in self.tables for part in table.values()]  # held, so that their ids stay theirs
        self.parameters = [part for table in self.tables[::2] for part in table.values() if part is not None]
        ops.place(self.parameters)
        self.state = self._state()

    def changed(self) -> bool:
        """Whether they are others by now."""
        return self._state() != self.state

    def _state(self):
        ids = [id(part) for table in self.tables for part in table.values()]
        return ids, [parameter.data_ptr() for parameter in self.parameters], ops.Recorded.calls, dispatch.implementation()
