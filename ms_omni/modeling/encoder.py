"""What the encoders of pictures and sound share: layers in a row and projectors, fused where an implementation can."""

from collections.abc import Container, Iterator
from typing import Any

from mindspore import Tensor, nn

from . import ops
from .layer import Cell, CellsOnly, has_hooks
from .layers import LayerNorm, Linear
from .ops.fused import EncoderWeights, ProjectorWeights


class Projector(Cell):
    """projection: what the fused operator works on; it is made of the parameters and no part of the model."""

    projection: Any = None

    def project(self, x: Tensor, width: int, norm: Cell, fc1: Cell, activation: Any, fc2: Cell) -> Tensor:
        """`fc2(activation(fc1(norm(x))))`: x `[N, D]`, of which fc1 takes `width` numbers at a time -> `[N * D / width, out]`."""
        self.projection = self._prepare_projection(norm, fc1, activation, fc2)
        if self.projection and self.projection.inputs == width and self.projection.norm_width == x.shape[-1]:
            return ops.projector(x, self.projection)
        return fc2(activation(fc1(norm(x).reshape(-1, width))))

    def _prepare_projection(self, norm, fc1, activation, fc2):
        if ops.recording() or isinstance(activation, nn.Cell) or any(map(has_hooks, (norm, fc1, fc2))):
            return None
        try:
            (norm_weights,), (up, down) = stored(LayerNorm, norm), stored(Linear, fc1, fc2)
        except CellsOnly:
            return None
        return ops.prepare(ProjectorWeights(norm_weights, up, down, norm.eps, activation), self.projection)


class Encoder(Projector):
    """prepared: what the fused operator works on; it is made of the parameters and no part of the model. stacked: the layers."""

    prepared: Any = None
    layers: Any

    def ready(self) -> None:
        """Packs the weights before they are used, where there is the fused operator."""
        self.prepared = self._prepare(self.stacked)

    @property
    def stacked(self) -> Any:
        return self.layers

    def states(
        self,
        x: Tensor,
        segments: tuple[tuple[int, int], ...],
        rope: ops.Pair | None = None,
        wanted: Container[int] | None = None,
    ) -> Iterator[Tensor]:
        """Yields x `[N, D]` (number 0), and what each of the layers makes of it (1, 2, ...), in turn. rope: where they take one; wanted:
        the numbers of those that are yielded, None for all.
        """
        layers = self.stacked
        wanted = range(len(layers) + 1) if wanted is None else wanted
        self.ready()
        if self.prepared:
            yield from ops.encoder_states(x, segments, rope, self.prepared, wanted)
            return
        for number, layer in enumerate(layers):
            if number in wanted:
                yield x
            x = layer(x, segments) if rope is None else layer(x, segments, rope)
        if len(layers) in wanted:
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


def check_kind(kind: type[Cell], *cells: Any) -> None:
    """Raises `CellsOnly` where something of another kind has replaced one of these cells."""
    if any(type(cell) is not kind for cell in cells):
        raise CellsOnly


def stored(kind: type[Cell], *cells: Any) -> tuple:
    """(weight, bias) of each of these cells, all of this kind. Raises `CellsOnly`."""
    check_kind(kind, *cells)
    return tuple(cell.stored() for cell in cells)
