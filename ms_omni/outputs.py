"""What travels between the stages and to the caller: small dataclasses without behaviour."""

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np


@dataclass(frozen=True)
class ThinkerOutput:
    """Result of `model.thinker(**inputs)`.

    logits `[B, T, V]`; hidden_states: num_layers + 1 tensors `[B, T, D]` (the input embeddings, the layers' outputs
    before deepstack features are added, the last one after the final norm) when asked for; rope_deltas float32
    `[B, 1]`; router_logits: one `[B * T, E]` per sparse layer when asked for; loss and aux_loss scalars.
    """

    logits: Any
    past_key_values: Any = None
    rope_deltas: Optional[np.ndarray] = None
    hidden_states: Optional[tuple] = None
    router_logits: Optional[tuple] = None
    loss: Any = None
    aux_loss: Any = None


@dataclass(frozen=True)
class ThinkerStep:
    """One generated text token per row.

    token int64 `[B]` (finished rows hold the padding id); active bool `[B]`: rows for which the token counts; embed
    `[B, 1, D]` its embedding and accept_hidden `[B, 1, D]` the hidden state that the talker listens to, both of the
    token *before* it was generated from (the last token that the thinker was fed), or None when nobody asked.
    """

    token: np.ndarray
    active: np.ndarray
    logits: Optional[np.ndarray] = None


@dataclass(frozen=True)
class GenerateOutput:
    """Token ids with what else was asked for: sequences int64 `[B, T + new]`; scores: new x `[B, V]` float32."""

    sequences: np.ndarray
    scores: Optional[tuple] = None
