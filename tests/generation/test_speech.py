"""Speech from the tiny model: streaming equals the whole, rows equal single conversations, seeds, endings.

Runs are short, since each frame takes 17 passes; module fixtures are shared by what can be seen in one run.
"""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ms_omni.engine.engine import engine_of
from ms_omni.engine.stream import join_audio, split_events
from ms_omni.generation import sampling
from ms_omni.outputs import AudioChunk, StreamEnd, TextDelta
from tests.voices import codes_of, observed_speech

TEXTS = ("hello world", "what is this? one two three", "yes")
FRAMES, WORDS = 6, 5
ROUNDING = 3e-5
"""Float32 sums of other shapes run in another order; the tiny vocoder makes up to 1.9e-5 of it, at a loudness of 1."""
GREEDY = {"talker_do_sample": False, "talker_max_new_tokens": FRAMES + 1, "max_new_tokens": WORDS}


@pytest.fixture(scope="module")
def run(tiny_model):
    """`run(**kwargs)`: all events of one stream, and the codes `[frames, Q]` of each row."""

    def stream(method="stream", **kwargs):
        with observed_speech() as voices:
            events = list(getattr(tiny_model, method)(**kwargs))
        chunks, end = split_events(events)
        waves, codes = join_audio(chunks, len(end.sequences)), list(map(codes_of, voices))
        return SimpleNamespace(events=events, chunks=chunks, end=end, codes=codes, waves=waves)

    return stream


@pytest.fixture(scope="module")
def free(run, ask):
    """The batch without any end token: every row speaks for all frames."""
    return run(**ask(*TEXTS), **GREEDY, eos_token_id=[], talker_eos_token_id=[])


@pytest.fixture(scope="module")
def ends(free):
    """End ids for text and codes, chosen so that row 0 falls silent by its codes after 3 frames; row 2 has no text."""
    text = free.end.sequences[2, -WORDS]
    assert text not in free.end.sequences[:2, -WORDS : -WORDS + 2]
    assert free.codes[0][3, 0] not in free.codes[0][:3, 0]
    return {"eos_token_id": [int(text)], "talker_eos_token_id": int(free.codes[0][3, 0])}


@pytest.fixture(scope="module")
def batch(run, ask, ends):
    return run(**ask(*TEXTS), **GREEDY, **ends)


# -- the stream and the whole ----------------------------------------------------------------------------------------


def test_free_rows_speak_for_all_frames(free, tiny_model):
    assert free.end.frames.tolist() == [FRAMES] * 3
    assert [codes.shape for codes in free.codes] == [(FRAMES, 16)] * 3
    samples = tiny_model.code2wav.num_samples(FRAMES)
    assert samples == 1920 * FRAMES - 555
    for wave in free.waves:
        assert wave.shape == (samples,) and wave.dtype == np.float32
        assert 0.01 < np.abs(wave).max() <= 1


def test_waves_are_the_vocoders_decode_of_the_codes(free, tiny_model):
    whole = tiny_model.code2wav.decode(np.stack(free.codes).transpose(0, 2, 1)).asnumpy()[:, 0]
    for row in range(3):
        assert np.abs(free.waves[row] - whole[row]).max() < ROUNDING


def test_generate_is_the_list_of_the_stream(batch, tiny_model, ask, ends):
    """With the padding on the right, which changes nothing."""
    ids, mask = (ask(*TEXTS)[name] for name in ("input_ids", "attention_mask"))
    order = np.argsort(-mask, axis=1, kind="stable")
    ids, mask = np.take_along_axis(ids, order, 1), np.take_along_axis(mask, order, 1)
    assert not mask[:, -1].all()
    answered, waves = tiny_model.generate(input_ids=ids, attention_mask=mask, **GREEDY, **ends)
    assert np.array_equal(answered[:, : ids.shape[1]], ids)
    assert np.array_equal(answered[:, ids.shape[1] :], batch.end.sequences[:, ids.shape[1] :])
    assert isinstance(waves, list) and len(waves) == 3
    for wave, streamed in zip(waves, batch.waves):
        assert np.array_equal(wave, streamed)


