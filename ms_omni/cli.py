"""The `ms-omni` command: arguments, exit codes, one line per error. The work is done in `ms_omni.commands`.

Exit codes: 0 done, 1 the input could not be used (one line says why), 2 wrong usage, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__
from .commands.bench import BENCH
from .commands.chat import CHAT
from .commands.checkpoints import CONVERT, DOWNLOAD, INSPECT, TINY
from .commands.demo import DEMO
from .commands.doctor import DOCTOR
from .commands.generate import GENERATE, SAY
from .commands.plan import PLAN
from .commands.serve import BATCH, LAUNCH, SERVE
from .errors import OmniError
from .parallel import watch

COMMANDS = (DEMO, GENERATE, SAY, CHAT, SERVE, BATCH, DOWNLOAD, LAUNCH, PLAN, CONVERT, INSPECT, TINY, BENCH, DOCTOR)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, one sub-parser per command."""
    parser = argparse.ArgumentParser(
        prog="ms-omni",
        description="Qwen3-Omni on MindSpore: text, images, audio and video in; text and 24 kHz speech out.",
        epilog="Try it without a download: ms-omni demo",
    )
    parser.add_argument("--version", action="version", version=f"ms-omni {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.help, description=command.help)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = build_parser().parse_args(argv)
    # MindSpore logs its own unfinished work after an interruption; failures are raised as exceptions as well.
    os.environ.setdefault("GLOG_v", "4")
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print("ms-omni: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OmniError, ImportError, OSError, ValueError) as error:
        print(f"ms-omni: error: {error}", file=sys.stderr)
        watch.fail()
        return 1


if __name__ == "__main__":
    sys.exit(main())
