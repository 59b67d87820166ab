"""The cells of Qwen3-Omni. They import MindSpore, numpy and each other; nothing here knows files or processes."""

BUCKET_TOKENS = 256
"""Caches grow by this many tokens; here, where it can be read without MindSpore."""
BLOCK_TOKENS = 128
"""Positions of a block of the engine's pool of keys and values."""
