"""What of a row's choice a device can make, and its penalties as two numbers per id: `min(l * factor, l / factor) + bias`.

    repetition_penalty                                               factor, of what was read or said
    presence_penalty, frequency_penalty                              bias, of what was said
    suppress_tokens, begin_suppress_tokens, min_new_tokens,          bias -inf
    bad_words_ids of one id

Where a row asks for anything else it is chosen for on the host, from all of its logits.
"""

import numpy as np

from ..modeling.ops.drawing import CANDIDATES
from .sampling import RowSampler, SamplingParams

COLDEST = 1e-6
"""Below, quotients of logits leave float32."""
NEUTRAL = 1.0, 0.0


def expressible(sampler: RowSampler) -> bool:
    """Whether a device can choose the row's next token."""
    params = sampler.params
    forced = params.forced_eos_token_id and sampler.new == params.max_new_tokens - 1
    return not forced and _penalties_fit(params) and (not params.do_sample or _draw_fits(params))


def _penalties_fit(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty >= 1
        and all(len(ids) == 1 for ids in params.bad_words_ids)
        and not (params.sequence_bias or params.no_repeat_ngram_size or params.exponential_decay_length_penalty)
        and not params.remove_invalid_values
    )


def _draw_fits(params: SamplingParams) -> bool:
    return (
        0 < params.top_k <= CANDIDATES
        and params.temperature >= COLDEST
        and params.top_h is None
        and params.typical_p == 1
        and not (params.min_p or params.epsilon_cutoff or params.eta_cutoff)
    )


class Terms:
    """The numbers of one row. told: `{id: (factor, bias)}` of those that are not neutral, as of the last `news`."""

    def __init__(self) -> None:
        self.told: dict[int, tuple[float, float]] = {}
        self.penalised: set[int] = set()
        self.new: int | None = None

    def news(self, sampler: RowSampler) -> dict[int, tuple[float, float]]:
        """What has changed since the last call, for the row that all calls are for."""
        params = sampler.params
        ends, begin = set(params.eos_token_id), set(params.begin_suppress_tokens)
        banned = {ids[0] for ids in params.bad_words_ids} - ends | set(params.suppress_tokens)
        passing = begin | (ends if params.min_new_tokens else set())
        if self.new is None:
            said, touched = set(sampler.counts) | set(sampler.seen.tolist()), banned
        else:
            said, touched = set(sampler.history[len(sampler.history) - sampler.new + self.new :]), set()
        self.new = sampler.new
        if sampler.new < params.min_new_tokens:
            banned |= ends
        if sampler.new == 0:
            banned |= begin
        if params.repetition_penalty != 1:
            self.penalised |= said
        penalty, found = float(np.float32(params.repetition_penalty)), {}
        for id in said | touched | passing:
            count = sampler.counts.get(id, 0)
            bias = -float(np.float32(params.presence_penalty + params.frequency_penalty * count)) if count else 0.0
            term = penalty if id in self.penalised else 1.0, -np.inf if id in banned else bias
            if term != self.told.get(id, NEUTRAL):
                found[id] = term
        self.told |= found
        return found
