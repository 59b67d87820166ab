"""What a text loop is to do beside sampling, the defaults of a model, and its voices. No MindSpore here: commands ask before it is loaded."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, InputError
from ..files import read_text, saved_files, write_text
from .checks import MEANINGLESS, NEEDED, as_ids, as_tuple, check
from .sampling import NAMES

TEXT_OPTIONS = (
    "max_length",
    "min_length",
    "max_time",
    "stop_strings",
    "tokenizer",
    "stopping_criteria",
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "num_return_sequences",
    "past_key_values",
    "use_cache",
    "logprobs",
    "prefill_tokens",
    "unspoken_from",
)
RESULT_OPTIONS = (
    "streamer",
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_hidden_states",
)
"""For `generate`, which returns a result."""


@dataclass(frozen=True)
class TextOptions:
    """What a text loop is to do beside sampling; names as in transformers' `generate`.

    stopping_criteria: functions `(input_ids [B, T], scores) -> bool or bool [B]`, where scores are those of all steps, if
    output_scores, else None. logits_processor: functions `(input_ids [B, T], scores [B, V]) -> scores`. keep_cache:
    the keys and values are wanted. past_key_values: a cache that holds the beginning of the prompt. logprobs: how many of the
    likeliest tokens a `TextDelta` names with their log-probabilities, beside the one that was chosen; None: nothing of this.
    unspoken_from: ids from the first of which on the text is not spoken. prefill_tokens: of a prompt that are read at
    a time, and found again at a multiple of as many; None: the most.
    """

    stop_strings: tuple = ()
    tokenizer: Any = None
    stopping_criteria: tuple = ()
    logits_processor: tuple = ()
    max_time: float | None = None
    num_return_sequences: int = 1
    past_key_values: Any = None
    keep_cache: bool = False
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_hidden_states: bool = False
    logprobs: int | None = None
    prefill_tokens: int | None = None
    unspoken_from: tuple = ()

    @property
    def stores_logits(self) -> bool:
        """Whether something of the logits is wanted beside the token."""
        return self.output_scores or self.output_logits or self.logprobs is not None

    @property
    def whole_logits(self) -> bool:
        """Whether the logits of the whole vocabulary are needed on the host."""
        return bool(self.stores_logits or self.logits_processor)

    def for_row(self, prompt: int) -> "TextOptions":
        """Those of a conversation alone, by its number in the batch."""
        own = (
            AllowedTokens(item.function, prompt) if isinstance(item, AllowedTokens) else item
            for item in self.logits_processor
        )
        return replace(self, logits_processor=tuple(own)) if prompt and self.logits_processor else self

    def described(self) -> list:
        """What processes that generate together must agree on."""
        cached = None if self.past_key_values is None else self.past_key_values.get_seq_length()
        functions = [type(item).__name__ for item in (*self.stopping_criteria, *self.logits_processor)]
        flags = (self.output_scores, self.output_logits, self.output_hidden_states, self.keep_cache, self.logprobs)
        counts = self.num_return_sequences, self.prefill_tokens
        return [self.stop_strings, functions, self.max_time, counts, cached, flags]


def take_text_options(kwargs: dict, inputs: dict, wants_audio: bool = False) -> TextOptions:
    """Removes the options of the text loop that are not sampling parameters, and puts lengths of the whole as new tokens."""
    given = {name: kwargs.pop(name) for name in (*TEXT_OPTIONS, *RESULT_OPTIONS[1:]) if name in kwargs}
    for name, value in given.items():
        check(name, value)
    flags = {name: bool(given[name]) for name in RESULT_OPTIONS[1:] if name in given}
    cache, copies = given.get("past_key_values"), int(given.get("num_return_sequences", 1))
    alone = {"past_key_values": cache, "num_return_sequences": copies if copies > 1 else None}
    alone["inputs_embeds"] = inputs.get("inputs_embeds")
    for name, value in alone.items():
        if wants_audio and value is not None:
            raise InputError(f"{name} is for answers in text; add return_audio=False")
    if cache is not None and copies > 1:
        raise InputError("past_key_values and num_return_sequences cannot be combined: the cache has one row per prompt")
    strings = as_tuple(given.get("stop_strings"))
    if strings and "tokenizer" not in given:
        raise InputError("stop_strings need the tokenizer: generate(..., stop_strings=[...], tokenizer=processor.tokenizer)")
    _lengths(given, kwargs, inputs)
    processors = as_tuple(given.get("logits_processor"))
    if "prefix_allowed_tokens_fn" in given:
        processors = (AllowedTokens(given["prefix_allowed_tokens_fn"]), *processors)
    return TextOptions(
        stop_strings=strings,
        tokenizer=given.get("tokenizer"),
        stopping_criteria=as_tuple(given.get("stopping_criteria")),
        logits_processor=processors,
        max_time=given.get("max_time"),
        num_return_sequences=copies,
        past_key_values=cache,
        keep_cache=bool(given.get("use_cache")) and flags.get("return_dict_in_generate", False),
        logprobs=given.get("logprobs"),
        prefill_tokens=given.get("prefill_tokens"),
        unspoken_from=as_tuple(given.get("unspoken_from")),
        **flags,
    )


def _lengths(given: dict, kwargs: dict, inputs: dict) -> None:
    """max_length and min_length count the prompt; max_new_tokens and min_new_tokens, which do not, go before them."""
    prompt = inputs["input_ids" if "input_ids" in inputs else "inputs_embeds"].shape[1]
    for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        length = given.get(total)
        if length is None or new in kwargs:
            continue
        if total == "max_length" and length <= prompt:
            raise InputError(f"max_length is {length}, but the prompt has {prompt} tokens; use max_new_tokens")
        kwargs[new] = max(int(length) - prompt, 0)


class AllowedTokens:
    """Leaves only the tokens that `function(batch_id, ids [T])` allows next; prompt: the first batch_id."""

    def __init__(self, function: Any, prompt: int = 0) -> None:
        self.function, self.prompt = function, prompt

    def __call__(self, input_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        allowed = np.full(scores.shape, -np.inf, np.float32)
        for row, ids in enumerate(input_ids, self.prompt):
            tokens = list(self.function(row, ids))
            if not tokens:
                raise InputError(f"prefix_allowed_tokens_fn allows no token for prompt {row}")
            allowed[row - self.prompt, tokens] = 0
        masked = scores + allowed
        return np.where((masked == -np.inf).all(axis=1, keepdims=True), allowed, masked)


GENERATION_FILE = "generation_config.json"
OPTIONS = {*NAMES, *TEXT_OPTIONS, *RESULT_OPTIONS, *NEEDED, *MEANINGLESS}


class GenerationConfig:
    """Defaults of `generate` as attributes, `model.generation_config.max_new_tokens = 64`; what nobody set is None.

    A checkpoint's generation_config.json gives the ids that end and pad a text; how texts are sampled is, as in the reference,
    up to the call or to what is set here.
    """

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(_loaded={}, **values)

    def __getattr__(self, name: str) -> Any:
        if name not in OPTIONS:
            raise AttributeError(f"GenerationConfig has no {name!r}")
        return None

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    def to_dict(self) -> dict[str, Any]:
        """What was set, by name."""
        return {name: value for name, value in self.__dict__.items() if value is not None and name != "_loaded"}

    to_diff_dict = to_dict

    def to_json_string(self) -> str:
        """What was set, as the text of a generation_config.json."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `save_directory`/generation_config.json. Raises `CheckpointError` where one is that ms_omni did not write."""
        with saved_files(save_directory) as folder:
            write_text(folder / GENERATION_FILE, self.to_json_string())

    def load(self, **values: Any) -> None:
        """Sets what is not set yet, as the checkpoint's and not as the user's."""
        values = {name: value for name, value in values.items() if getattr(self, name) is None}
        self.__dict__.update(values)
        self.__dict__["_loaded"] = {**self.__dict__["_loaded"], **values}

    def changes(self) -> dict[str, Any]:
        """What was set otherwise than by `load`."""
        return {name: value for name, value in self.to_dict().items() if self.__dict__["_loaded"].get(name) != value}

    def update(self, **values: Any) -> dict[str, Any]:
        """Sets these values; returns what was left over, which is nothing."""
        self.__dict__.update(values)
        return {}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "GenerationConfig":
        """The special tokens of `folder`/generation_config.json; nothing without that file.

        Raises:
            CheckpointError: the file is no JSON object, or its ids are none.
        """
        path = Path(folder) / GENERATION_FILE
        if not os.path.lexists(path):
            return cls()
        try:
            data = json.loads(read_text(path))
            ids = {name: as_ids(name, data.get(name)) for name in ("eos_token_id", "pad_token_id")}
        except (ValueError, AttributeError, TypeError, OSError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a usable generation config: {error}; mend or remove it") from None
        pad = ids["pad_token_id"][0] if ids["pad_token_id"] else None
        config = cls()
        config.load(eos_token_id=list(ids["eos_token_id"]) or None, pad_token_id=pad)
        return config


DEFAULT_SPEAKER = "Ethan"


def speaker_code(talker_config: Any, speaker: Any) -> int:
    """The codec id of a speaker's name, in any case. Raises `InputError` that lists the known names."""
    known = {name.lower(): code for name, code in talker_config.speaker_id.items()}
    if not isinstance(speaker, str) or speaker.lower() not in known:
        raise InputError(f"unknown speaker {speaker!r}; this checkpoint has {', '.join(sorted(known))}")
    return known[speaker.lower()]
