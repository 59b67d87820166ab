"""The cells of Qwen3-Omni. They import MindSpore, numpy and each other; nothing here knows files or processes."""
