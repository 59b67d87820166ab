"""`ms-omni convert`: published checkpoint to the MindSpore-side form, or back."""

from pathlib import Path

NAME = "convert"
HELP = "Convert a published checkpoint to MindSpore's parameters (experts stacked), or such a folder back, bit by bit."


def add_arguments(parser):
    parser.add_argument("source", type=Path, metavar="DIR", help="checkpoint folder, in either form")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; it must not exist or be empty")


def run(arguments):
    from ..checkpoint import convert

    report = convert(arguments.source, arguments.out)
    print(f"wrote {report.tensors:,} tensors ({report.nbytes:,} bytes) in {report.form} form to {arguments.out}")
