"""Checkpoints: the rule table of names, lazy reading, loading, conversion and back, inspection."""

from .convert import ConvertReport, convert, save_checkpoint
from .inspect import Summary, inspect_checkpoint
from .load import LoadReport, load_checkpoint
from .names import RULES, place, sources
from .reader import CheckpointReader

__all__ = [
    "CheckpointReader",
    "ConvertReport",
    "LoadReport",
    "RULES",
    "Summary",
    "convert",
    "inspect_checkpoint",
    "load_checkpoint",
    "place",
    "save_checkpoint",
    "sources",
]
