"""The door: keyword arguments of `generate` and `stream` become model inputs and typed sampling parameters, once.

input_ids, attention_mask, pixel_values, ...   model inputs
thinker_* (or without prefix)                  sampling of the text
talker_*, predictor_*                          sampling of code 0 and of the other codes of a frame
"""

import difflib

from ..errors import InputError
from .sampling import NAMES, SamplingParams

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "input_features",
    "feature_attention_mask",
    "audio_feature_lengths",
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "video_second_per_grid",
    "use_audio_in_video",
)
TEXT_OPTIONS = ("stop_strings", "tokenizer", "streamer", "return_dict_in_generate", "output_scores", "use_cache")


def take_inputs(kwargs):
    """Removes the model inputs from kwargs and returns them; raises `InputError` without input_ids."""
    inputs = {name: kwargs.pop(name) for name in MODEL_INPUTS if kwargs.get(name) is not None}
    for name in MODEL_INPUTS:
        kwargs.pop(name, None)
    if "input_ids" not in inputs:
        raise InputError("generate needs input_ids; pass the processor's outputs: generate(**inputs)")
    return inputs


def take_prefixed(kwargs, prefix):
    """Removes `prefix*` from kwargs and returns them without the prefix."""
    names = [name for name in kwargs if name.startswith(prefix)]
    return {name[len(prefix) :]: kwargs.pop(name) for name in names}


def take_text_options(kwargs):
    """Removes the options of the text loop that are not sampling parameters, and returns them."""
    options = {name: kwargs.pop(name) for name in TEXT_OPTIONS if name in kwargs}
    if options.pop("use_cache", True) is not True:
        raise InputError("use_cache=False is not supported in generate: the cache does not change the answer")
    if options.get("stop_strings") and options.get("tokenizer") is None:
        raise InputError("stop_strings need the tokenizer: generate(..., stop_strings=[...], tokenizer=processor.tokenizer)")
    return options


def sampling_params(kwargs, what, **defaults):
    """`SamplingParams` from kwargs over defaults (None: the default); raises `InputError` for names it does not know."""
    unknown = [name for name in kwargs if name not in NAMES]
    if unknown:
        raise InputError("; ".join(_unknown(name, what) for name in unknown))
    given = {name: value for name, value in kwargs.items() if value is not None}
    return SamplingParams(**{**defaults, **given})


def _unknown(name, what):
    known = (*NAMES, *TEXT_OPTIONS, *MODEL_INPUTS)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"it knows {', '.join(NAMES)}"
    return f"{what} has no argument {name!r}; {hint}"
