"""`ms-omni launch`: run a command in several processes, on this machine and others."""

import argparse
from pathlib import Path

NAME = "launch"
HELP = "Run a script, or `generate`, `say`, `serve` or `batch`, in one process per card, on one machine or several."


def add_arguments(parser):
    parser.add_argument("--cards", type=int, required=True, metavar="N", help="processes on this machine, one per card")
    parser.add_argument("--nodes", type=int, default=1, metavar="M", help="number of machines, N cards each (default: 1)")
    parser.add_argument("--node-rank", type=int, default=0, metavar="R", help="which machine this is, from 0 (default: 0)")
    parser.add_argument("--master-addr", default="127.0.0.1", metavar="A", help="address of machine 0")
    parser.add_argument(
        "--master-port",
        type=int,
        metavar="P",
        help="free port of machine 0 (default: one is chosen); port P + 1009 is used as well",
    )
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="folder for the logs (default: a temporary one)")
    parser.add_argument(
        "command_line",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="SCRIPT.py or a command of ms-omni, with its own arguments",
    )


def run(arguments):
    from ..parallel import launch

    command = python_command(arguments.command_line)
    return launch.run(
        launch.Job(
            command,
            arguments.cards,
            arguments.nodes,
            arguments.node_rank,
            arguments.master_addr,
            arguments.master_port,
            arguments.log_dir,
        )
    )


def python_command(words):
    """What stands after `python` to run a script or a command of ms-omni. Raises `InputError` for neither."""
    from ..errors import InputError
    from . import batch, generate, say, serve

    known = (generate.NAME, say.NAME, serve.NAME, batch.NAME)
    words = words[1:] if words[:1] == ["--"] else words
    if words and words[0] in known:
        return ("-m", "ms_omni.cli", *words)
    if words and words[0].endswith(".py"):
        if not Path(words[0]).is_file():
            raise InputError(f"there is no script {words[0]}")
        return tuple(words)
    raise InputError(
        f"ms-omni launch got {' '.join(words) or 'nothing'!r} to run, expected SCRIPT.py, {', '.join(known[:-1])} or {known[-1]}"
    )
