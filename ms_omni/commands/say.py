"""`ms-omni say`: speak a given text."""

import sys

from ..errors import InputError
from .generate import show
from .messages import (
    add_model_arguments,
    add_speech_arguments,
    check_before_starting,
    join_others,
    speech_options,
    status,
)
from .speech_output import SpeechOutput
from .storage_options import storage_arguments

NAME = "say"
HELP = "Speak a given text with the talker."


def add_arguments(parser):
    add_model_arguments(parser)
    add_speech_arguments(parser, default="speech.wav")
    parser.add_argument("text", help="what to say")


def run(arguments):
    if not arguments.text.strip():
        raise InputError("there is nothing to say: the text is empty")
    check_before_starting(arguments, {})
    status("starting MindSpore ...")
    from ..input.processor import Qwen3OmniMoeProcessor
    from ..input.spoken import spoken_turn
    from ..model import Qwen3OmniMoeForConditionalGeneration

    target = arguments.speech if join_others() else None
    speech = SpeechOutput(target)
    processor = Qwen3OmniMoeProcessor.from_pretrained(arguments.model)
    inputs = spoken_turn(processor, arguments.text)
    status("loading weights ...")
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        arguments.model,
        dtype=arguments.dtype,
        **storage_arguments(arguments),
        enable_audio_output=True,
        compile_steps=not arguments.no_compile,
        parallel=arguments.parallel,
    )
    events = model.say(**inputs, seed=arguments.seed, **speech_options(arguments))
    with speech:
        end, _ = show(events, speech, quiet=True)
    speech.report(end)
    print(arguments.text, file=sys.stderr if target == "-" else sys.stdout)
