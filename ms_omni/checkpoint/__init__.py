"""Checkpoints: the rule table of names, lazy reading, loading, conversion and back, inspection."""

from .convert import ConvertReport, convert
from .inspect import Summary, inspect_checkpoint
from .load import LoadReport, load_checkpoint
from .names import RULES, place, sources
from .rank_files import load_rank_file, read_rank_index
from .reader import CheckpointReader
from .save import save_checkpoint

__all__ = [
    "RULES",
    "CheckpointReader",
    "ConvertReport",
    "LoadReport",
    "Summary",
    "convert",
    "inspect_checkpoint",
    "load_checkpoint",
    "load_rank_file",
    "place",
    "read_rank_index",
    "save_checkpoint",
    "sources",
]
