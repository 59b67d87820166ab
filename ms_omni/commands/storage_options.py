"""Arguments of the commands that load a model: how its weights are stored in memory."""

from ..load_arguments import check_quantize

STORAGE = ("quantize", "quantize_group", "quantize_embeddings")


def add_storage(parser):
    """A parser or a group of one."""
    parser.add_argument(
        "--quantize", choices=("int8", "int4"), help="round most matrices while they are read (docs/quantisation.md)"
    )
    parser.add_argument(
        "--quantize-group",
        type=int,
        metavar="N",
        help="inputs that share a scale, 128, 64 or 32 (only with --quantize int4)",
    )
    parser.add_argument(
        "--quantize-embeddings", action="store_true", help="the table of tokens too, in 8 bits (only with --quantize)"
    )


def storage_arguments(arguments):
    """The arguments of `from_pretrained`, checked. Raises `InputError`."""
    chosen = {name: getattr(arguments, name) for name in STORAGE}
    check_quantize(*chosen.values())
    return chosen
