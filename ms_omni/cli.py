"""The `ms-omni` command: arguments, exit codes, one line per error. The work is done in `ms_omni.commands`.

Exit codes: 0 done, 1 the input could not be used (one line says why), 2 wrong usage, 130 interrupted.
"""

import argparse
import os
import sys

from . import __version__
from .commands import batch, bench, chat, convert, demo, doctor, download, generate, inspect, launch, plan, say, serve, tiny
from .errors import OmniError
from .parallel import watch

COMMANDS = (demo, generate, say, chat, serve, batch, download, launch, plan, convert, inspect, tiny, bench, doctor)


def build_parser():
    """The parser of the whole command line, one sub-parser per module of `COMMANDS`."""
    parser = argparse.ArgumentParser(
        prog="ms-omni",
        description="Qwen3-Omni on MindSpore: text, images, audio and video in; text and 24 kHz speech out.",
        epilog="Try it without a download: ms-omni demo",
    )
    parser.add_argument("--version", action="version", version=f"ms-omni {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv=None):
    """Runs one command and returns its exit code."""
    arguments = build_parser().parse_args(argv)
    # MindSpore logs what an interruption left unfinished inside it; what fails is raised as an exception as well.
    os.environ.setdefault("GLOG_v", "4")
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print("ms-omni: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OmniError, ImportError, OSError, ValueError) as error:
        print(f"ms-omni: error: {error}", file=sys.stderr)
        watch.fail()
        return 1


if __name__ == "__main__":
    sys.exit(main())
