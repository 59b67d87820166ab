"""What the value of each option of `generate` must be, in one table, and which of transformers' options are refused or change nothing."""

import math
import reprlib
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from ..errors import InputError, caller_level, warn_once

LARGEST = float(np.finfo(np.float32).max)
"""Scores are float32: a number beyond would be infinite there."""
LOGPROBS = 20
"""Of the likeliest tokens, as many as servers of this kind return."""
PREFILL_TOKENS = 128, 256, 384, 512
"""Of a prompt that may be read at a time: whole blocks of the cache."""


def check(name: str, value: Any) -> Any:
    """The value, if it is one that this option may have. Raises `InputError` that names the option for another."""
    good, expected = CHECKS[name]
    if not good(value):
        raise InputError(f"{name} is {reprlib.repr(value)}, expected {expected}")
    return value


def truth(name: str, value: Any) -> bool:
    """True or False; raises `InputError` for anything else."""
    return bool(check(name, value))


def whole_number(name: str, value: Any) -> int:
    """An integer of at least 1; raises `InputError` for anything else."""
    if not _whole(value, 1):
        raise InputError(f"{name} is {reprlib.repr(value)}, expected an integer of at least 1")
    return int(value)


def as_ids(name: str, value: Any) -> tuple[int, ...]:
    """An id, several ids or None as a tuple of ints."""
    try:
        value = value.asnumpy() if hasattr(value, "asnumpy") else value
        values = () if value is None else np.atleast_1d(np.asarray(value, dtype=object)).tolist()
        if not all(_whole(v, 0) for v in values):
            raise ValueError
    except (ValueError, TypeError):
        raise InputError(f"{name} is {reprlib.repr(value)}, expected a token id or a list of token ids") from None
    return tuple(int(v) for v in values)


def id_sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """Several sequences of ids, each of at least one."""
    if not isinstance(value, (list, tuple, type(None))):
        raise InputError(f"{name} is {reprlib.repr(value)}, expected a list of lists of token ids")
    return tuple(_sequence(name, ids) for ids in value or ())


def biases(name: str, value: Any) -> tuple:
    """`{(ids): bias}`, or transformers' `[[[ids], bias], ...]`, as pairs."""
    pairs = list(value.items()) if isinstance(value, Mapping) else () if value is None else value
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and _number(pair[1]) for pair in pairs
    ):
        raise InputError(f"{name} is {reprlib.repr(value)}, expected {{(id, ...): number}} or a list of [[id, ...], number]")
    return tuple((_sequence(name, ids), float(bias)) for ids, bias in pairs)


