"""Names of `generate` that are not built here, as transformers has them: which are refused, and which change nothing."""

from typing import Any

from ..errors import InputError
from ..notices import caller_level, warn_once

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
"""The one value, beside None, that means "not wanted"; whatever else is said would change the answer."""

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
    ignored = [name for name in MEANINGLESS.keys() & kwargs.keys() if _is_said(name, kwargs[name])]
    for name in MEANINGLESS.keys() & kwargs.keys():
        del kwargs[name]
    say_ignored(ignored, "generate")


def _is_said(name: str, value: Any) -> bool:
    usual = MEANINGLESS[name]
    if usual is ... or value is None or value is False:
        return False
    return not isinstance(value, (bool, int, float, str)) or value not in usual  # an array cannot be looked up


def say_ignored(names: list[str], what: str) -> None:
    """A warning for each of the names, once per process."""
    for name in sorted(names):
        warn_once(f"{what}: {name} changes nothing here and is ignored", stacklevel=caller_level())
