"""What the encoders of pictures and sound share: layers in a row, fused where an implementation can."""

from . import ops
from .layer import Cell, CellsOnly, has_hooks
from .ops.fused import EncoderWeights


class Encoder(Cell):
    """prepared: what the fused operator works on; it is made of the parameters and no part of the model. stacked: the layers."""

    prepared = None

    def ready(self):
        """Packs the weights before they are used, where there is the fused operator."""
        self.prepared = self._prepare(self.stacked)

    @property
    def stacked(self):
        return self.layers

    def states(self, x, segments, rope=None):
        """Yields x `[N, D]`, and what each of the layers makes of it, in turn. rope: where they take one."""
        layers = self.stacked
        self.ready()
        if self.prepared:
            yield from ops.encoder_states(x, segments, rope, self.prepared)
            return
        yield x
        for layer in layers:
            x = layer(x, segments) if rope is None else layer(x, segments, rope)
            yield x

    def _prepare(self, layers):
        """None where the layers run as they are: for a gradient or hooks, where a plan or somebody else changed them, without the operator."""
        if ops.recording() or not ops.fuses_encoders() or any(map(has_hooks, layers)):
            return None
        try:
            weights = EncoderWeights(tuple(layer.weights() for layer in layers), *layers[0].settings())
        except CellsOnly:
            return None
        return ops.prepare(weights, self.prepared)


def check_kind(kind, *cells):
    """Raises `CellsOnly` where something of another kind has taken the place of one of these cells."""
    if any(type(cell) is not kind for cell in cells):
        raise CellsOnly


def stored(kind, *cells):
    """(weight, bias) of each of these cells, all of this kind. Raises `CellsOnly`."""
    check_kind(kind, *cells)
    return tuple(cell.stored() for cell in cells)
