"""Commands around checkpoint folders: `ms-omni download` by name; `convert` to MindSpore's parameters and back, quantised, with an
adapter merged, cut for ranks; `inspect`; `tiny`, a small one to try everything with.
"""

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..hub import fetch
from ..hub.names import HUBS, is_name, missing_folder
from . import Command
from .options import clear_status, status

PLANS = ("ep", "zero3")


def add_download_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", help="OWNER/NAME, such as Qwen/Qwen3-Omni-30B-A3B-Instruct (about 70 GB)")
    parser.add_argument("--local-dir", type=Path, metavar="DIR", help="folder for the files (default: the hub's cache)")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit (default: the hub's own)")
    parser.add_argument("--hub", choices=HUBS, help="where from (default: MS_OMNI_HUB, else huggingface)")


def run_download(arguments: Namespace) -> None:
    from ..config import Qwen3OmniMoeConfig, Qwen3OmniMoeThinkerConfig, read_config_json

    def check(folder: Path) -> None:
        kind = Qwen3OmniMoeConfig if "thinker_config" in read_config_json(folder)[0] else Qwen3OmniMoeThinkerConfig
        kind.from_pretrained(folder)

    if Path(arguments.name).expanduser().is_dir():
        raise InputError(f"{arguments.name} is a folder on this machine already; nothing to download")
    if not is_name(arguments.name):
        raise missing_folder(arguments.name)
    print(fetch(arguments.name, local_dir=arguments.local_dir, revision=arguments.revision, hub=arguments.hub, check=check))


def add_convert_arguments(parser: ArgumentParser) -> None:
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


def run_convert(arguments: Namespace) -> None:
    report = _convert(arguments)
    print(f"wrote {report.tensors:,} tensors ({report.nbytes:,} bytes) in {report.form} form to {arguments.out}")
    for note in report.notes:
        print(f"  {note}")


def _convert(arguments: Namespace) -> Any:
    from ..checkpoint import convert, read_rank_index
    from ..checkpoint.convert import prepared

    _check_conversion(arguments)
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


def _check_conversion(arguments: Namespace) -> None:
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


def _observed(arguments: Namespace) -> Any:
    """What the model of the source sees of the files, or None. Everything else that can be wrong is found before."""
    if not arguments.calibrate:
        return None
    from ..calibration import observe
    from ..checkpoint.convert import prepared
    from ..checkpoint.open import open_checkpoint

    prepared(open_checkpoint(arguments.source), arguments.quantize, arguments.group)
    try:
        return observe(arguments.source, arguments.calibrate, status)
    finally:
        clear_status()


def add_inspect_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR|NAME", help="checkpoint folder, in either form, or a name on a hub")


def run_inspect(arguments: Namespace) -> int:
    from ..checkpoint import inspect_checkpoint

    summary = inspect_checkpoint(arguments.folder)
    print(summary.table())
    return 1 if summary.unmatched else 0


def add_tiny_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; it must not exist or be empty")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    parser.add_argument(
        "--geometry",
        default="tiny",
        metavar="NAME|DIR",
        help="a configuration in configs/, such as tiny, mini, mid, published, or a folder with a "
        "config.json (default: tiny)",
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"), help="stored dtype")
    parser.add_argument("--no-talker", action="store_true", help="leave talker and vocoder out, as in Thinking")


def run_tiny(arguments: Namespace) -> None:
    from ..tiny import write_tiny_checkpoint

    write_tiny_checkpoint(
        arguments.out,
        seed=arguments.seed,
        geometry=arguments.geometry,
        dtype=arguments.dtype,
        talker=not arguments.no_talker,
    )
    print(f"wrote a {arguments.geometry} checkpoint to {arguments.out}; its weights are random, so its answers mean nothing")


DOWNLOAD = Command(
    "download",
    "Download a model from a hub, by its name; what broke off is continued.",
    add_download_arguments,
    run_download,
)
CONVERT = Command(
    "convert",
    "Convert a published checkpoint to MindSpore's parameters (experts stacked), or such a folder back, bit by bit; with --quantize, "
    "to 8 or 4 bits; with --shards N, write one file for each of N ranks, which they map when they start.",
    add_convert_arguments,
    run_convert,
)
INSPECT = Command(
    "inspect",
    "Show parameters and bytes of a checkpoint by part, and tensor names that do not belong to the model.",
    add_inspect_arguments,
    run_inspect,
)
TINY = Command(
    "tiny",
    "Write a tiny checkpoint with random weights in the published format, to try everything with no download.",
    add_tiny_arguments,
    run_tiny,
)