def test_chunks_follow_one_another_without_a_gap(tiny_model, ask, run, free):
    single = run(**ask(TEXTS[0]), **GREEDY, eos_token_id=[], talker_eos_token_id=[], token2wav_chunk_frames=[1, 2])
    sizes = [chunk.pcm.shape[1] for chunk in single.chunks]
    assert sizes == [1920 - 555, 2 * 1920, 2 * 1920, 1920]
    assert [chunk.first_sample for chunk in single.chunks] == np.cumsum([0, *sizes[:-1]]).tolist()
    assert single.waves.shape == (1, 1, sum(sizes))
    assert np.abs(single.waves[0, 0] - free.waves[0]).max() < ROUNDING  # other chunks, other batch: the same wave


def test_the_first_sound_comes_long_before_the_text_is_written(tiny_model, ask):
    """Four frames need text rows 0 to 3."""
    stream = tiny_model.stream(
        **ask("hi"), max_new_tokens=64, eos_token_id=[], talker_do_sample=False, talker_eos_token_id=[]
    )
    before = []
    for event in stream:
        if isinstance(event, AudioChunk):
            break
        before.append(event)
    stream.close()
    assert event.pcm.shape == (1, 4 * 1920 - 555) and event.first_sample == 0
    assert all(isinstance(item, TextDelta) for item in before)
    assert len(before) == 4 < 64 / 2


def test_the_events_end_with_counts_and_timings(batch, ask, ends):
    *events, end = batch.events
    assert isinstance(end, StreamEnd) and not any(isinstance(event, StreamEnd) for event in events)
    texts = [event for event in events if isinstance(event, TextDelta)]
    assert np.array_equal(np.stack([text.token for text in texts], axis=1), end.sequences[:, -len(texts) :])
    assert end.text_tokens.tolist() == np.sum([text.active for text in texts], axis=0).tolist()
    assert end.text_tokens[2] == 1
    assert 0 < end.first_text_s < end.first_audio_s < end.total_s


def test_text_is_the_same_with_and_without_speech(batch, tiny_model, ask, ends):
    ids, _ = tiny_model.generate(**ask(*TEXTS), max_new_tokens=WORDS, eos_token_id=ends["eos_token_id"], return_audio=False)
    assert np.array_equal(ids, batch.end.sequences)


# -- rows and single conversations -----------------------------------------------------------------------------------


def test_rows_end_on_their_own(batch, free, tiny_model, ends):
    frames = batch.end.frames.tolist()
    assert frames[0] == 3 and frames[2] == 0
    assert len(set(frames)) == 3
    assert [len(wave) for wave in batch.waves] == [tiny_model.code2wav.num_samples(n) for n in frames]
    assert np.array_equal(batch.codes[0], free.codes[0][:3]) and [len(codes) for codes in batch.codes] == frames


@pytest.mark.parametrize("row", [0, 1, 2])
def test_rows_equal_single_conversations(row, batch, run, ask, ends):
    single = run(**ask(TEXTS[row]), **GREEDY, **ends)
    assert single.waves.shape == (1, 1, len(batch.waves[row]))
    assert single.end.frames[0] == batch.end.frames[row]
    assert np.abs(single.waves[0, 0] - batch.waves[row]).max(initial=0) < ROUNDING
    written = int(single.end.text_tokens[0])
    assert np.array_equal(single.end.sequences[0, -written:], batch.end.sequences[row, -WORDS:][:written])


def test_an_empty_answer_is_an_empty_wave(tiny_model, ask, ends):
    ids, wave = tiny_model.generate(**ask(TEXTS[2]), **GREEDY, **ends)
    assert wave.shape == (1, 1, 0) and wave.dtype == np.float32
    assert ids[0, -1] == ends["eos_token_id"][0]


