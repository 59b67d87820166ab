"""`ms-omni convert`: published checkpoint to the MindSpore-side form, or back; quantised; with an adapter merged; cut for ranks."""

from functools import partial
from pathlib import Path

NAME = "convert"
HELP = (
    "Convert a published checkpoint to MindSpore's parameters (experts stacked), or such a folder back, bit by bit; with --quantize, "
    "to 8 or 4 bits; with --shards N, write one file for each of N ranks, which they map when they start."
)
PLANS = ("ep", "zero3")


def add_arguments(parser):
    parser.add_argument("source", metavar="DIR|NAME", help="checkpoint folder, in any form, or a name on a hub")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; it must not exist or be empty")
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="round most matrices to 8 bits per output or 4 bits in groups of inputs (docs/quantisation.md)",
    )
    parser.add_argument(
        "--group",
        type=int,
        choices=(128, 64, 32),
        help="inputs that share a scale (default: the largest that divides all matrices; only with --quantize int4)",
    )
    parser.add_argument(
        "--quantize-embeddings", action="store_true", help="the table of tokens too, in 8 bits (only with --quantize)"
    )
    parser.add_argument(
        "--calibrate",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="scale inputs by what the model gets to see while it answers these (texts, .jsonl or .json of conversations, pictures, "
        "sounds, videos), before it is rounded; the whole model is run in memory (only with --quantize)",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="merge this LoRA adapter (PEFT's layout); alone it leaves the form as it is",
    )
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
    for note in report.notes:
        print(f"  {note}")


def _convert(arguments):
    from ..checkpoint import convert, read_rank_index
    from ..checkpoint.prepare import prepared
    from ..errors import InputError

    _check(arguments, InputError)
    changes = {
        "quantize": arguments.quantize,
        "group": arguments.group,
        "embeddings": arguments.quantize_embeddings,
        "adapter": arguments.adapter,
    }
    changes["observed"] = _observed(arguments)
    if arguments.shards is not None:
        from ..parallel.export import convert_for_ranks

        return convert_for_ranks(
            arguments.source,
            arguments.out,
            arguments.shards,
            arguments.plan or PLANS[0],
            dtype=arguments.dtype,
            prepare=partial(prepared, **changes),
        )
    if read_rank_index(arguments.source) is not None:
        from ..parallel.export import convert_from_ranks

        if arguments.quantize or arguments.adapter:
            raise InputError(f"{arguments.source} is cut for ranks; convert it back first, without --quantize and --adapter")
        return convert_from_ranks(arguments.source, arguments.out)
    return convert(arguments.source, arguments.out, **changes)


def _check(arguments, InputError):
    if arguments.shards is None and (arguments.plan or arguments.dtype):
        raise InputError("--plan and --dtype are for files of several ranks; say how many with --shards N")
    if arguments.quantize is None and (arguments.group or arguments.quantize_embeddings or arguments.calibrate):
        raise InputError(
            "--group, --quantize-embeddings and --calibrate say how weights are quantised; add --quantize int8 or int4"
        )
    if arguments.calibrate and arguments.adapter:
        raise InputError(
            "what the model with the adapter sees is not known before it is merged: merge it first, then calibrate"
        )


def _observed(arguments):
    """What the model of the source sees of the files, or None. Everything else that can be wrong is found before."""
    if not arguments.calibrate:
        return None
    from ..calibration import observe
    from ..checkpoint.open import open_checkpoint
    from ..checkpoint.prepare import prepared
    from .messages import clear_status, status

    prepared(open_checkpoint(arguments.source), arguments.quantize, arguments.group)
    try:
        return observe(arguments.source, arguments.calibrate, status)
    finally:
        clear_status()
