"""`ms-omni generate`: ask the model about text, images, audio and video; `ms-omni say`: speak a given text."""

import argparse
import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError
from . import Command
from .options import add_loading, add_model, clear_status, join_ranks, loading_options, status, storage_options
from .speech_output import SpeechOutput

MEDIA = ("image", "audio", "video")
SAMPLING = (
    ("temperature", float, "T", "sample the text at this temperature (0: greedy)"),
    ("top-k", int, "K", "sample from the K likeliest tokens (0: from all; default when sampling: 50)"),
    ("top-p", float, "P", "sample from the likeliest tokens that sum to P"),
    ("min-p", float, "P", "sample from tokens at least P times as likely as the likeliest"),
)
"""Any of these turns sampling on."""
PENALTIES = (
    ("repetition-penalty", float, "R", "make tokens of prompt and answer less likely (1: no penalty)"),
    ("presence-penalty", float, "X", "take X off the logits of tokens in the answer"),
    ("frequency-penalty", float, "X", "take X off the logits for each occurrence in the answer"),
    ("no-repeat-ngram-size", int, "N", "never repeat the same N tokens"),
    ("min-new-tokens", int, "N", "answer with at least N tokens"),
)


class AppendMedia(argparse.Action):
    """Collects media of all kinds in the order in which they are given."""

    def __call__(self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        items = list(getattr(namespace, "media", None) or [])
        items.append({"type": self.dest, self.dest: values})
        namespace.media = items


def add_arguments(parser: ArgumentParser) -> None:
    _add_common(parser)
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
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="limit of the answer (default: 1024)")
    for name, kind, metavar, text in SAMPLING + PENALTIES:
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    parser.add_argument("--stop", action="append", metavar="S", help="end the answer after this text; may be repeated")
    _add_speech(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    parser.add_argument("prompt", help="what to ask")


def add_say_arguments(parser: ArgumentParser) -> None:
    _add_common(parser)
    _add_speech(parser, default="speech.wav")
    parser.add_argument("text", help="what to say")


def _add_common(parser: ArgumentParser) -> None:
    add_model(parser)
    add_loading(parser)
    parser.add_argument("--seed", type=int, help="seed of all sampling, for repeatable answers")


def _add_speech(parser: ArgumentParser, default: str | None = None) -> None:
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


def run(arguments: Namespace) -> None:
    started = time.perf_counter()
    options = text_options(arguments)
    check_before_starting(arguments, options)
    status("starting MindSpore ...")
    from ..input.processor import Qwen3OmniMoeProcessor

    speaks, target = arguments.speech is not None, arguments.speech if join_ranks() else None
    speech = SpeechOutput(target)
    status("reading media ...")
    processor = Qwen3OmniMoeProcessor.from_pretrained(arguments.model)
    inputs = read_inputs(processor, arguments)
    model = load_model(arguments, speaks)
    loaded_s = time.perf_counter() - started
    if speaks:
        options |= speech_options(arguments)
    options |= {"seed": arguments.seed, "tokenizer": processor.tokenizer, "stop_strings": arguments.stop}
    events = model.stream(**inputs, return_audio=speaks, **options)
    status("reading the prompt ...")
    with speech:
        end, text = show(events, speech, quiet=arguments.json, to_stderr=target == "-")
    if arguments.json:
        report = summary(end, text, speech, inputs["input_ids"].shape[1], loaded_s)
        print(json.dumps(report, ensure_ascii=False), file=sys.stderr if target == "-" else sys.stdout)


def run_say(arguments: Namespace) -> None:
    if not arguments.text.strip():
        raise InputError("there is nothing to say: the text is empty")
    check_before_starting(arguments, {})
    status("starting MindSpore ...")
    from ..input.messages import spoken_turn
    from ..input.processor import Qwen3OmniMoeProcessor

    target = arguments.speech if join_ranks() else None
    speech = SpeechOutput(target)
    processor = Qwen3OmniMoeProcessor.from_pretrained(arguments.model)
    inputs = spoken_turn(processor, arguments.text)
    model = load_model(arguments, True)
    events = model.say(**inputs, seed=arguments.seed, **speech_options(arguments))
    with speech:
        end, _ = show(events, speech, quiet=True)
    speech.report(end)
    print(arguments.text, file=sys.stderr if target == "-" else sys.stdout)


def check_before_starting(arguments: Namespace, options: Mapping[str, Any]) -> None:
    """Raises `OmniError` for a model, file, speaker or option of the text that cannot be: MindSpore, which takes seconds, comes after.

    Files behind http addresses are fetched later.
    """
    from ..config import Qwen3OmniMoeConfig
    from ..generation.options import speaker_code
    from ..generation.sampling import SamplingParams
    from ..input.load import open_source

    storage_options(arguments)
    config = Qwen3OmniMoeConfig.from_pretrained(arguments.model)
    if arguments.speech is not None:
        if config.talker_config is None:
            raise InputError(f"{arguments.model} has no talker, so it cannot speak: leave --speech out")
        speaker_code(config.talker_config, arguments.speaker)
    SpeechOutput(arguments.speech)  # raises for a file that cannot be written
    SamplingParams(seed=arguments.seed, **options)
    for item in getattr(arguments, "media", ()):
        kind = item["type"]
        if not item[kind].lower().startswith(("http://", "https://")):
            open_source(item[kind], kind)


def load_model(arguments: Namespace, speaks: bool) -> Any:
    """The model that the arguments name, with a talker if it is to speak."""
    from ..model import Qwen3OmniMoeForConditionalGeneration

    status("loading weights ...")
    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        arguments.model, enable_audio_output=speaks, **loading_options(arguments)
    )


