"""`ms-omni batch`: a file of OpenAI batch requests, answered without a server."""

from pathlib import Path

from .engine_options import add_computing, add_limits, add_model, check_installed, engine_settings
from .messages import clear_status, join_others, status

NAME = "batch"
HELP = (
    "Answer a file of requests, each a line as OpenAI's batches have them. Run again after an interruption, it goes on where it was. "
    "Exit code 0: all succeeded, 1: some lines of the answers hold an error."
)


def add_arguments(parser):
    parser.add_argument(
        "requests",
        metavar="IN.jsonl",
        type=Path,
        help='lines of {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}',
    )
    parser.add_argument(
        "answers",
        metavar="OUT.jsonl",
        type=Path,
        help='lines of {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}, as they are ready',
    )
    add_model(parser)
    parser.add_argument("--overwrite", action="store_true", help="begin anew, whatever is in OUT.jsonl")
    add_limits(parser)
    add_computing(parser)


def run(arguments):
    settings = engine_settings(arguments)
    check_installed()
    from ..serve.batch_files import Answers, Requests

    status("reading requests ...")
    requests = Requests(arguments.requests)
    status("starting MindSpore ...")
    if not join_others():
        from ..serve.run import follow

        return follow(settings)
    with Answers(arguments.answers, requests, arguments.overwrite) as answers:
        from ..serve.batch import batch

        try:
            return batch(settings, requests, answers, lambda text: status(f"{text} ..."))
        finally:
            clear_status()