def test_a_talker_that_stops_at_once_gives_an_empty_wave(tiny_model, ask, free):
    code = int(free.codes[0][0, 0])
    _, wave = tiny_model.generate(**ask(TEXTS[0]), **GREEDY, eos_token_id=[], talker_eos_token_id=code)
    assert wave.shape == (1, 1, 0)


def test_the_text_is_written_to_its_end_when_the_talker_stops_first(tiny_model, ask, free):
    options = {**GREEDY, "max_new_tokens": 9, "talker_max_new_tokens": 2}
    ids, wave = tiny_model.generate(**ask(TEXTS[0]), **options, eos_token_id=[], talker_eos_token_id=[])
    assert ids.shape[1] == ask(TEXTS[0])["input_ids"].shape[1] + 9
    assert wave.shape[-1] == tiny_model.code2wav.num_samples(1)


# -- sampling --------------------------------------------------------------------------------------------------------


def test_greedy_draws_nothing_anywhere(tiny_model, ask, monkeypatch):
    def draw(*_):
        raise AssertionError("a random number was drawn")

    monkeypatch.setattr(sampling, "draw", draw)
    _, wave = tiny_model.generate(
        **ask("hi"),
        talker_do_sample=False,
        talker_max_new_tokens=2,
        max_new_tokens=2,
        eos_token_id=[],
        talker_eos_token_id=[],
    )
    assert wave.size


