"""Prompts whose assistant turn is a given text, which is then spoken."""

from __future__ import annotations

from typing import Any

import numpy as np

REQUEST = "Read this text aloud."


def spoken_turn(processor: Any, text: str, instructions: str | None = None) -> dict[str, Any]:
    """Ids and mask int64 `[1, T]` of a conversation whose assistant turn is the text, for `model.say` and `engine.add(given=True)`.

    Names of special tokens in it are said as they are written. instructions: how it is to be said; the talker hears what the user has
    written, so they stand there.
    """
    request = f"{REQUEST} {instructions.strip()}" if instructions and instructions.strip() else REQUEST
    message = {"role": "user", "content": [{"type": "text", "text": request}]}
    ids = processor.apply_chat_template([[message]], tokenize=True, return_dict=True, add_generation_prompt=True)[
        "input_ids"
    ]
    tokens = processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = np.concatenate([ids, np.array(tokens, np.int64)[None]], axis=1)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
