"""The cells of Qwen3-Omni. They import MindSpore, numpy and each other; files and processes are handled elsewhere."""

BUCKET_TOKENS = 256
"""Caches grow by this many tokens. Defined here, to be read without MindSpore."""
BLOCK_TOKENS = 128
"""Positions per block of the engine's pool of keys and values."""