def test_the_same_seed_gives_the_same_codes_and_wave(run, ask, free):
    options = {"max_new_tokens": 3, "talker_max_new_tokens": 4, "eos_token_id": [], "talker_eos_token_id": []}
    first, again, other = (run(**ask(TEXTS[0]), **options, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.codes, again.codes) and np.array_equal(first.waves, again.waves)
    assert not np.array_equal(first.codes, other.codes) and not np.array_equal(first.waves, other.waves)
    assert not np.array_equal(first.codes[0], free.codes[0][:3])  # sampling is the default of the speech
    assert np.array_equal(first.end.sequences, other.end.sequences)  # and not of the text
    assert np.abs(first.codes[0][:, 1:] - other.codes[0][:, 1:]).max() > 0


def test_codes_stay_in_the_codebook(free, tiny_model):
    """The specials at the end of the talker's vocabulary are suppressed."""
    codes = np.stack(free.codes)
    assert codes.min() >= 0 and codes.max() < tiny_model.config.code2wav_config.codebook_size


# -- a given text ----------------------------------------------------------------------------------------------------


def test_say_sounds_like_an_answer_of_the_same_words(run, ask, free):
    """An answer that was cut off is said to its last word."""
    inputs = ask(TEXTS[0])
    ids = np.concatenate([inputs["input_ids"], free.end.sequences[:1, -WORDS:]], axis=1)
    spoken = run(
        "say",
        input_ids=ids,
        attention_mask=np.ones_like(ids),
        talker_do_sample=False,
        talker_max_new_tokens=FRAMES + 1,
        talker_eos_token_id=[],
    )
    assert not any(isinstance(event, TextDelta) for event in spoken.events)
    assert np.array_equal(spoken.end.sequences, ids) and spoken.end.text_tokens.tolist() == [0]
    assert np.array_equal(spoken.codes[0], free.codes[0])
    assert np.abs(spoken.waves[0, 0] - free.waves[0]).max() < ROUNDING


def test_an_opening_that_is_cut_short_is_filled_from_what_is_written(run, ask):
    """The prompt ends after `assistant`: the first token stands for the line end, the second is the first word."""
    options = {"talker_do_sample": False, "talker_max_new_tokens": 5, "eos_token_id": [], "talker_eos_token_id": []}
    ids = ask("hi")["input_ids"][:, :-1]
    short = run(input_ids=ids, **options, max_new_tokens=6)
    filled = short.end.sequences[:, : ids.shape[1] + 1]
    assert np.array_equal(short.codes, run(input_ids=filled, **options, max_new_tokens=5).codes)
    assert run(input_ids=ids, **options, max_new_tokens=1).end.frames.tolist() == [0]


def test_saying_nothing_is_an_empty_wave(run, ask):
    spoken = run("say", **ask("hi"))
    assert spoken.waves.shape == (1, 1, 0) and spoken.end.frames.tolist() == [0]


# -- breaking off ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_breaking_off_gives_all_up(how, tiny_model, ask, free):
    engine, options = engine_of(tiny_model), {**GREEDY, "eos_token_id": [], "talker_eos_token_id": []}
    with observed_speech() as voices:
        stream = tiny_model.stream(**ask(TEXTS[0]), **options, token2wav_chunk_frames=1)
        next(event for event in stream if isinstance(event, AudioChunk))
    assert len(engine.rows) == 1 and all(pool.used for pool in engine.scheduler.pools)
    voice = weakref.ref(voices.pop())
    if how == "closed":
        stream.close()
        assert list(stream) == []
    else:
        del stream
    gc.collect()
    assert not engine.rows and not any(pool.used for pool in engine.scheduler.pools)
    assert voice() is None  # and with it the vocoder's window
    _, wave = tiny_model.generate(**ask(TEXTS[0]), **options)
    assert np.abs(wave[0, 0] - free.waves[0]).max() < ROUNDING


def test_a_streamer_hears_all_of_a_spoken_answer(tiny_model, ask, free):
    put, ended = [], []
    streamer = SimpleNamespace(put=lambda ids: put.append(np.ravel(ids).tolist()), end=lambda: ended.append(1))
    tiny_model.generate(**ask(TEXTS[0]), **{**GREEDY, "talker_max_new_tokens": 2}, eos_token_id=[], streamer=streamer)
    assert put[0] == ask(TEXTS[0])["input_ids"][0].tolist()
    assert [ids[0] for ids in put[1:]] == free.end.sequences[0, -WORDS:].tolist()
    assert ended == [1]


# -- media -----------------------------------------------------------------------------------------------------------


def picture(width, height):
    ramp = np.arange(width * height * 3) % 251
    return {"type": "image", "image": Image.fromarray(ramp.reshape(height, width, 3).astype(np.uint8))}


def sound(seconds):
    wave = np.sin(np.arange(int(16_000 * seconds)) / 9).astype(np.float32) / 3
    return {"type": "audio", "audio": wave}


def test_speech_about_pictures_in_every_turn_and_sound(tiny_model, processor):
    """Only the user's picture (96 x 64 pixels: 3 x 2 tokens) and sound reach the talker; they must not be mixed up."""
    messages = [
        {"role": "system", "content": [picture(64, 64), {"type": "text", "text": "be kind"}]},
        {"role": "user", "content": [picture(96, 64), sound(0.5), {"type": "text", "text": "what is this"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "this: "}, picture(64, 128)]},
        {"role": "user", "content": "and?"},
    ]
    inputs = processor.apply_chat_template([messages], tokenize=True, return_dict=True, add_generation_prompt=True)
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 6], [1, 8, 4]]
    with observed_speech() as voices:
        _, wave = tiny_model.generate(
            **inputs,
            max_new_tokens=2,
            talker_max_new_tokens=3,
            talker_do_sample=False,
            eos_token_id=[],
            talker_eos_token_id=[],
        )
    assert wave.shape == (1, 1, 1920 * 2 - 555)
    time, height, width = voices[0].context.positions
    (first, *_), tokens = np.flatnonzero(time != width), 6
    first -= 1  # the picture's corner has equal positions
    assert (width[first : first + tokens] - first).tolist() == [0, 1, 2] * 2
    assert (height[first : first + tokens] - first).tolist() == [0] * 3 + [1] * 3
    assert (time[first : first + tokens] == first).all()
    rest = np.arange(len(time) - first - tokens) + first + 3
    assert (time[first + tokens :] == rest).all() and (width[first + tokens :] == rest).all()
