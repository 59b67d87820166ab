"""A tiny tokenizer with Qwen's special tokens, chat template and preprocessor settings, in the published layout.

`ms-omni tiny` uses it, and so do the tests, so that everything can be tried without downloading a checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

ADDED_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    *("<tool_response>", "</tool_response>", "<think>", "</think>", "<|audio_start|>", "<|audio_end|>"),
    *("<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>", "<|audio_pad|>"),
)  # in the published order: the first has id len(base vocabulary), 151643 in the published tokenizer
# Added, but not special (decoding with skip_special_tokens keeps them): those that stand from tool calls to thoughts.
PLAIN_ADDED_TOKENS = frozenset(ADDED_TOKENS[ADDED_TOKENS.index("<tool_call>") : ADDED_TOKENS.index("</think>") + 1])
NAMED_TOKENS = {
    "image_token": "<|image_pad|>",
    "audio_token": "<|audio_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}
ROLE_WORDS = ("system", "user", "assistant")  # each must be one token: the talker counts on a three-token role header
COMMON_WORDS = (
    *("the", "and", "you", "is", "are", "what", "in", "this", "of", "to", "it", "that", "see", "hear"),
    *("picture", "video", "sound", "speech", "describe", "say", "says", "said", "yes", "no", "one", "two"),
    *("three", "red", "green", "blue", "hello", "world", "helpful", "with", "for", "who", "how", "many"),
    *("colour", "voice", "answer", "question"),
)
SPACE, LINE_FEED = "\u0120", "\u010a"  # how byte-level BPE writes them

# Qwen2's split into words, single digits, punctuation and white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- macro render(content) -%}
  {%- if content is string -%}
    {{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part is string -%}
        {{- part -}}
      {%- elif part.type in ('image', 'image_url') or 'image' in part or 'image_url' in part -%}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- elif part.type in ('audio', 'audio_url') or 'audio' in part or 'audio_url' in part -%}
        {{- '<|audio_start|><|audio_pad|><|audio_end|>' -}}
      {%- elif part.type in ('video', 'video_url') or 'video' in part or 'video_url' in part -%}
        {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
      {%- elif 'text' in part -%}
        {{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- if tools -%}
  {{- '<|im_start|>system\\n' -}}
  {%- if messages[0].role == 'system' -%}
    {{- render(messages[0].content) + '\\n\\n' -}}
  {%- endif -%}
  {{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
  {{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
  {%- for tool in tools -%}
    {{- '\\n' -}}
    {{- tool | tojson -}}
  {%- endfor -%}
  {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' -}}
  {{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n' -}}
  {{- '</tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
      {{- '<|im_start|>user' -}}
    {%- endif -%}
    {{- '\\n<tool_response>\\n' + render(message.content) + '\\n</tool_response>' -}}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
      {{- '<|im_end|>\\n' -}}
    {%- endif -%}
  {%- elif not (tools and loop.first and message.role == 'system') -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {{- render(message.content) -}}
    {%- for call in message.tool_calls or [] -%}
      {%- if message.content or not loop.first -%}
        {{- '\\n' -}}
      {%- endif -%}
      {%- set function = call.function or call -%}
      {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
      {%- if function.arguments is string -%}
        {{- function.arguments -}}
      {%- else -%}
        {{- function.arguments | tojson -}}
      {%- endif -%}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false -%}
    {{- '<think>\\n\\n</think>\\n\\n' -}}
  {%- endif -%}
{%- endif -%}
"""

PREPROCESSOR_CONFIG = {
    "dither": 0.0,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "n_fft": 400,
    "n_samples": 4800000,
    "nb_max_frames": 30000,
    "padding_side": "right",
    "padding_value": 0.0,
    "patch_size": 16,
    "processor_class": "Qwen3OmniMoeProcessor",
    "return_attention_mask": True,
    "sampling_rate": 16000,
    "temporal_patch_size": 2,
}


def _byte_characters() -> list[str]:
    """The 256 printable characters that stand for bytes in byte-level BPE, in byte order (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _vocabulary_and_merges(base_size: int | None) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Bytes first, then each word built up letter by letter, then the words with a space in front, while there is room.

    The role words come first: a merge of lower rank could otherwise break them up.
    """
    vocabulary = {character: index for index, character in enumerate(sorted(_byte_characters()))}
    merges: list[tuple[str, str]] = []
    for word in (*ROLE_WORDS, *COMMON_WORDS, *(SPACE + word for word in COMMON_WORDS)):
        steps = [(SPACE, word[1:])] if word[0] == SPACE else [(word[:cut], word[cut]) for cut in range(1, len(word))]
        for left, right in steps:
            if left + right in vocabulary:
                continue
            if base_size is not None and len(vocabulary) >= base_size:
                return vocabulary, merges
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    return vocabulary, merges


def _smallest_base() -> int:
    """Base vocabulary size below which a role word would not be one token."""
    return 256 + sum(len(word) - 1 for word in ROLE_WORDS)