def read_inputs(processor: Any, arguments: Namespace) -> dict[str, Any]:
    """The processor's outputs for one user turn: media in their order, then the prompt."""
    content = [*getattr(arguments, "media", ()), {"type": "text", "text": arguments.prompt}]
    messages = [{"role": "user", "content": content}]
    if arguments.system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": arguments.system}]})
    inputs = processor.apply_chat_template(
        [messages],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        use_audio_in_video=arguments.use_audio_in_video,
    )
    return {**inputs, "use_audio_in_video": arguments.use_audio_in_video}


def text_options(arguments: Namespace) -> dict[str, Any]:
    """Keyword arguments of `generate` for the sampling of the text."""
    sampling, others = ([name.replace("-", "_") for name, *_ in table] for table in (SAMPLING, PENALTIES))
    names = (*sampling, *others, "max_new_tokens")
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if options.keys() & set(sampling):
        options["do_sample"] = True
    return options


def speech_options(arguments: Namespace) -> dict[str, Any]:
    """Keyword arguments of `generate` for the speech options of a command."""
    options = {"speaker": arguments.speaker}
    if arguments.talker_max_new_tokens is not None:
        options["talker_max_new_tokens"] = arguments.talker_max_new_tokens
    if arguments.greedy_speech:
        options["talker_do_sample"] = False
    return options


def show(events: Iterable[Any], speech: SpeechOutput, quiet: bool = False, to_stderr: bool = False) -> tuple[Any, str]:
    """Prints text and writes speech as they come; returns the end event and the whole text."""
    from ..outputs import AudioChunk, StreamEnd, TextDelta

    out, text = sys.stderr if to_stderr else sys.stdout, ""
    end: Any = None
    for event in events:
        if isinstance(event, AudioChunk):
            speech.write(event.pcm[0, : event.samples[0]])
        elif isinstance(event, StreamEnd):
            end = event
        elif isinstance(event, TextDelta) and event.text and event.text[0]:
            text += event.text[0]
            if not quiet:
                clear_status()
                print(event.text[0], end="", file=out, flush=True)
    clear_status()
    if not quiet:
        print(file=out)
        speech.report(end)
    return end, text


def summary(end: Any, text: str, speech: SpeechOutput, prompt_tokens: int, loaded_s: float) -> dict[str, Any]:
    """What `--json` prints."""
    result = {
        "text": text,
        "prompt_tokens": int(prompt_tokens),
        "text_tokens": int(end.text_tokens[0]),
        "timings_s": {"load": round(loaded_s, 3), "first_text": _rounded(end.first_text_s), "total": _rounded(end.total_s)},
    }
    if speech.target is not None:
        result["timings_s"]["first_audio"] = _rounded(end.first_audio_s)
        result["speech"] = {
            "file": str(speech.target),
            "samples": speech.samples,
            "seconds": _rounded(speech.seconds),
            "frames": int(end.frames[0]),
            "real_time_factor": speech.real_time_factor(end),
        }
    return result


def _rounded(seconds: float | None) -> float | None:
    """Seconds to the millisecond; None stays None."""
    return None if seconds is None else round(seconds, 3)


GENERATE = Command(
    "generate",
    "Ask the model about text, pictures, sound and video; the answer appears while it is written.",
    add_arguments,
    run,
)
SAY = Command("say", "Speak a given text with the talker.", add_say_arguments, run_say)
