"""`ms-omni convert`: published checkpoint to the MindSpore-side form, or back; or cut for ranks, and whole again."""

from pathlib import Path

NAME = "convert"
HELP = (
    "Convert a published checkpoint to MindSpore's parameters (experts stacked), or such a folder back, bit by bit; "
    "with --shards N, write one file for each of N ranks, which they map when they start."
)
PLANS = ("ep", "zero3")


def add_arguments(parser):
    parser.add_argument("source", metavar="DIR|NAME", help="checkpoint folder, in any form, or a name on a hub")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; it must not exist or be empty")
    parser.add_argument("--shards", type=int, metavar="N", help="cut for N ranks, in the dtype that they compute in")
    parser.add_argument("--plan", choices=PLANS, help="which rank holds what (default: ep; only with --shards)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the ranks' files (default: the device's own; only with --shards)",
    )


def run(arguments):
    report = _convert(arguments)
    print(f"wrote {report.tensors:,} tensors ({report.nbytes:,} bytes) in {report.form} form to {arguments.out}")


def _convert(arguments):
    from ..checkpoint import convert, read_rank_index
    from ..errors import InputError

    if arguments.shards is not None:
        from ..parallel.export import convert_for_ranks

        return convert_for_ranks(
            arguments.source, arguments.out, arguments.shards, arguments.plan or PLANS[0], dtype=arguments.dtype
        )
    if arguments.plan or arguments.dtype:
        raise InputError("--plan and --dtype are for files of several ranks; say how many with --shards N")
    if read_rank_index(arguments.source) is not None:
        from ..parallel.export import convert_from_ranks

        return convert_from_ranks(arguments.source, arguments.out)
    return convert(arguments.source, arguments.out)
