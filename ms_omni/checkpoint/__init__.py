"""Checkpoints: the rule table of names, lazy reading, loading, conversion and back, inspection."""

from .convert import ConvertReport, convert, save_checkpoint
from .inspect import Summary, inspect_checkpoint
from .load import LoadReport, load_checkpoint
from .names import RULES, place, sources
from .rank_files import load_rank_file
from .rank_index import read_rank_index
from .reader import CheckpointReader

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
