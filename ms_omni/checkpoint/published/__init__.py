"""Quantised checkpoints that others publish: which tool wrote one, and its tensors in our terms.

AutoRound and GPTQ, AWQ, compressed-tensors (llm-compressor), FP8, msModelSlim, MLX; see the file of each layout.
"""

from .methods import dtype_of, layout_of
from .reader import PublishedReader

__all__ = ["PublishedReader", "dtype_of", "layout_of"]
