"""Keyword arguments of `from_pretrained`: one table for models, processors and configurations.

Scripts pass what transformers, mindone and peers know. A word has a meaning (the callee names those that it gives one), or no
effect here (named in a warning, each word once per process), or it would change answers and is refused.
"""

import difflib
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import InputError, caller_level

HUB = ("cache_dir", "revision", "local_files_only", "force_download", "token", "use_auth_token", "proxies", "subfolder")
TYPES = {
    "cache_dir": (str, os.PathLike),
    "revision": str,
    "subfolder": str,
    "proxies": Mapping,
    "token": (str, bool),
    "use_auth_token": (str, bool),
    "local_files_only": bool,
    "force_download": bool,
    "enable_audio_output": bool,
    "output_loading_info": bool,
    "use_flash_attention_2": bool,
    "variant": str,
    "key_mapping": Mapping,
}
QUANTIZE = ("int8", "int4")
GROUPS = (128, 64, 32)  # as in quantised.py, which needs numpy
DTYPES = ("dtype", "torch_dtype", "mindspore_dtype")
MODEL = (
    *DTYPES,
    "config",
    "attn_implementation",
    "use_flash_attention_2",
    "experts_implementation",
    "generation_config",
    "ignore_mismatched_sizes",
    "key_mapping",
    "output_loading_info",
    "state_dict",
    "variant",
)
TOKENIZER = (
    "padding_side",
    "truncation_side",
    "model_max_length",
    "additional_special_tokens",
    "extra_special_tokens",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "cls_token",
    "sep_token",
    "mask_token",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "errors",
)
PROCESSOR = ("chat_template", *TOKENIZER)

_PLACED = "MindSpore's device holds the model; several cards: parallel="
_CODE = "no code of a checkpoint is run"
_ONE_FORM = "there is one implementation"
IDLE = {
    "device_map": _PLACED,
    "device": _PLACED,
    "device_mesh": _PLACED,
    "distributed_config": _PLACED,
    "fsdp_plan": _PLACED,
    "tp_plan": _PLACED,
    "tp_size": _PLACED,
    "max_memory": _PLACED,
    "offload_buffers": _PLACED,
    "offload_folder": _PLACED,
    "offload_state_dict": _PLACED,
    "trust_remote_code": _CODE,
    "code_revision": _CODE,
    "use_fast": _ONE_FORM,
    "backend": _ONE_FORM,
    "from_slow": _ONE_FORM,
    "legacy": _ONE_FORM,
    "tokenizer_type": _ONE_FORM,
    "kernel_config": _ONE_FORM,
    "use_kernels": _ONE_FORM,
    "disable_custom_kernels": _ONE_FORM,
    "allow_all_kernels": _ONE_FORM,
    "use_safetensors": "safetensors are read",
    "mirror": "see HF_ENDPOINT and MS_OMNI_HUB",
    "torchscript": "there is no PyTorch",
    "fusion_config": _ONE_FORM,
    "adapter_kwargs": "no adapter is loaded",
}
# What is done in any case.
_ALWAYS = (
    "use_cache",  # caching changes no answer
    "low_cpu_mem_usage",
    "weights_only",
    "resume_download",
    "return_unused_kwargs",
    "_fast_init",
    "_from_auto",
    "_commit_hash",
    "_from_pipeline",
)
_ROUNDED = "quantize='int8' or 'int4' is what rounds weights while they are loaded; give that instead"
_OTHER_FILE = "only safetensors are read; convert the file first"
_OF_A_CALL = "it is asked of each call: pass it to model(...) or model.generate(...)"
REFUSED = {
    "output_attentions": "attention is one kernel here that keeps no maps",
    "output_hidden_states": _OF_A_CALL,
    "output_router_logits": _OF_A_CALL,
    "quantization_config": _ROUNDED,
    "load_in_8bit": _ROUNDED,
    "load_in_4bit": _ROUNDED,
    "gguf_file": _OTHER_FILE,
    "from_tf": _OTHER_FILE,
    "from_flax": _OTHER_FILE,
    "tokenizer_file": "the tokenizer of the checkpoint is read; save the other one into a folder and load it from there",
    "adapter_name": "adapters are not read; merge it into the weights first",
}
KNOWN = frozenset({*HUB, *MODEL, *PROCESSOR, *IDLE, *_ALWAYS, *REFUSED})
_NOTHING = (None, False, "", {}, [], ())
_warned: set[str] = set()

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention", "kernels")


