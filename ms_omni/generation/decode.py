"""Whole text results: the list of a text loop's steps."""

import numpy as np

from ..outputs import GenerateOutput, HostArray, TextDelta, ThinkerStep
from .text import StopStrings, TextGeneration


def generate_text(
    thinker,
    inputs,
    params,
    stop_strings=None,
    tokenizer=None,
    streamer=None,
    return_dict_in_generate=False,
    output_scores=False,
):
    """Prompt and new ids int64 `[B, T + new]`, or a `GenerateOutput` around them.

    streamer: an object with `put(ids)` and `end()`, as transformers' `TextStreamer` and `TextIteratorStreamer`; it is
    given the prompt and then one token per step.
    """
    stopping = StopStrings(stop_strings, tokenizer) if stop_strings else None
    thinker.accord.begin(inputs, params, stop_strings, output_scores)
    steps = TextGeneration(thinker, inputs, params, stopping=stopping, whole_logits=output_scores)
    tokens, scores = [], ()
    for step in feed_streamer(thinker.accord.turns(steps), steps.prompt_ids, streamer):
        tokens.append(step.token)
        scores += (step.logits,) if output_scores else ()
    sequences = np.concatenate([steps.prompt_ids.astype(np.int64), np.stack(tokens, axis=1)], axis=1)
    return text_result(sequences, scores, return_dict_in_generate)


def text_result(sequences, scores, return_dict):
    """The ids, or the ids with what else was asked for."""
    sequences = HostArray.of(sequences)
    return GenerateOutput(sequences, scores or None) if return_dict else sequences


def feed_streamer(steps, prompt_ids, streamer):
    """Passes steps (or events) on; a streamer is given the prompt, then each new token, and is always ended."""
    if streamer is None:
        yield from steps
        return
    try:
        streamer.put(np.asarray(prompt_ids))
        for step in steps:
            if isinstance(step, (ThinkerStep, TextDelta)):
                streamer.put(step.token)
            yield step
    finally:
        streamer.end()
