"""Several processes: start-up, the collectives, and the plans that spread a model over cards."""

from .mesh import Mesh, start
from .plan import Placement, Plan, Row, Slice

__all__ = ["Mesh", "Placement", "Plan", "Row", "Slice", "start"]