def sort_out(
    given: Mapping[str, Any], owner: str, meant: Iterable[str] = (), keys: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments of one `owner.from_pretrained`: (those of `hub.resolve`, those that the callee gives a meaning).

    Args:
        given: what the caller passed.
        owner: the class, for messages.
        meant: words of the table that the callee gives a meaning.
        keys: words of its own: fields of a configuration.

    Raises:
        InputError: an unknown word, with one that is close, or one that would change answers and cannot be honoured.
    """
    meant, keys = set(meant), set(keys)
    meaningful, idle = {}, []
    for word, value in given.items():
        _check_type(word, value, owner)
        if word in HUB:
            continue
        if word in meant or word in keys:
            meaningful[word] = value
        elif word in REFUSED:
            if not _is_nothing(value):
                raise InputError(f"{owner}.from_pretrained: {word} is {_shown(value)}, but {REFUSED[word]}")
        elif word == "device_map" and "meta" in str(value):
            raise InputError(f"{owner}.from_pretrained: device_map is {_shown(value)}, which would load no weights")
        elif word == "use_safetensors":
            idle += [word] if value is False else []
        elif word in IDLE or word in MODEL or word in PROCESSOR:
            if not _is_nothing(value):
                idle.append(word)
        elif word not in _ALWAYS:
            raise InputError(f"{owner}.from_pretrained has no argument {word!r}{_close(word, meant | keys)}")
    _warn_idle(idle)
    return hub_options(given, owner), meaningful


def hub_options(given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """The arguments of `hub.resolve` among those of one `owner.from_pretrained`. Raises `InputError` for a wrong type."""
    for word in HUB:
        _check_type(word, given.get(word), owner)
    options = {word: given[word] for word in HUB if given.get(word) is not None}
    token = options.pop("use_auth_token", None)
    if token is not None:
        options.setdefault("token", token)
    return options


def _check_type(word, value, owner):
    expected = TYPES.get(word)
    if expected is not None and value is not None and type(value).__name__ != "bool_" and not isinstance(value, expected):
        names = " or ".join(kind.__name__ for kind in (expected if isinstance(expected, tuple) else (expected,)))
        raise InputError(f"{owner}.from_pretrained: {word} is {_shown(value)}, expected {names}")


def _close(word, meant):
    close = difflib.get_close_matches(word, [*meant, *sorted(KNOWN)], 1, 0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


def _warn_idle(words):
    """One warning for the words that this process has not warned of yet."""
    new = [word for word in dict.fromkeys(words) if word not in _warned]
    if new:
        _warned.update(new)
        reasons = {word: IDLE.get(word, "it belongs to another class") for word in new}
        text = "; ".join(
            f"{', '.join(w for w in new if reasons[w] == why)} ({why})" for why in dict.fromkeys(reasons.values())
        )
        warnings.warn(f"from_pretrained: without effect here: {text}", stacklevel=caller_level())


def _is_nothing(value):
    return any(value is nothing or (type(value) is type(nothing) and value == nothing) for nothing in _NOTHING)


def _shown(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def asked_dtype(options: dict[str, Any]) -> Any:
    """Takes the dtype out of `options`, under whichever of its names. Raises `InputError` for two that differ."""
    from .runtime import dtype_name

    given = {word: options.pop(word) for word in DTYPES if word in options}
    given = {word: value for word, value in given.items() if value is not None}
    names = {word: dtype_name(value) for word, value in given.items()}
    if len(set(names.values())) > 1:
        raise InputError("two dtypes: " + ", ".join(f"{word} is {name}" for word, name in names.items()) + "; give one")
    return next(iter(names.values()), None)


def check_attention(options: dict[str, Any]) -> Any:
    """Takes the choice of an attention kernel out of `options` and returns it; the device's own is used, to the same numbers.

    Raises:
        InputError: an unknown name.
    """
    chosen = options.pop("attn_implementation", None)
    for name in chosen.values() if isinstance(chosen, Mapping) else [chosen]:
        base = name.removeprefix("paged|") if isinstance(name, str) else name
        if base is not None and base not in ATTENTION and not (isinstance(base, str) and "/" in base):  # a kernel of the hub
            close = difflib.get_close_matches(str(name), ATTENTION, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"attn_implementation is {name!r}, expected one of {', '.join(map(repr, ATTENTION))}{hint}")
    options.pop("use_flash_attention_2", None)
    options.pop("experts_implementation", None)
    return chosen


def check_quantize(quantize: Any, group: Any, embeddings: Any) -> None:
    """Raises `InputError` for values of these arguments of `from_pretrained` that mean nothing, whatever the checkpoint is."""
    from .quantised import GROUPS  # numpy

    if quantize is not None and quantize not in QUANTIZE:
        raise InputError(
            f"quantize is {quantize!r}, expected one of {', '.join(map(repr, QUANTIZE))}, or None for the weights as they are"
        )
    if group is not None and (quantize != "int4" or group not in GROUPS):
        raise InputError(
            f"quantize_group is {group!r} with quantize={quantize!r}; expected one of {', '.join(map(str, GROUPS))}, with "
            "quantize='int4'"
        )
    if not isinstance(embeddings, bool) or (embeddings and quantize is None):
        raise InputError(
            f"quantize_embeddings is {embeddings!r} with quantize={quantize!r}; expected a bool, and True with quantize"
        )
