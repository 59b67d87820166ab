"""Several processes: start-up, the collectives, and the plans that spread a model over cards."""

from typing import Any

from .mesh import Mesh, init_process_group, start
from .plan import Placement, Plan, Row, Slice

__all__ = ["Mesh", "Placement", "Plan", "Row", "Slice", "init_process_group", "prepare_network", "start"]


def __getattr__(name: str) -> Any:
    if name == "prepare_network":  # the only name here that needs MindSpore to be imported
        from .zero3 import prepare_network

        return prepare_network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
