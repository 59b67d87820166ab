"""What the body of a chat completion asks of the engine, and whether that fits together."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import OmniError
from ..input.arguments import is_argument
from ..input.chat import choose_template
from .errors import ApiError
from .grammar import MISSING, wants_grammar
from .schema import STREAMED_FORMAT, ChatBody, Definition
from .server import Server

DIRECT = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
SPEECH = (
    *("talker_temperature", "talker_top_k", "talker_top_p", "talker_do_sample", "talker_max_new_tokens"),
    *("talker_repetition_penalty", "predictor_temperature", "predictor_top_k", "predictor_top_p", "predictor_do_sample"),
    "chunk_frames",
)
PROCESSOR = ("fps", "num_frames", "min_pixels", "max_pixels")
OWN = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "conversation", "chat_template")
"""Variables of templates that are not the caller's to set."""
ID_DIGITS = 10
NARROWING = ("top_p", "top_k", "min_p")


def refuse(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """A 400 about one argument."""
    return ApiError(400, f"{param}: {message}", param, code)


def check(body: ChatBody, server: Server) -> None:
    """Raises `ApiError` for arguments that do not fit together, or not this model."""
    server.check_model(body.model)
    if body.stream_options is not None and not body.stream:
        raise refuse("stream_options", "is for streams; add stream=true, or leave it out")
    if body.top_logprobs is not None and not body.logprobs:
        raise refuse("top_logprobs", "needs logprobs=true")
    if (
        body.max_tokens is not None
        and body.max_completion_tokens is not None
        and body.max_tokens != body.max_completion_tokens
    ):
        raise refuse("max_tokens", "differs from max_completion_tokens, which means the same; give one of them")
    limit = body.max_completion_tokens or body.max_tokens
    if limit is not None and (body.min_tokens or 0) > limit:
        raise refuse("min_tokens", f"is {body.min_tokens}, more than max_completion_tokens, which is {limit}")
    if body.modalities == []:
        raise refuse("modalities", "is empty; expected ['text'], or ['text', 'audio']")
    if body.reasoning_effort not in (None, "none"):
        raise refuse("reasoning_effort", "how long it thinks is the model's choice; leave it out, or give 'none'")
    if server.grammars is None and (param := wants_grammar(body)):
        raise refuse(param, MISSING, "unsupported_value")
    _check_speech(body, server)
    _check_media_options(body)
    ids = {*(body.stop_token_ids or ()), *map(int, body.logit_bias or {})} if _all_ids(body) else set()
    most = server.vocabulary
    if any(id >= most for id in ids):
        name = "logit_bias" if body.logit_bias else "stop_token_ids"
        raise refuse(name, f"holds the token {max(ids)}, but the vocabulary has {most}")


def _all_ids(body):
    for key in body.logit_bias or ():
        if not (key.isascii() and key.isdigit() and len(key) <= ID_DIGITS):
            raise refuse("logit_bias", f"its keys are token ids, got {key!r:.40}")
    return True


def _check_speech(body, server):
    if not body.speaks:
        given = [name for name in ("audio", *SPEECH) if getattr(body, name) is not None]
        if given:
            raise refuse(given[0], "is for answers with sound; add modalities=['text', 'audio'], or leave it out")
        return
    if not server.speaks:
        raise refuse("modalities", "this model answers in text only; give ['text']", "unsupported_value")
    if body.audio is None:
        raise refuse(
            "audio",
            "is needed for answers with sound, as in {'voice': 'Ethan', 'format': 'wav'}",
            "missing_required_parameter",
        )
    if body.audio.speaker.lower() not in [voice.lower() for voice in server.voices]:
        known = ", ".join(server.voices)
        raise refuse("audio.voice", f"there is no voice {body.audio.speaker!r:.60}; this model has {known}")
    if body.stream and body.audio.format != STREAMED_FORMAT:
        raise refuse(
            "audio.format",
            f"is {body.audio.format!r}, and streams take {STREAMED_FORMAT!r} alone, as OpenAI's do",
            "unsupported_value",
        )


def _check_media_options(body):
    if body.fps is not None and body.num_frames is not None:
        raise refuse("fps", "and num_frames exclude each other; give one of them")


def engine_options(body: ChatBody, server: Server) -> dict[str, Any]:
    """Keyword arguments of `Server.ask` for a choice, but for its seed."""
    options: dict[str, Any] = {name: getattr(body, name) for name in DIRECT if getattr(body, name) is not None}
    if body.temperature is not None:
        options |= {"temperature": body.temperature, "do_sample": body.temperature > 0}
    elif any(options.get(name, 0) not in (0, 1) for name in NARROWING):  # which means to draw
        options["do_sample"] = True
    limit = body.max_completion_tokens or body.max_tokens
    if limit is not None:
        options["max_new_tokens"] = limit
    if body.min_tokens is not None:
        options["min_new_tokens"] = body.min_tokens
    if body.logit_bias:
        options["sequence_bias"] = [[[int(id)], bias] for id, bias in body.logit_bias.items()]
    if body.stops:
        options["stop_strings"] = body.stops
    if body.stop_token_ids:
        options["eos_token_id"] = [*server.end_ids, *body.stop_token_ids]
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    if server.worker.engine.whole:
        options["return_audio"] = body.speaks
    if body.speaks and body.audio is not None:
        options["speaker"] = body.audio.speaker
        options |= {name: getattr(body, name) for name in SPEECH[:-1] if getattr(body, name) is not None}
        if body.chunk_frames is not None:
            options["token2wav_chunk_frames"] = body.chunk_frames
    return options


def processor_options(body: ChatBody, tools: Sequence[Definition], template: Any) -> dict[str, Any]:
    """Arguments of `apply_chat_template`: of media that do not say themselves, tools, and the template's variables.

    template: the checkpoint's chat template, or several by name. Raises `ApiError` for what it does not read.
    """
    options = {name: getattr(body, name) for name in PROCESSOR if getattr(body, name) is not None}
    if body.use_audio_in_video:
        options["use_audio_in_video"] = True
    text = choose_template(template, None, tools)
    if tools:
        if not _reads(text, "tools"):
            raise refuse("tools", "the chat template of this model knows no tools; leave them out", "unsupported_value")
        options["tools"] = [{"type": "function", "function": one.model_dump(exclude_none=True)} for one in tools]
    for param, name, value in _variables(body):
        if name in OWN or is_argument(name) or not _reads(text, name):
            raise refuse(
                param, f"the chat template of this model does not read {name!r:.60}; leave it out", "unsupported_value"
            )
        options[name] = value
    return options


def _variables(body):
    """`(argument, variable, value)` of what the caller tells the template."""
    found = [(f"chat_template_kwargs.{name}", name, value) for name, value in (body.chat_template_kwargs or {}).items()]
    if body.enable_thinking is not None:
        found.append(("enable_thinking", "enable_thinking", body.enable_thinking))
    if body.reasoning_effort == "none":
        found.append(("reasoning_effort", "enable_thinking", False))
    return found


def _reads(template, name):
    return re.search(rf"(?<![\w.'\"]){re.escape(name)}\b", template) is not None


PARAMS = (
    ("the answer needs", "max_completion_tokens", "context_length_exceeded"),
    ("its speech needs", "messages", "context_length_exceeded"),
    ("the prompt", "messages", None),
    ("min_new_tokens", "min_tokens", None),
    ("max_new_tokens", "max_completion_tokens", None),
    ("token2wav_chunk_frames", "chunk_frames", None),
    ("eos_token_id", "stop_token_ids", None),
    ("sequence_bias", "logit_bias", None),
    ("speaker", "audio.voice", None),
)
"""How errors of the engine begin, and the argument that they are about, with a code."""


def named(error: OmniError) -> ApiError:
    """An error of the engine, by the argument of the body that it speaks of."""
    text = str(error)
    found = next((row for row in PARAMS if text.startswith(row[0])), None)
    param = found[1] if found else next((name for name in ChatBody.model_fields if text.startswith(f"{name} ")), None)
    return ApiError(400, text, param, found[2] if found else None)


def seeds(seed: int | None, count: int) -> Sequence[int | None]:
    """Of each choice: the first has the caller's own, the others one that follows from it."""
    if seed is None:
        return [None] * count
    first = seed % 2**63
    return [first, *(_derived(first, index) for index in range(1, count))]


def _derived(seed, index):
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
