"""Looking into the speech stage while it speaks."""

from contextlib import contextmanager

import numpy as np

from ms_omni.engine import choice
from ms_omni.engine.speech import SpeechStage, Voice


@contextmanager
def watched_voices():
    """The `Voice`s of the answers that are asked for meanwhile, in order, each with `logits` `[V]` of every draw, which the host makes."""
    found, begin, draws, expressible = [], SpeechStage.begin, Voice.draws, choice.expressible

    def keep_voice(stage, id, *arguments):
        begin(stage, id, *arguments)
        found.append(stage.voices[id])
        found[-1].logits = []

    def keep_logits(voice, logits):
        voice.logits.append(logits.copy())
        return draws(voice, logits)

    SpeechStage.begin, Voice.draws, choice.expressible = keep_voice, keep_logits, lambda sampler: False
    try:
        yield found
    finally:
        SpeechStage.begin, Voice.draws, choice.expressible = begin, draws, expressible


def codes_of(voice):
    """Codes `[frames, Q]` of a voice."""
    return np.array(voice.codes)
