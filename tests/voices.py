"""Looking into the speech stage while it speaks."""

from contextlib import contextmanager

import numpy as np

from ms_omni.engine import choice
from ms_omni.engine.speech import SpeechSequence, SpeechStage


@contextmanager
def observed_speech():
    """The `SpeechSequence`s of the answers that are asked for meanwhile, in order, each with `logits` `[V]` of every draw, which the host makes."""
    found, begin, draws, expressible = [], SpeechStage.begin, SpeechSequence.next_code, choice.expressible

    def record_sequence(stage, id, *arguments):
        begin(stage, id, *arguments)
        found.append(stage.sequences[id])
        found[-1].logits = []

    def record_logits(sequence, logits):
        sequence.logits.append(logits.copy())
        return draws(sequence, logits)

    SpeechStage.begin, SpeechSequence.next_code, choice.expressible = record_sequence, record_logits, lambda sampler: False
    try:
        yield found
    finally:
        SpeechStage.begin, SpeechSequence.next_code, choice.expressible = begin, draws, expressible


def codes_of(sequence):
    """Codes `[frames, Q]` of a sequence."""
    return np.array(sequence.codes)
