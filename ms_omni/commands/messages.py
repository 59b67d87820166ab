"""From command line arguments to a conversation, and the arguments that several commands share."""

import argparse
import os
import sys

from ..errors import InputError
from .speech_output import SpeechOutput
from .storage_options import add_storage, storage_arguments

MEDIA = ("image", "audio", "video")


class AppendMedia(argparse.Action):
    """Keeps media of all kinds in the order in which they were given."""

    def __call__(self, parser, namespace, values, option_string=None):
        items = list(getattr(namespace, "media", None) or [])
        items.append({"type": self.dest, self.dest: values})
        namespace.media = items


def add_model_arguments(parser):
    """Which checkpoint, in which dtype, with which seed."""
    parser.add_argument(
        "--model", required=True, metavar="DIR|NAME", help="checkpoint folder, or the name of a model on a hub"
    )
    parser.add_argument("--dtype", default="auto", help="dtype to compute in (default: auto)")
    add_storage(parser)
    parser.add_argument("--no-compile", action="store_true", help="never compile the steps of generation into graphs")
    parser.add_argument("--seed", type=int, help="seed of all sampling, for repeatable answers")
    parser.add_argument(
        "--parallel",
        default="auto",
        choices=("auto", "ep", "zero3"),
        help="how the processes of `ms-omni launch` or msrun share the model (default: ep)",
    )


def add_media_arguments(parser):
    """The pictures, sounds and videos of a question, and its system message."""
    for kind in MEDIA:
        parser.add_argument(
            f"--{kind}",
            action=AppendMedia,
            default=argparse.SUPPRESS,
            metavar="F",
            help=f"{kind} to show: a file or URL; may be repeated, order is kept",
        )
    parser.add_argument("--use-audio-in-video", action="store_true", help="listen to the sound of the videos as well")
    parser.add_argument("--system", metavar="S", help="system message")


def add_speech_arguments(parser, default=None):
    """Where speech goes and how it is spoken; default: the target when none is given."""
    parser.add_argument(
        "--speech",
        metavar="OUT.wav",
        default=default,
        help="write the spoken answer here while it is produced; '-' writes raw 16-bit little-endian "
        "mono PCM at 24 kHz to standard output" + (f" (default: {default})" if default else ""),
    )
    parser.add_argument("--speaker", default="Ethan", help="voice (default: Ethan)")
    parser.add_argument("--talker-max-new-tokens", type=int, metavar="N", help="limit of codec frames, 80 ms each")
    parser.add_argument("--greedy-speech", action="store_true", help="no sampling in talker and code predictor")


def speech_options(arguments):
    """Keyword arguments of `generate` for the speech options of a command."""
    options = {"speaker": arguments.speaker}
    if arguments.talker_max_new_tokens is not None:
        options["talker_max_new_tokens"] = arguments.talker_max_new_tokens
    if arguments.greedy_speech:
        options["talker_do_sample"] = False
    return options


def check_before_starting(arguments, text_options):
    """Raises `OmniError` for a model, file, speaker or option that cannot be: MindSpore, which takes seconds, comes after.

    Files behind http addresses are fetched later.
    """
    from ..config import Qwen3OmniMoeConfig
    from ..generation.sampling import SamplingParams
    from ..generation.speakers import speaker_code
    from ..input.load import open_source

    storage_arguments(arguments)
    config = Qwen3OmniMoeConfig.from_pretrained(arguments.model)
    if arguments.speech is not None:
        if config.talker_config is None:
            raise InputError(f"{arguments.model} has no talker, so it cannot speak: leave --speech out")
        speaker_code(config.talker_config, arguments.speaker)
    SpeechOutput(arguments.speech)  # raises for a file that cannot be written
    SamplingParams(seed=arguments.seed, **text_options)
    for item in getattr(arguments, "media", ()):
        kind = item["type"]
        if not item[kind].lower().startswith(("http://", "https://")):
            open_source(item[kind], kind)


def conversation(prompt, media=(), system=None):
    """Messages of one user turn: media in their order, then the prompt."""
    messages = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    content = [*media, {"type": "text", "text": prompt}]
    return [*messages, {"role": "user", "content": content}]


def join_others():
    """Under msrun: waits for the other processes. Returns whether this one speaks; rank 0 does, the others are quiet."""
    from ..parallel import start

    mesh = start()
    if not mesh.speaks:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return mesh.speaks


def status(text):
    """A line on a terminal's standard error about what takes long just now; silent elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def clear_status():
    """Removes the line of `status`."""
    status("")
