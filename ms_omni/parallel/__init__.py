"""Several processes: start-up and who is who. Plans that split the model over cards build on this."""

from .mesh import Mesh, start

__all__ = ["Mesh", "start"]