def _tokenizer_json(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> str:
    """The `tokenizer.json` text of the byte-level BPE with Qwen's added tokens behind the base vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=False, fuse_unk=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(
        add_prefix_space=False,  # pyright: ignore[reportCallIssue]  (missing in its hints, as the next two)
        trim_offsets=False,  # pyright: ignore[reportCallIssue]
        use_regex=False,  # pyright: ignore[reportCallIssue]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_tokens(
        [AddedToken(token, special=token not in PLAIN_ADDED_TOKENS, normalized=False) for token in ADDED_TOKENS]
    )
    return tokenizer.to_str(pretty=False)


def _tokenizer_config(first_added_id: int) -> dict:
    """The `tokenizer_config.json` that goes with it, keys as in the published one."""
    decoder = {
        str(first_added_id + index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token not in PLAIN_ADDED_TOKENS,
        }
        for index, token in enumerate(ADDED_TOKENS)
    }
    special = [token for token in ADDED_TOKENS if token not in PLAIN_ADDED_TOKENS]
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": special,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": dict(NAMED_TOKENS),
        **NAMED_TOKENS,
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def write_tiny_processor(folder: str | Path, *, vocab_size: int | None = None) -> dict[str, int]:
    """Write tokenizer, chat template, preprocessor and generation settings of a tiny checkpoint.

    Args:
        folder: where to write; made if it does not exist.
        vocab_size: the number of ids the tokenizer may use, added tokens included (the model's embedding needs at least
            as many rows). By default as many as the words in this module need (about 500).

    Returns:
        Every added token's id under its own text, the role words under `system`, `user` and `assistant`, the new line
        under `newline`, and the ids a `config.json` needs under its own key names (`im_start_token_id`,
        `audio_token_id`, ...); `vocab_size` is the number of ids used.

    Raises:
        ValueError: `vocab_size` is too small for the bytes, the role words and the added tokens.
    """
    base_size = None if vocab_size is None else vocab_size - len(ADDED_TOKENS)
    if base_size is not None and base_size < _smallest_base():
        raise ValueError(
            f"vocab_size is {vocab_size}; the tiny tokenizer needs at least {_smallest_base() + len(ADDED_TOKENS)}."
        )
    return write_processor_files(folder, *_vocabulary_and_merges(base_size))


def write_processor_files(folder: str | Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, int]:
    """Write tokenizer, chat template, preprocessor and generation settings around a byte-level BPE of one's own.

    Args:
        folder: where to write; made if it does not exist.
        vocabulary: ids from 0 without gaps of all byte characters, every merge's result and the role words.
        merges: pairs in the order of their rank.

    Returns:
        The ids that `write_tiny_processor` returns.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ids = _token_ids(vocabulary)

    def write_json(name: str, content: dict) -> None:
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    (folder / "tokenizer.json").write_text(_tokenizer_json(vocabulary, merges), encoding="utf-8")
    write_json("vocab.json", vocabulary)
    merge_lines = "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merge_lines, encoding="utf-8")
    write_json("tokenizer_config.json", _tokenizer_config(len(vocabulary)))
    write_json("chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json("preprocessor_config.json", PREPROCESSOR_CONFIG)
    write_json("generation_config.json", _generation_config(ids))
    return ids


def _token_ids(vocabulary: dict[str, int]) -> dict[str, int]:
    """Ids of the added tokens and role words, also under the key names of `config.json`."""
    added = {token: len(vocabulary) + index for index, token in enumerate(ADDED_TOKENS)}
    words = {word: vocabulary[word] for word in ROLE_WORDS}
    words["newline"] = vocabulary[LINE_FEED]
    keys = {
        "im_start_token_id": added["<|im_start|>"],
        "im_end_token_id": added["<|im_end|>"],
        "pad_token_id": added["<|endoftext|>"],
        "tts_pad_token_id": added["<tts_pad>"],
        "tts_bos_token_id": added["<tts_text_bos>"],
        "tts_eos_token_id": added["<tts_text_eod>"],
        "system_token_id": words["system"],
        "user_token_id": words["user"],
        "assistant_token_id": words["assistant"],
        "audio_token_id": added["<|audio_pad|>"],
        "image_token_id": added["<|image_pad|>"],
        "video_token_id": added["<|video_pad|>"],
        "vision_start_token_id": added["<|vision_start|>"],
        "vision_end_token_id": added["<|vision_end|>"],
        "audio_start_token_id": added["<|audio_start|>"],
        "audio_end_token_id": added["<|audio_end|>"],
    }
    return {**added, **words, **keys, "vocab_size": len(vocabulary) + len(ADDED_TOKENS)}


def _generation_config(ids: dict[str, int]) -> dict:
    """The sampling defaults of the published checkpoint, with this tokenizer's ids."""
    return {
        "pad_token_id": ids["pad_token_id"],
        "eos_token_id": [ids["im_end_token_id"], ids["pad_token_id"]],
        "thinker_max_new_tokens": 1024,
        "thinker_eos_token_id": ids["im_end_token_id"],
        "talker_max_new_tokens": 4096,
        "talker_do_sample": True,
        "talker_top_k": 50,
        "talker_top_p": 1.0,
        "talker_temperature": 0.9,
        "talker_repetition_penalty": 1.05,
    }
