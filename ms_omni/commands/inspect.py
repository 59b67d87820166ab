"""`ms-omni inspect`: what a checkpoint folder holds."""

NAME = "inspect"
HELP = "Show parameters and bytes of a checkpoint by part, and tensor names that do not belong to the model."


def add_arguments(parser):
    parser.add_argument("folder", metavar="DIR|NAME", help="checkpoint folder, in either form, or a name on a hub")


def run(arguments):
    from ..checkpoint import inspect_checkpoint

    summary = inspect_checkpoint(arguments.folder)
    print(summary.table())
    return 1 if summary.unmatched else 0
