"""The answers of one call as the events of a batch: what `stream` yields and `generate` collects."""

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..arrays import HostArray
from ..errors import InputError
from ..generation.inputs import prompt_of
from ..generation.request import Request
from ..outputs import AudioChunk, GenerateOutput, StreamEnd, TextDelta, TextIds
from .engine import Engine
from .kv_pool import copy_into_cache
from .sequence import Sequence


class Stream:
    """Iterator of `TextDelta`, `AudioChunk` and one `StreamEnd`. `close()` stops early and gives all up; so does dropping the
    iterator. Several threads may share one.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self.request, self.engine = request, engine
        self._ids = engine.submit(request)
        self.rows = [engine.rows[id] for id in self._ids]
        events, alone = [engine.events(id) for id in self._ids], len(self.rows) == 1
        if alone and len(self.rows[0].prompt) == self.prompt_ids.shape[1]:
            (self._events,) = events
        else:
            self._events = merged(self.rows, events, self.prompt_ids, request.text.pad_id)
        self._lock = threading.RLock()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._lock:
            try:
                return next(self._events)
            except BaseException:  # also the end, and an interruption: the other rows are not read any more
                self._cancel()
                raise

    def close(self) -> None:
        """Stops early."""
        with self._lock:
            self._events.close()
            self._cancel()

    def _cancel(self):
        for id in getattr(self, "_ids", ()):
            self.engine.cancel(id)

    __del__ = _cancel

    @property
    def prompt_ids(self) -> np.ndarray:
        """Ids int64 `[B, T]` of the prompts as they were given, padding included, each as often as it is answered."""
        ids, copies = prompt_of(self.request.inputs)[0], self.request.options.num_return_sequences
        return ids.repeat(copies, axis=0).astype(np.int64)


def merged(rows: Rows[Sequence], sources: Rows[Iterator], prompt_ids: np.ndarray, pad: int) -> Generator[Any, None, None]:
    """The events of several answers as those of a batch: a `TextDelta` holds the next token of each, an `AudioChunk` as many
    samples as there are of all rows that still speak. prompt_ids `[B, T]`, pad: what a shorter answer is filled up with.
    """
    batch = len(rows)
    texts, sounds = [deque() for _ in rows], [np.zeros(0, np.float32) for _ in rows]
    ends: list[StreamEnd | None] = [None] * batch
    samples = 0
    while None in ends:
        for index, source in enumerate(sources):
            if ends[index] is not None:
                continue
            event = next(source, None)
            if event is None:  # rank 0 has given it up
                return
            if isinstance(event, TextDelta):
                texts[index].append(event)
            elif isinstance(event, AudioChunk):
                sounds[index] = np.concatenate([sounds[index], event.pcm[0]])
            else:
                ends[index] = event
        while any(texts) and all(texts[i] or not rows[i].text.active for i in range(batch)):
            yield _delta([deltas.popleft() if deltas else None for deltas in texts], pad)
        speaking = [len(sounds[i]) for i in range(batch) if ends[i] is None]
        count = min(speaking) if speaking else max(map(len, sounds))
        if count:
            yield _chunk(samples, [sound[:count] for sound in sounds], count)
            sounds, samples = [sound[count:] for sound in sounds], samples + count
    yield _end(ends, np.concatenate([prompt_ids, new_ids(rows, pad)], axis=1))


def new_ids(rows: Rows[Sequence], pad: int) -> np.ndarray:
    """What was written, int64 `[B, n]`, shorter rows filled up."""
    length = max(len(row.text.tokens) for row in rows)
    filled = [row.text.tokens + [pad] * (length - len(row.text.tokens)) for row in rows]
    return np.array(filled, np.int64).reshape(len(rows), length)


def _delta(deltas, pad):
    tokens = np.array([pad if delta is None else int(delta.token[0]) for delta in deltas], np.int64)
    active = np.array([delta is not None for delta in deltas])
    known = any(delta is not None and delta.text is not None for delta in deltas)
    text = tuple("" if delta is None else delta.text[0] for delta in deltas) if known else None
    known_logprobs = [delta and delta.logprobs for delta in deltas]
    logprobs = tuple(found and found[0] for found in known_logprobs) if any(known_logprobs) else None
    return TextDelta(tokens, active, text, logprobs)


def _chunk(first, sounds, count):
    pcm = np.stack([np.pad(sound, (0, count - len(sound))) for sound in sounds])
    return AudioChunk(first, pcm, np.array(list(map(len, sounds))))


def _end(ends, sequences):
    tokens, frames = (np.concatenate([getattr(end, name) for end in ends]) for name in ("text_tokens", "frames"))
    times = [[getattr(end, name) for end in ends] for name in ("first_text_s", "first_audio_s", "total_s")]
    first, audible, total = ([value for value in values if value is not None] for values in times)
    reasons, cached = sum((end.reasons for end in ends), ()), np.concatenate([end.cached_tokens for end in ends])
    first_text_s, first_audio_s = min(first, default=None), min(audible, default=None)
    return StreamEnd(sequences, tokens, frames, first_text_s, first_audio_s, max(total), reasons, cached)


def text_result(stream: Stream) -> Any:
    """Prompts and new ids int64 `[B, T + n]` of a stream that has ended, or a `GenerateOutput` with what else was asked for."""
    rows, options = stream.rows, stream.request.options
    tokens = new_ids(rows, stream.request.text.pad_id)
    ids = TextIds.of(np.concatenate([stream.prompt_ids, tokens], axis=1))
    cache = _cache(stream)
    if not options.return_dict_in_generate:
        return ids
    return GenerateOutput(
        ids,
        scores=_steps(rows, "scores", tokens.shape[1]) if options.output_scores else None,
        logits=_steps(rows, "logits", tokens.shape[1]) if options.output_logits else None,
        hidden_states=_states(rows) if options.output_hidden_states else None,
        past_key_values=cache,
    )


def _cache(stream):
    """The caller's cache, or a new one if one is wanted, with all that was read, laid out as the ids are: `[B, T + n - 1]`."""
    rows, options = stream.rows, stream.request.options
    cache = options.past_key_values
    if cache is None and not options.keep_cache:
        return None
    valid = prompt_of(stream.request.inputs)[1].repeat(options.num_return_sequences, axis=0)
    width = valid.shape[1]
    if cache is None:
        cache = stream.engine.thinker_cell.model.new_cache(len(rows), width)
    parts, held = [], cache.length
    for row, mask in zip(rows, valid):
        new, count = int(mask[held:].sum()), len(row.text.tokens) - 1
        parts.append((row.new_kv, np.arange(width - new, width + count)))
    cache.attention_mask[:, :held] = valid[:, :held]
    copy_into_cache(cache, parts, width + max(len(row.text.tokens) for row in rows) - 1)
    cache.rope_deltas = np.array([[row.prompt.following - np.float32(len(row.prompt))] for row in rows], np.float32)
    return cache


