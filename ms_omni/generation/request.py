"""What one call of `generate`, `stream` or `say` asks for, with everything checked before any work."""

from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError
from ..modeling.packing import host_array, valid_tokens
from .arguments import sampling_params, take_inputs, take_prefixed, take_text_options
from .hand_over import assistant_turns
from .sampling import SamplingParams, as_ids
from .speakers import DEFAULT_SPEAKER, speaker_code
from .speech import SpeechParams
from .talker_prompt import user_mask
from .text import StopStrings
from .waves import CHUNK_FRAMES

TALKER_DEFAULTS = {
    "max_new_tokens": 4096,
    "do_sample": True,
    "top_k": 50,
    "top_p": 1.0,
    "temperature": 0.9,
    "repetition_penalty": 1.05,
}
RESULT_OPTIONS = {"streamer", "return_dict_in_generate", "output_scores"}
PREDICTOR_DEFAULTS = {"top_k": 50, "top_p": 0.8}
PREDICTOR_OPTIONS = ("do_sample", "temperature", "top_k", "top_p", "seed")
SUPPRESSED_TAIL = 1024
"""The last ids of the talker's vocabulary are specials; of them only the end token may be drawn."""


@dataclass(frozen=True)
class Request:
    """inputs of the thinker, sampling of the text, `SpeechParams` or None, stopping rule, options of the text result,
    whether the assistant turn is given, the tokenizer for texts of a stream.
    """

    inputs: dict
    text: SamplingParams
    speech: SpeechParams | None = None
    stopping: StopStrings | None = None
    output: dict = field(default_factory=dict)
    given: bool = False
    tokenizer: object = None


def parse_request(model, kwargs, given=False, whole=False):
    """Splits the keyword arguments by prefix, once; whole: the caller wants a result and not a stream.

    Raises `InputError` for whatever does not fit this model.
    """
    kwargs = dict(kwargs)
    inputs = take_inputs(kwargs)
    speaker, wants_audio = kwargs.pop("speaker", None), _wants_audio(model, kwargs, given)
    seed = kwargs.pop("seed", None)
    talker, predictor = take_prefixed(kwargs, "talker_"), take_prefixed(kwargs, "predictor_")
    vocoder = take_prefixed(kwargs, "token2wav_")
    text = _merge_text(take_prefixed(kwargs, "thinker_"), kwargs)
    options = take_text_options(text)
    if not whole and options.keys() & RESULT_OPTIONS:
        raise InputError(
            f"{min(options.keys() & RESULT_OPTIONS)} is for generate, which returns a result; a stream yields its events"
        )
    stops, tokenizer = options.pop("stop_strings", None), options.pop("tokenizer", None)
    params = model.thinker.sampling_params({"seed": seed, **text}, eos_token_id=model.config.im_end_token_id)
    speech = None
    if wants_audio:
        speech = _speech(model, speaker, {"seed": seed, **talker}, {"seed": seed, **predictor}, vocoder)
        _check_prompt(model, inputs)
    return Request(inputs, params, speech, StopStrings(stops, tokenizer) if stops else None, options, given, tokenizer)


def _wants_audio(model, kwargs, given):
    mode, wanted = kwargs.pop("generation_mode", None), kwargs.pop("return_audio", None)
    if mode not in (None, "text", "audio"):
        raise InputError(f"generation_mode is {mode!r}, expected 'text' or 'audio'")
    if wanted is None and mode is not None:
        wanted = mode != "text"
    if (wanted or given) and not model.has_talker:
        raise InputError(
            "this model has no talker: a Thinking or Captioner checkpoint answers in text only; a model loaded "
            "with enable_audio_output=False gets its talker by enable_talker()"
        )
    return model.has_talker if wanted is None else bool(wanted)


def _merge_text(prefixed, plain):
    """Sampling of the text: `thinker_*` and unprefixed names mean the same; saying both differently is an error."""
    for name in prefixed.keys() & plain.keys():
        if prefixed[name] != plain[name]:
            raise InputError(f"got both thinker_{name}={prefixed[name]!r} and {name}={plain[name]!r}; pass one of them")
    return {**plain, **prefixed}


def _speech(model, speaker, talker, predictor, vocoder):
    config = model.config.talker_config
    speaker_id = speaker_code(config, DEFAULT_SPEAKER if speaker is None else speaker)
    vocabulary = config.text_config.vocab_size
    tail = range(max(vocabulary - SUPPRESSED_TAIL, 0), vocabulary)
    talker.setdefault("eos_token_id", config.codec_eos_token_id)
    ends = as_ids("talker_eos_token_id", talker["eos_token_id"])
    suppressed = [token for token in tail if token not in ends]  # no other special is a code that can be spoken
    code = sampling_params(talker, "talker", **TALKER_DEFAULTS, suppress_tokens=suppressed)
    code.check_vocabulary(vocabulary)
    unknown = [name for name in predictor if name not in PREDICTOR_OPTIONS]
    if unknown:
        raise InputError(
            f"predictor_{unknown[0]} is unknown; the code predictor's fixed loop takes "
            + ", ".join(f"predictor_{name}" for name in PREDICTOR_OPTIONS)
        )
    rest = sampling_params(predictor, "predictor", do_sample=code.do_sample, **PREDICTOR_DEFAULTS)
    return SpeechParams(speaker_id, code, rest, _chunk_frames(vocoder))


def _chunk_frames(vocoder):
    frames = vocoder.pop("chunk_frames", CHUNK_FRAMES)
    if vocoder:
        raise InputError(f"token2wav_{next(iter(vocoder))} is unknown; the vocoder's one option is token2wav_chunk_frames")
    frames = tuple(np.atleast_1d(frames).tolist())
    if not frames or any(not isinstance(n, int) or n < 1 for n in frames):
        raise InputError(f"token2wav_chunk_frames is {frames!r}, expected frame counts of at least 1")
    return frames


def _check_prompt(model, inputs):
    ids, config = host_array(inputs["input_ids"]), model.config
    valid = valid_tokens(ids, inputs.get("attention_mask"))
    if ids.ndim != 2 or ids.shape != valid.shape:
        raise InputError(f"input_ids {list(ids.shape)} and attention_mask {list(valid.shape)} must be [batch, tokens] both")
    if not user_mask(ids, valid, config).any(axis=1).all():
        raise InputError("the prompt has no user turn, and the talker speaks to a user; add a message with role 'user'")
    assistant_turns(ids, config.im_start_token_id, config.assistant_token_id)
