"""What one call of `generate`, `stream` or `say` asks for, with everything checked before any work.

    input_ids, attention_mask, pixel_values, ...   model inputs
    thinker_* (or without prefix)                  the text
    talker_*, predictor_*                          sampling of code 0 and of the other codes of a frame
    token2wav_*                                    the vocoder

What is unset is looked for in `generation_config=`, then in `model.generation_config`, then it is the default.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..modeling.packing import host_array
from .checks import as_tuple, check, take_neutral, truth, warn_ignored
from .inputs import MODEL_INPUTS, prompt_of, same, take_inputs
from .options import DEFAULT_SPEAKER, OPTIONS, RESULT_OPTIONS, TEXT_OPTIONS, TextOptions, speaker_code, take_text_options
from .sampling import NAMES, SamplingParams
from .talker_prompt import assistant_turns, user_mask

TEXT_DEFAULTS = {"top_k": 50}
TALKER_DEFAULTS = {
    "max_new_tokens": 4096,
    "do_sample": True,
    "top_k": 50,
    "top_p": 1.0,
    "temperature": 0.9,
    "repetition_penalty": 1.05,
}
PREDICTOR_DEFAULTS = {"top_k": 50, "top_p": 0.8}
PREDICTOR_OPTIONS = ("do_sample", "temperature", "top_k", "top_p", "seed")
VOCODER_MEANINGLESS = ("chunk_size", "left_context_size")
CHUNK_FRAMES = (4, 8, 16, 25)
"""Frames per chunk: the first sound after 4 frames (0.32 s of speech), then larger ones, 25 (2 s) from the fourth on."""
SUPPRESSED_TAIL = 1024
"""The last ids of the talker's vocabulary are specials; of them only the end token may be drawn."""


@dataclass(frozen=True)
class SpeechParams:
    """How an answer is spoken: codec id of the speaker, sampling of code 0 and of the other codes, frames per chunk; named: whether
    the caller has said how many frames there may be.
    """

    speaker_id: int
    talker: SamplingParams
    predictor: SamplingParams
    chunk_frames: tuple = CHUNK_FRAMES
    named: bool = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SpeechParams":
        """What `asdict` gave, also when it has been JSON."""
        parts = {name: SamplingParams(**values[name]) for name in ("talker", "predictor")}
        return cls(**{**values, **parts, "chunk_frames": tuple(values["chunk_frames"])})


@dataclass(frozen=True)
class Request:
    """inputs of the thinker, sampling and options of the text, `SpeechParams` or None, whether the assistant turn is given, the
    tokenizer for texts of a stream; named: whether the caller has said how many tokens there may be. prefill_only: nothing is written, the
    prompt is read ahead of a longer one; grows: with a sound that goes on.
    """

    inputs: dict
    text: SamplingParams
    options: TextOptions = field(default_factory=TextOptions)
    speech: SpeechParams | None = None
    given: bool = False
    tokenizer: Any = None
    named: bool = True
    prefill_only: bool = False
    grows: bool = False

    @property
    def sampling(self) -> list[SamplingParams]:
        """Of the text, and of code 0 and the other codes of its speech."""
        return [self.text, *([] if self.speech is None else [self.speech.talker, self.speech.predictor])]

    def with_seeds(self, seeds: Sequence[int]) -> "Request":
        """The same, with one of these wherever a seed is needed; in the order of `sampling`."""
        text, *speech = (
            replace(params, seed=seed) if params.needs_seed else params for params, seed in zip(self.sampling, seeds)
        )
        if self.speech is not None:
            return replace(self, text=text, speech=replace(self.speech, talker=speech[0], predictor=speech[1]))
        return replace(self, text=text)


# -- entry points -------------------------------------------------------------------------------------------------------


def arguments_of(kwargs: dict, **positional: Any) -> dict:
    """Keyword arguments with those that were given by position; a mapping in place of ids is the model inputs."""
    for name, value in positional.items():
        if value is None:
            continue
        kwargs = {**value, **kwargs} if name == "input_ids" and isinstance(value, Mapping) else {**kwargs, name: value}
    return dict(kwargs)