def _steps(rows, name, length):
    """Per step `[B, V]`; zeros for rows that had ended."""
    steps = [getattr(row.text, name) for row in rows]
    empty = np.zeros_like(steps[0][0])
    return tuple(
        HostArray.of(np.stack([row[step] if step < len(row) else empty for row in steps])) for step in range(length)
    )


def _states(rows):
    """Per step the states of all layers `[B, S, D]`, of the prompts (padded on the left) first; zeros for rows that had ended."""
    found = [_steps_of(row) for row in rows]
    layers = range(len(found[0][0]))
    return tuple(
        tuple(_stacked([row[step] if step < len(row) else None for row in found], layer) for layer in layers)
        for step in range(max(map(len, found)))
    )


def _steps_of(row):
    """The states of a row per step: the chunks of its prompt joined."""
    chunks = -(-len(row.prompt) // row.prompt.chunk)
    prompt = tuple(np.concatenate(parts, axis=1) for parts in zip(*row.hidden_states[:chunks]))
    return [prompt, *row.hidden_states[chunks:]]


def _stacked(states, layer):
    arrays = [None if state is None else state[layer][0] for state in states]
    length, width = (
        max(len(array) for array in arrays if array is not None),
        next(a for a in arrays if a is not None).shape[1],
    )
    whole = np.zeros((len(arrays), length, width), np.float32)
    for line, array in zip(whole, arrays):
        if array is not None:
            line[length - len(array) :] = array
    return HostArray.of(whole)


def join_audio(chunks: Rows[AudioChunk], batch: int) -> Any:
    """The chunks of a stream as waves: `[1, 1, samples]` for one conversation, a list of `[samples]` for a batch."""
    silence = np.zeros(0, np.float32)
    rows = [
        HostArray.of(np.concatenate([silence, *(chunk.pcm[row, : chunk.samples[row]] for chunk in chunks)]))
        for row in range(batch)
    ]
    return rows[0][None, None] if batch == 1 else rows


def split_events(events: Iterable[Any]) -> tuple[list[AudioChunk], StreamEnd]:
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


@contextmanager
def ended_streamer(kwargs: dict) -> Iterator[Any]:
    """Takes the streamer out of the arguments of `generate`. Whatever happens in the block, it is ended.

    A streamer has `put(ids)` and `end()`, as transformers' `TextStreamer` and `TextIteratorStreamer`. Raises `InputError` for
    what has not.
    """
    given = [kwargs.pop(name, None) for name in ("streamer", "thinker_streamer")]
    streamer = next((streamer for streamer in given if streamer is not None), None)
    if streamer is None:
        yield None
        return
    if not (callable(getattr(streamer, "put", None)) and callable(getattr(streamer, "end", None))):
        raise InputError(f"streamer is {streamer!r}, expected an object with put(ids) and end(), such as a TextStreamer")
    try:
        yield streamer
    finally:
        streamer.end()


def feed_streamer(events: Iterable[Any], prompt_ids: np.ndarray, streamer: Any) -> Iterator[Any]:
    """Passes the events of a stream on; a streamer is given the prompt, then each new token `[B]`."""
    if streamer is not None:
        streamer.put(np.asarray(prompt_ids))
    for event in events:
        if streamer is not None and isinstance(event, TextDelta):
            streamer.put(event.token)
        yield event