def as_tuple(value: Any) -> tuple:
    """One value, or several, whatever holds them, as a tuple; None is none of them."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _sequence(name: str, ids: Any) -> tuple[int, ...]:
    if not isinstance(ids, (list, tuple)) or not ids:
        raise InputError(f"{name} holds {reprlib.repr(ids)}, expected a list of token ids with at least one")
    return as_ids(name, ids)


# -- kinds of values -------------------------------------------------------------------------------------------------


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= low)


def _number(value: Any, low: float = -LARGEST, high: float = LARGEST) -> bool:
    return _real(value) and bool(low <= value <= high)


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _positive(value: Any, high: float = LARGEST) -> bool:
    return _number(value, 0, high) and value > 0


def _truth(value: Any) -> bool:
    return isinstance(value, (bool, int, np.bool_)) and bool(value in (True, False))


def _texts(value: Any) -> bool:
    texts = (value,) if isinstance(value, str) else value
    return isinstance(texts, (list, tuple)) and all(isinstance(text, str) and text for text in texts)


def _functions(value: Any) -> bool:
    return all(map(callable, value)) if isinstance(value, (list, tuple)) else callable(value)


def _decay(value: Any) -> bool:
    return isinstance(value, tuple) and (not value or (len(value) == 2 and _whole(value[0], 0) and _positive(value[1])))


def _has(*methods: str) -> Callable[[Any], bool]:
    return lambda value: all(callable(getattr(value, method, None)) for method in methods)


def _integer(low: int, note: str = "") -> tuple:
    return (lambda value: _whole(value, low)), f"an integer of at least {low}{note}"


_share = (lambda value: _positive(value, 1)), "a number in (0, 1]"
_cutoff = (lambda value: _number(value, 0) and bool(value < 1)), "a number in [0, 1) (0: none)"
_finite = _number, "a number (0: none)"
_bool = _truth, "True or False"
_list = _functions, "a list of functions"
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # sampling
    "max_new_tokens": _integer(1),
    "min_new_tokens": _integer(0),
    "do_sample": _bool,
    "temperature": ((lambda value: _number(value, 0)), "a number of at least 0 (0: greedy)"),
    "top_k": _integer(0, " (0: no limit)"),
    "top_p": _share,
    "min_p": ((lambda value: _number(value, 0, 1)), "a number in [0, 1] (0: none)"),
    "top_h": ((lambda value: value is None or _positive(value, 1)), "a number in (0, 1], or None"),
    "typical_p": _share,
    "epsilon_cutoff": _cutoff,
    "eta_cutoff": _cutoff,
    "repetition_penalty": ((lambda value: _positive(value) and bool(np.float32(value) > 0)), "a number above 0 (1: none)"),
    "presence_penalty": _finite,
    "frequency_penalty": _finite,
    "no_repeat_ngram_size": _integer(0, " (0: any may repeat)"),
    "exponential_decay_length_penalty": (_decay, "(new tokens from which it counts, factor above 0)"),
    "remove_invalid_values": _bool,
    "renormalize_logits": _bool,
    "pad_token_id": ((lambda value: value is None or _whole(value, 0)), "a token id"),
    "seed": ((lambda value: value is None or _whole(value, 0)), "an integer of at least 0, or None for another every time"),
    # the text loop
    "max_length": _integer(0),
    "min_length": _integer(0),
    "max_time": ((lambda value: _positive(value, math.inf)), "seconds above 0"),
    "stop_strings": (_texts, "a text or a list of texts, none of them empty"),
    "tokenizer": (_has("decode", "batch_decode"), "an object with decode and batch_decode, such as processor.tokenizer"),
    "stopping_criteria": _list,
    "logits_processor": _list,
    "prefix_allowed_tokens_fn": (callable, "a function"),
    "num_return_sequences": _integer(1),
    "past_key_values": (
        _has("reserve"),
        "what the thinker or generate(use_cache=True, return_dict_in_generate=True) returned",
    ),
    "use_cache": _bool,
    "prefill_tokens": ((lambda value: _whole(value, 1) and value in PREFILL_TOKENS), f"one of {PREFILL_TOKENS}"),
    "unspoken_from": (
        (lambda value: isinstance(value, (list, tuple)) and all(_whole(id, 0) for id in value)),
        "a list of token ids",
    ),
    "logprobs": ((lambda value: _whole(value, 0) and value <= LOGPROBS), f"an integer from 0 to {LOGPROBS}"),
    # the result
    "return_dict_in_generate": _bool,
    "output_scores": _bool,
    "output_logits": _bool,
    "output_hidden_states": _bool,
    "return_audio": _bool,
    "grows": _bool,
    "generation_mode": ((lambda value: isinstance(value, str) and value in ("text", "audio")), "'text' or 'audio'"),
    # inputs and speech
    "use_audio_in_video": (
        (lambda value: all(map(_truth, value if isinstance(value, (list, tuple)) else [value]))),
        _bool[1],
    ),
    "speaker": ((lambda value: isinstance(value, str)), "the name of a voice"),
    "token2wav_chunk_frames": (
        (lambda value: isinstance(value, tuple) and bool(value) and all(_whole(n, 1) for n in value)),
        "frame counts of at least 1",
    ),
}
"""Name: whether a value that is not None will do, and what is expected."""


BEAMS = "beam search is not built; for several answers sample them: do_sample=True, num_return_sequences=n"
GUIDANCE = "classifier-free guidance is not built"
ASSISTED = "assisted decoding is not built, and it would not change greedy answers"
CONTRASTIVE = "contrastive search is not built"
CONSTRAINED = "constrained beam search is not built; ban or allow tokens with logits_processor"
ENCODER = "the thinker is a decoder; take repetition_penalty or no_repeat_ngram_size"
NEEDED = {
    "num_beams": (1, BEAMS),
    "num_beam_groups": (1, BEAMS),
    "diversity_penalty": (0, BEAMS),
    "output_attentions": (False, "the fused attention operators keep no weights"),
    "guidance_scale": (1, GUIDANCE),
    "negative_prompt_ids": (None, GUIDANCE),
    "negative_prompt_attention_mask": (None, GUIDANCE),
    "penalty_alpha": (0, CONTRASTIVE),
    "dola_layers": (None, CONTRASTIVE),
    "assistant_model": (None, ASSISTED),
    "prompt_lookup_num_tokens": (None, ASSISTED),
    "assistant_early_exit": (None, ASSISTED),
    "speculation_type": (None, ASSISTED),
    "use_mtp": (False, ASSISTED),
    "constraints": (None, CONSTRAINED),
    "force_words_ids": (None, CONSTRAINED),
    "encoder_repetition_penalty": (1, ENCODER),
    "encoder_no_repeat_ngram_size": (0, ENCODER),
    "token_healing": (False, "prompts are read as they are"),
    "watermarking_config": (None, "watermarks are not built; add one with logits_processor"),
    "custom_generate": (None, "only the built-in loop is run; use model.stream for one of your own"),
}
"""The one value, beside None, that means "not wanted"; any other would change the answer."""

MEANINGLESS = {
    "cache_implementation": ("dynamic", "static", "hybrid", "offloaded"),
    "early_stopping": (True,),
    "length_penalty": (1, 0),
    "cache_config": (),
    "max_cache_len": (),
    "cache_position": (),
    "synced_gpus": (),
    "low_memory": (),
    "disable_compile": (True,),
    "compile_config": (),
    "prefill_chunk_size": (),
    "return_legacy_cache": (),
    "return_dict": (True,),
    "is_assistant": (),
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
    "assistant_ensemble_weight": (),
    "assistant_tokenizer": (),
    "max_matching_ngram_size": (2,),
    "continuous_batching_config": (),
    "use_model_defaults": (True,),
    "trust_remote_code": (),
    "bos_token_id": ...,
    "decoder_start_token_id": ...,
    "forced_bos_token_id": (),
    "transformers_version": ...,
    "output_router_logits": (),
}
"""What has no effect on an answer here; values in the tuple (and None and False, or any for ...) are defaults: no word on them."""


def take_neutral(kwargs: dict, what: str) -> None:
    """Removes the names above from kwargs; what: whose arguments they are.

    Those that change nothing are named in a warning, once per process. Raises `InputError` for what would change the answer.
    """
    for name in NEEDED.keys() & kwargs.keys():
        value = kwargs.pop(name)
        neutral, reason = NEEDED[name]
        if value is not None and not (type(value) in (bool, int, float) and value == neutral and value is not True):
            raise InputError(f"{what}: {name} is {value!r}, which is not supported: {reason}")
    ignored = [name for name in MEANINGLESS.keys() & kwargs.keys() if _is_set(name, kwargs[name])]
    for name in MEANINGLESS.keys() & kwargs.keys():
        del kwargs[name]
    warn_ignored(ignored, "generate")


def _is_set(name: str, value: Any) -> bool:
    usual = MEANINGLESS[name]
    if usual is ... or value is None or value is False:
        return False
    return not isinstance(value, (bool, int, float, str)) or value not in usual  # an array cannot be looked up


def warn_ignored(names: list[str], what: str) -> None:
    """A warning for each of the names, once per process."""
    for name in sorted(names):
        warn_once(f"{what}: {name} changes nothing here and is ignored", stacklevel=caller_level())
