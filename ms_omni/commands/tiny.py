"""`ms-omni tiny`: a tiny checkpoint in the published format, to try everything with no download."""

from pathlib import Path

NAME = "tiny"
HELP = "Write a tiny checkpoint with random weights in the published format, to try everything with no download."


def add_arguments(parser):
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


def run(arguments):
    from ..tiny import write_tiny_checkpoint

    write_tiny_checkpoint(
        arguments.out,
        seed=arguments.seed,
        geometry=arguments.geometry,
        dtype=arguments.dtype,
        talker=not arguments.no_talker,
    )
    print(f"wrote a {arguments.geometry} checkpoint to {arguments.out}; its weights are random, so its answers mean nothing")
