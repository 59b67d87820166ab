"""Asks the model one sample after the other, and plays its speech back to it."""

from dataclasses import dataclass

import numpy as np

from ..input.load import load_audio
from ..outputs import AudioChunk, StreamEnd, TextDelta

SPEECH_HZ = 24_000
MAX_TOKENS, MAX_FRAMES = 48, 200  # of an answer; a frame is 80 ms
HEAR_AGAIN = "What number do you hear?"


@dataclass(frozen=True)
class Answer:
    """text; speech float32 at 24 kHz; seconds from the request to the first text, the first sound and the end.

    heard: what the model heard in its own speech, for answers that are numbers; else None.
    """

    text: str
    speech: np.ndarray
    speaker: str
    first_text_s: float
    first_sound_s: float
    total_s: float
    heard: str = None


def ask(model, processor, sample, speaker, seed):
    """The `Answer` to one sample."""
    inputs = _inputs(processor, sample.messages, sample.use_audio_in_video)
    options = {
        "use_audio_in_video": sample.use_audio_in_video,
        "seed": seed,
        "tokenizer": processor.tokenizer,
        "max_new_tokens": MAX_TOKENS,
        "return_audio": model.has_talker,
    }
    if model.has_talker:
        options |= {"speaker": speaker, "talker_max_new_tokens": MAX_FRAMES}
    text, chunks, end = "", [np.zeros(0, np.float32)], None
    for event in model.stream(**inputs, **options):
        if isinstance(event, AudioChunk):
            chunks.append(np.asarray(event.pcm[0, : event.samples[0]]))
        elif isinstance(event, TextDelta):
            text += event.text[0]
        elif isinstance(event, StreamEnd):
            end = event
    text, speech = text.strip(), np.concatenate(chunks)
    heard = hear(model, processor, speech) if text.isdigit() and len(speech) else None
    return Answer(text, speech, speaker, end.first_text_s, end.first_audio_s, end.total_s, heard)


def hear(model, processor, speech):
    """What the model hears in a sound (float32 at 24 kHz)."""
    content = [{"type": "audio", "audio": load_audio((speech, SPEECH_HZ))}, {"type": "text", "text": HEAR_AGAIN}]
    inputs = _inputs(processor, [{"role": "user", "content": content}], False)
    ids, _ = model.generate(**inputs, return_audio=False, max_new_tokens=MAX_TOKENS)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


def _inputs(processor, messages, use_audio_in_video):
    return processor.apply_chat_template(
        [messages], tokenize=True, return_dict=True, add_generation_prompt=True, use_audio_in_video=use_audio_in_video
    )
