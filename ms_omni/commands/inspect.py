"""`ms-omni inspect`: what a checkpoint folder holds."""

from pathlib import Path

NAME = "inspect"
HELP = "Show parameters and bytes of a checkpoint by part, and tensor names that do not belong to the model."


def add_arguments(parser):
    parser.add_argument("folder", type=Path, metavar="DIR", help="checkpoint folder, in either form")


def run(arguments):
    from ..checkpoint import inspect_checkpoint

    summary = inspect_checkpoint(arguments.folder)
    print(summary.table())
    return 1 if summary.unmatched else 0