def parse_text_request(thinker: Any, kwargs: dict, whole: bool = False) -> Request:
    """The request of `thinker.generate`; whole: see `parse_request`. Raises `InputError` for whatever does not fit this thinker."""
    kwargs = dict(kwargs)
    inputs = take_inputs(kwargs, thinker.config)
    return _without_logprobs(whole, _text_request(thinker, inputs, kwargs, thinker.generation_config, {}))


def parse_reading(thinker: Any, kwargs: dict, grows: bool) -> Request:
    """The request of `engine.read`. Raises `InputError`, also for options of an answer, for there is none."""
    kwargs = dict(kwargs)
    inputs = take_inputs(kwargs, thinker.config)
    options = take_text_options(
        {name: kwargs.pop(name) for name in ("prefill_tokens",) if kwargs.get(name) is not None}, inputs
    )
    left = list(_not_none(kwargs))
    if left:
        raise InputError(f"read has no argument {left[0]!r}: it takes the processor's outputs, prefill_tokens and grows")
    return Request(inputs, SamplingParams(max_new_tokens=1), options, prefill_only=True, grows=truth("grows", grows))


def parse_request(model: Any, kwargs: dict, given: bool = False, whole: bool = False) -> Request:
    """The request of the whole model's methods, split by prefix, once; whole: the caller wants a result and not a stream.

    Raises `InputError` for whatever does not fit this model.
    """
    kwargs = dict(kwargs)
    wants_audio = _wants_audio(model, kwargs, given)
    inputs = take_inputs(kwargs, model.config.thinker_config)
    speaker = same("speaker", "spk", kwargs)
    seed = {"seed": kwargs.pop("seed", None)}
    talker, predictor = take_prefixed(kwargs, "talker_"), take_prefixed(kwargs, "predictor_")
    vocoder = take_prefixed(kwargs, "token2wav_")
    text = _merge_text(take_prefixed(kwargs, "thinker_"), kwargs)
    unwanted = _wanted_results(text)
    if unwanted and not whole:
        getattr(text.get("streamer"), "end", lambda: None)()  # or its reader would wait
        raise InputError(f"{unwanted[0]} is for generate, which returns a result; a stream yields its events")
    config = model.generation_config  # its file's end tokens are, as in the reference, those of the thinker alone
    settings = {"pad_token_id": config.pad_token_id, **config.changes()} if hasattr(config, "changes") else config
    defaults = {**seed, "eos_token_id": model.config.im_end_token_id}
    request = _without_logprobs(whole, _text_request(model.thinker, inputs, text, settings, defaults, wants_audio))
    speech = _speech(model.config.talker_config, speaker, {**seed, **talker}, {**seed, **predictor}, vocoder)
    if wants_audio:
        _check_prompt(model, inputs, given)
    return replace(request, speech=speech if wants_audio else None, given=given, tokenizer=request.options.tokenizer)


def _text_request(thinker, inputs: dict, kwargs: dict, settings: Any, defaults: dict, wants_audio: bool = False) -> Request:
    config = kwargs.pop("generation_config", None)
    kwargs = {**_settings(settings), **_settings(config), **_not_none(kwargs)}
    take_neutral(kwargs, "generate")
    options = take_text_options(kwargs, inputs, wants_audio)
    params = sampling_params(kwargs, "generate", **{**TEXT_DEFAULTS, **defaults})
    params.check_vocabulary(thinker.config.text_config.vocab_size)
    if options.num_return_sequences > 1 and not params.do_sample:
        raise InputError(
            f"num_return_sequences is {options.num_return_sequences}, but greedy decoding has one answer; add do_sample=True"
        )
    return Request(inputs, params, options, named="max_new_tokens" in kwargs)


def _without_logprobs(whole: bool, request: Request) -> Request:
    if whole and request.options.logprobs is not None:
        raise InputError(
            "logprobs come with the events of stream and of an engine; generate has return_dict_in_generate=True, output_logits=True"
        )
    return request


