"""Text and speech together: three pull-based generators, one feeding the next.

    thinker steps -> hand-over -> codec frames -> audio chunks

Asking for the next chunk runs the talker, and the talker runs the thinker only as far as it needs text, so the first
sound does not wait for the whole answer.
"""

import threading
import time
from itertools import chain

import numpy as np

from ..errors import InputError
from ..outputs import AudioChunk, HostArray, StreamEnd, TextDelta
from .detokenize import IncrementalDecoder
from .frames import codec_frames
from .hand_over import TextHandOver, assistant_turns
from .text import TextGeneration
from .waves import AudioChunker


class OmniStream:
    """Iterator of `TextDelta`, `AudioChunk` and one `StreamEnd`. `close()` stops early and frees the caches; so does
    dropping the iterator, which is why the work behind it does not know it. Several threads may share one.

    request: see `request.py`.
    """

    def __init__(self, model, request):
        self.work = Answer(model, request)
        self._events = model.thinker.accord.turns(self.work.events())
        self._lock = threading.RLock()

    def __iter__(self):
        return self

    def __next__(self):
        with self._lock:
            return next(self._events)

    def close(self):
        """Stops early; the caches of thinker, talker, predictor and vocoder are freed."""
        with self._lock:
            self._events.close()


class Answer:
    """The work behind an `OmniStream`: `events()` does it; afterwards `text.result` has the text."""

    def __init__(self, model, request):
        self.started = time.perf_counter()
        self.model, self.inputs, self.speech, self.given = model, request.inputs, request.speech, request.given
        listen = None if request.speech is None else model.config.talker_config.accept_hidden_layer
        model.thinker.accord.begin(request.inputs, request.text, request.speech, request.given, request.options.described())
        self.text = TextGeneration(model.thinker, request.inputs, request.text, listen, request.options)
        self.tokens, self.active, self.fresh = [], [], []
        self.batch = len(self.text.prompt_ids)
        speech = request.speech
        self.chunker = None if speech is None else AudioChunker(model.code2wav, self.batch, speech.chunk_frames)
        tokenizer = request.tokenizer
        self.decoders = tokenizer and [IncrementalDecoder(tokenizer) for _ in range(self.batch)]
        self.first_text_s = self.first_audio_s = None

    def events(self):
        """All events; closing the generator frees the caches."""
        source = self._speak() if self.speech is not None else self._write()
        try:
            for event in source:
                yield from self._take_fresh()
                if event is not None:
                    yield event
            yield from self._take_fresh()
            yield self._end()
        finally:
            source.close()
            self.text.close()
            if self.chunker is not None:
                self.chunker.stream.reset()

    def _write(self):
        """Text alone: None per step, the deltas come from `_watched`."""
        for _ in self._watched():
            yield None

    def _watched(self):
        """The thinker's steps, noted down as they pass."""
        for step in self.text:
            self.first_text_s = self.first_text_s or self._clock()
            self.tokens.append(step.token)
            self.active.append(step.active)
            self.fresh.append(TextDelta(step.token, step.active, self._text(step)))
            yield step

    def _text(self, step):
        if self.decoders is None:
            return None
        rows = zip(self.decoders, step.token, step.active, step.going)
        return tuple(decoder.push(token, not going) if active else "" for decoder, token, active, going in rows)

    def _speak(self):
        model, config, speech = self.model, self.model.config, self.speech
        steps = self._watched()
        if self.given:
            self.text.read_prompt()
            steps = iter(())
        else:
            steps = chain([next(steps)], steps)  # the first step reads the prompt
        turns = assistant_turns(self.text.prompt.ids, config, self.given)
        hand_over = TextHandOver(steps, turns, config.tts_eos_token_id, config.tts_pad_token_id)
        media = {
            "image_grid_thw": self.inputs.get("image_grid_thw"),
            "video_grid_thw": self.inputs.get("video_grid_thw"),
            "second_per_grids": self.inputs.get("video_second_per_grid"),
        }
        yield None
        if hand_over.has_text().any():
            frames = codec_frames(model, self.text.prompt, media, hand_over, speech)
            yield from self._sound(frames)
        while hand_over.running:
            hand_over.pull()
            yield None

    def _sound(self, frames):
        """A chunk or None after every frame."""
        for frame in frames:
            yield self._timed(self.chunker.push(frame))
        yield self._timed(self.chunker.flush())

    def _timed(self, chunk):
        if chunk is not None:
            self.first_audio_s = self.first_audio_s or self._clock()
        return chunk

    def _take_fresh(self):
        deltas, self.fresh = self.fresh, []
        yield from deltas

    def _clock(self):
        return time.perf_counter() - self.started

    def _end(self):
        prompt = self.text.prompt_ids.astype(np.int64)
        new = np.stack(self.tokens, axis=1) if self.tokens else prompt[:, :0]
        counts = np.sum(self.active, axis=0) if self.active else np.zeros(self.batch, np.int64)
        frames = np.zeros(self.batch, np.int64) if self.chunker is None else self.chunker.spoken
        return StreamEnd(
            np.concatenate([prompt, new], axis=1), counts, frames, self.first_text_s, self.first_audio_s, self._clock()
        )


def join_audio(chunks, batch):
    """The chunks of a stream as waves: `[1, 1, samples]` for one conversation, a list of `[samples]` for a batch."""
    silence = np.zeros(0, np.float32)
    rows = [
        HostArray.of(np.concatenate([silence, *(chunk.pcm[row, : chunk.samples[row]] for chunk in chunks)]))
        for row in range(batch)
    ]
    return rows[0][None, None] if batch == 1 else rows


def split_events(events):
    """The audio chunks and the end event of a whole stream."""
    chunks, end = [], None
    for event in events:
        if isinstance(event, AudioChunk):
            chunks.append(event)
        elif isinstance(event, StreamEnd):
            end = event
    if end is None:
        raise InputError("rank 0 stopped this request before its end, so there is no result")
    return chunks, end
