"""Conversations and media to arrays, by the files and settings of a checkpoint. No MindSpore, no PyTorch."""