def _settings(config: Any) -> dict:
    """What a generation config says: one of transformers' or of ours, a mapping, or None."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        read = getattr(config, "to_diff_dict", None) or getattr(config, "to_dict", None)
        if read is None:
            raise InputError(f"generation_config is {config!r}, expected a GenerationConfig or a dict")
        config = read()
    warn_ignored(
        [name for name in _not_none(config) if name not in OPTIONS and not name.startswith("_")], "generation_config"
    )
    return {name: value for name, value in _not_none(config).items() if name in OPTIONS}


def _wanted_results(kwargs: dict) -> list[str]:
    """Which options of a whole result are wanted."""
    given = {name: value for name, value in _not_none(kwargs).items() if name in RESULT_OPTIONS}
    return [name for name, value in given.items() if name == "streamer" or truth(name, value)]


def _not_none(kwargs: Mapping) -> dict:
    return {name: value for name, value in kwargs.items() if value is not None}


# -- the text --------------------------------------------------------------------------------------------------------


def take_prefixed(kwargs: dict, prefix: str) -> dict:
    """Removes `prefix*` from kwargs and returns them without the prefix."""
    names = [name for name in kwargs if name.startswith(prefix)]
    return {name[len(prefix) :]: kwargs.pop(name) for name in names}


def _merge_text(prefixed: dict, plain: dict) -> dict:
    """Options of the text: `thinker_*` and unprefixed names mean the same; saying both differently is an error."""
    for name in prefixed.keys() & plain.keys():
        same = prefixed[name] is plain[name] or (
            not isinstance(prefixed[name], np.ndarray) and prefixed[name] == plain[name]
        )
        if not same:
            raise InputError(f"got both thinker_{name}={prefixed[name]!r} and {name}={plain[name]!r}; pass one of them")
    return {**plain, **prefixed}


def sampling_params(kwargs: dict, what: str, **defaults: Any) -> SamplingParams:
    """`SamplingParams` from kwargs over defaults (None: the default); raises `InputError` for names it does not know."""
    unknown = [name for name in kwargs if name not in NAMES]
    if unknown:
        raise InputError("; ".join(_unknown(name, what) for name in unknown))
    try:
        return SamplingParams(**{**defaults, **_not_none(kwargs)})
    except InputError as error:  # its message begins with the name
        raise InputError(str(error) if what == "generate" else f"{what}_{error}") from None


def _unknown(name: str, what: str) -> str:
    known = (*NAMES, *TEXT_OPTIONS, *RESULT_OPTIONS, *MODEL_INPUTS)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"it knows {', '.join(NAMES)}"
    return f"{what} has no argument {name!r}; {hint}"


# -- speech ----------------------------------------------------------------------------------------------------------


def _wants_audio(model, kwargs: dict, given: bool) -> bool:
    mode, wanted = kwargs.pop("generation_mode", None), kwargs.pop("return_audio", None)
    if mode is not None:
        check("generation_mode", mode)
    if wanted is not None:
        wanted = truth("return_audio", wanted)
    if mode is not None and wanted is not None and wanted != (mode == "audio"):
        raise InputError(f"generation_mode is {mode!r}, but return_audio is {wanted}; pass one of them")
    if wanted is None and mode is not None:
        wanted = mode == "audio"
    if (wanted or given) and not model.has_talker:
        raise InputError(
            "this model has no talker: a Thinking or Captioner checkpoint answers in text only; a model loaded "
            "with enable_audio_output=False gets its talker by enable_talker()"
        )
    return model.has_talker if wanted is None else wanted


def _speech(config: Any, speaker: Any, talker: dict, predictor: dict, vocoder: dict) -> SpeechParams | None:
    """How to speak, checked whether or not there will be speech; None for a model without a talker (config None)."""
    for name, options in (("talker", talker), ("predictor", predictor)):
        take_neutral(options, name)
        if options.get("use_cache") is not None:
            truth("use_cache", options["use_cache"])
        unwanted = _wanted_results(options)
        for key in ("use_cache", *RESULT_OPTIONS):
            options.pop(key, None)
        if unwanted:
            raise InputError(f"{name}_{unwanted[0]} is not to be had: speech is returned as sound")
    speaker_id, suppressed = 0, {}
    if config is not None:
        speaker_id = speaker_code(config, DEFAULT_SPEAKER if speaker is None else speaker)
        vocabulary = config.text_config.vocab_size
        tail = range(max(vocabulary - SUPPRESSED_TAIL, 0), vocabulary)
        if talker.get("eos_token_id") is None:
            talker["eos_token_id"] = config.codec_eos_token_id
        ends = SamplingParams(eos_token_id=talker["eos_token_id"]).eos_token_id
        # No other special is a code that can be spoken.
        suppressed = {"suppress_tokens": [token for token in tail if token not in ends]}
    elif speaker is not None:
        check("speaker", speaker)
    code = sampling_params(talker, "talker", **TALKER_DEFAULTS, **suppressed)
    unknown = [name for name in predictor if name not in PREDICTOR_OPTIONS]
    if unknown:
        raise InputError(
            f"predictor_{unknown[0]} is unknown; the code predictor's fixed loop takes "
            + ", ".join(f"predictor_{name}" for name in PREDICTOR_OPTIONS)
        )
    rest = sampling_params(predictor, "predictor", **{**PREDICTOR_DEFAULTS, "do_sample": code.do_sample})
    frames = _chunk_frames(vocoder)
    if config is None:
        return None
    code.check_vocabulary(config.text_config.vocab_size)
    return SpeechParams(speaker_id, code, rest, frames, talker.get("max_new_tokens") is not None)


def _chunk_frames(vocoder: dict) -> tuple:
    frames = vocoder.pop("chunk_frames", None)
    meaningless = [name for name in VOCODER_MEANINGLESS if vocoder.pop(name, None) is not None]
    warn_ignored([f"token2wav_{name}" for name in meaningless], "generate (speech is the same in pieces of any size)")
    if vocoder:
        raise InputError(f"token2wav_{next(iter(vocoder))} is unknown; the vocoder's one option is token2wav_chunk_frames")
    return check("token2wav_chunk_frames", CHUNK_FRAMES if frames is None else as_tuple(frames))


def _check_prompt(model, inputs: dict, given: bool) -> None:
    ids, valid = prompt_of(inputs)
    order = np.argsort(valid, axis=1, kind="stable")  # what attention_mask hides goes to the left, wherever it stands
    ids, valid = (np.take_along_axis(array, order, 1) for array in (ids, valid))
    if not user_mask(ids, valid, model.config).any(axis=1).all():
        raise InputError("the prompt has no user turn, and the talker speaks to a user; add a message with role 'user'")
    assistant_turns(ids, model.config, given)


DIGEST_BYTES = 16
LENGTH_BYTES = 8


def packed(request: Request) -> bytes:
    """A request as bytes, without functions: those are called on rank 0, where tokens are chosen."""
    return b"".join(_parts(request))


def digest(request: Request, *more: Any) -> bytes:
    """A fingerprint of a request, and of whatever else can be printed."""
    state = hashlib.blake2b(repr(more).encode(), digest_size=DIGEST_BYTES)
    for part in _parts(request):
        state.update(part)
    return state.digest()


def _parts(request: Request) -> Iterator[Any]:
    arrays = {name: np.asarray(host_array(value), order="C") for name, value in request.inputs.items()}
    options = request.options
    header = {
        "arrays": [[name, array.dtype.str, array.shape] for name, array in arrays.items()],
        "text": asdict(request.text),
        "speech": request.speech and asdict(request.speech),
        "named": request.named,
        "given": request.given,
        "reads": [request.prefill_only, request.grows],
        "copies": options.num_return_sequences,
        "prefill": options.prefill_tokens,
        "unspoken": options.unspoken_from,
        "whole": options.whole_logits,
        "states": options.output_hidden_states,
        "described": repr(options.described()),
    }
    line = json.dumps(header, default=lambda value: value.item()).encode()
    yield len(line).to_bytes(LENGTH_BYTES, "little")
    yield line
    for array in arrays.values():
        yield array.reshape(-1).view(np.uint8).data


def unpacked(data: bytes) -> Request:
    """The request again, with those options that decide what is computed."""
    start = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES:start])
    inputs = {}
    for name, kind, shape in header["arrays"]:
        array = np.frombuffer(data, kind, int(np.prod(shape)), start).reshape(shape).copy()  # aligned and writable
        inputs[name], start = array if shape else array.item(), start + array.nbytes
    options = TextOptions(
        num_return_sequences=header["copies"],
        output_logits=header["whole"],
        output_hidden_states=header["states"],
        prefill_tokens=header["prefill"],
        unspoken_from=tuple(header["unspoken"]),
    )
    speech = header["speech"] and SpeechParams.from_dict(header["speech"])
    flags = {name: header[name] for name in ("given", "named")} | dict(zip(("prefill_only", "grows"), header["reads"]))
    return Request(inputs, SamplingParams(**header["text"]), options, speech, **flags)
