"""`ms-omni generate`: ask the model about text, pictures, sound and video; it answers in text and speech."""

import json
import sys
import time
from typing import Any

from .messages import (
    add_media_arguments,
    add_model_arguments,
    add_speech_arguments,
    check_before_starting,
    clear_status,
    conversation,
    join_others,
    speech_options,
    status,
)
from .speech_output import SpeechOutput
from .storage_options import storage_arguments

NAME = "generate"
SAMPLING = (
    ("temperature", float, "T", "sample the text at this temperature (0: greedy)"),
    ("top-k", int, "K", "sample from the K likeliest tokens (0: from all; default when sampling: 50)"),
    ("top-p", float, "P", "sample from the likeliest tokens that sum to P"),
    ("min-p", float, "P", "sample from tokens at least P times as likely as the likeliest"),
)
"""Any of these turns sampling on."""
PENALTIES = (
    ("repetition-penalty", float, "R", "make what was said or asked less likely (1: no penalty)"),
    ("presence-penalty", float, "X", "take X off the logits of what was said"),
    ("frequency-penalty", float, "X", "take X off the logits for each time that something was said"),
    ("no-repeat-ngram-size", int, "N", "never say the same N tokens twice"),
    ("min-new-tokens", int, "N", "answer with at least N tokens"),
)
HELP = "Ask the model about text, pictures, sound and video; the answer appears while it is written."


def add_arguments(parser):
    add_model_arguments(parser)
    add_media_arguments(parser)
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="limit of the answer (default: 1024)")
    for name, kind, metavar, text in SAMPLING + PENALTIES:
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    parser.add_argument("--stop", action="append", metavar="S", help="end the answer after this text; may be repeated")
    add_speech_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of streaming text")
    parser.add_argument("prompt", help="what to ask")


def run(arguments):
    started = time.perf_counter()
    options = text_options(arguments)
    check_before_starting(arguments, options)
    status("starting MindSpore ...")
    from ..input.processor import Qwen3OmniMoeProcessor
    from ..model import Qwen3OmniMoeForConditionalGeneration

    speaks, target = arguments.speech is not None, arguments.speech if join_others() else None
    speech = SpeechOutput(target)
    status("reading media ...")
    processor = Qwen3OmniMoeProcessor.from_pretrained(arguments.model)
    inputs = read_inputs(processor, arguments)
    status("loading weights ...")
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        arguments.model,
        dtype=arguments.dtype,
        **storage_arguments(arguments),
        enable_audio_output=speaks,
        compile_steps=not arguments.no_compile,
        parallel=arguments.parallel,
    )
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


def read_inputs(processor, arguments):
    """The processor's outputs for one user turn."""
    messages = conversation(arguments.prompt, getattr(arguments, "media", ()), arguments.system)
    inputs = processor.apply_chat_template(
        [messages],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        use_audio_in_video=arguments.use_audio_in_video,
    )
    return {**inputs, "use_audio_in_video": arguments.use_audio_in_video}


def text_options(arguments):
    """Keyword arguments of `generate` for the sampling of the text."""
    sampling, others = ([name.replace("-", "_") for name, *_ in table] for table in (SAMPLING, PENALTIES))
    names = (*sampling, *others, "max_new_tokens")
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if options.keys() & set(sampling):
        options["do_sample"] = True
    return options


def show(events: Any, speech: SpeechOutput, quiet: bool = False, to_stderr: bool = False) -> tuple[Any, str]:
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


def summary(end, text, speech, prompt_tokens, loaded_s):
    """What `--json` prints."""
    result = {
        "text": text,
        "prompt_tokens": int(prompt_tokens),
        "text_tokens": int(end.text_tokens[0]),
        "timings_s": {"load": round(loaded_s, 3), "first_text": rounded(end.first_text_s), "total": rounded(end.total_s)},
    }
    if speech.target is not None:
        result["timings_s"]["first_audio"] = rounded(end.first_audio_s)
        result["speech"] = {
            "file": str(speech.target),
            "samples": speech.samples,
            "seconds": rounded(speech.seconds),
            "frames": int(end.frames[0]),
            "real_time_factor": speech.real_time_factor(end),
        }
    return result


def rounded(seconds):
    """Seconds to the millisecond; None stays None."""
    return None if seconds is None else round(seconds, 3)
