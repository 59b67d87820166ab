"""The commands of `ms-omni`, those of one kind in a module; `ms_omni.cli` lists them."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import NamedTuple


class Command(NamedTuple):
    """One command: its name, what `--help` says of it, its arguments, and what runs it and returns an exit code (None: 0)."""

    name: str
    help: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int | None]
