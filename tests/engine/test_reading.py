"""What somebody says is read while he still speaks, and the answer is the one to the whole."""

import numpy as np
import pytest

from ms_omni import Qwen3OmniMoeThinkerForConditionalGeneration
from ms_omni.engine.blocks import BLOCK, CHUNK
from ms_omni.engine.engine import Engine
from ms_omni.errors import InputError
from ms_omni.generation.checks import PREFILL_TOKENS
from ms_omni.input.audio import decode_audio
from ms_omni.outputs import StreamEnd
from tests.engine.callers import MINIATURE, answer, check_empty, codes
from tests.engine.test_engine import run

RATE, WINDOW = 16_000, 104
"""Tokens of the eight seconds that the encoder's attention spans."""
SPOKEN = {"prefill_tokens": BLOCK, "seed": 3, "max_new_tokens": 6, "talker_max_new_tokens": 12}


@pytest.fixture(scope="module")
def digits():
    """Three digits, then noise, 20 s in all."""
    with (MINIATURE / "samples/digits.wav").open("rb") as file:
        wave, noise = decode_audio(file, "digits.wav"), np.random.default_rng(0)
    whole = noise.normal(size=20 * RATE).astype(np.float32) * 1e-3
    whole[: len(wave)] += wave
    return whole


@pytest.fixture
def heard(world):
    """`heard(wave, ..., before=())`: model inputs of a question about sounds."""

    def ask(*waves, before=()):
        items = [{"type": "audio", "audio": wave} for wave in waves] + [{"type": "text", "text": "What number do you hear?"}]
        messages = [*before, {"role": "user", "content": items}]
        return world.processor.apply_chat_template([messages], tokenize=True, return_dict=True, add_generation_prompt=True)

    return ask


class Watch:
    """Which tokens an engine reads, and how often it calls an encoder."""

    def __init__(self, engine):
        self.engine, self.read, self.encoded = engine, [], 0
        read, encoded = engine.thinker.read, engine.thinker._encoded
        engine.thinker.read = lambda row, start, stop: self.read.append((start, stop)) or read(row, start, stop)
        engine.thinker._encoded = lambda call: self._count() or encoded(call)

    def _count(self):
        self.encoded += 1

    def since(self):
        """Both, since the last time."""
        found = self.read, self.encoded
        self.read, self.encoded = [], 0
        return found


def done(engine, id):
    """The answer of one, and its codes."""
    row = engine.rows[id]
    return answer(list(engine.events(id))), codes(row)


def ahead(engine, inputs, **options):
    """How many tokens are in the cache behind a call of `read`."""
    (end,) = engine.events(engine.read(**inputs, prefill_tokens=BLOCK, **options))
    assert isinstance(end, StreamEnd) and end.text_tokens.tolist() == end.frames.tolist() == [0]
    assert np.array_equal(end.sequences[0], inputs["input_ids"][0, : end.sequences.shape[1]])
    return end.sequences.shape[1]


def alone(world, asked, **options):
    engine = Engine(world.model, max_rows=1, tokens=2048)
    return done(engine, engine.add(**{**asked, **SPOKEN, **options}))


def test_a_sound_that_grows_is_read_while_it_does(world, digits, heard):
    engine = Engine(world.model, max_rows=2, tokens=2048)
    watch, known = Watch(engine), []
    for seconds in range(2, 21, 2):
        asked = heard(digits[: seconds * RATE])
        known.append(ahead(engine, asked, grows=True))
    read, encoded = watch.since()
    assert known == sorted(known) and known[-1] >= BLOCK
    assert [stop for _, stop in read] == list(range(BLOCK, known[-1] + 1, BLOCK)) and encoded == 2  # each once
    found = done(engine, engine.add(**asked, **SPOKEN))
    read, encoded = watch.since()
    assert read[0][0] == known[-1] and read[-1][1] - read[0][0] < BLOCK + WINDOW and encoded == 1
    assert found == alone(world, asked) and found[0][1]
    usual = alone(world, asked, prefill_tokens=None)
    assert found[0][0] == usual[0][0]
    check_empty(engine)


def test_a_louder_sound_later_changes_what_was_heard(world, digits, heard):
    """The floor of the features follows the loudest sound."""
    engine, louder = Engine(world.model, max_rows=2, tokens=2048), digits * 1e-2
    quiet = heard(louder[: 18 * RATE])
    louder[18 * RATE :] *= 3e4
    asked = heard(louder)
    assert ahead(engine, quiet, grows=True) >= BLOCK
    watch = Watch(engine)
    assert done(engine, engine.add(**asked, **SPOKEN)) == alone(world, asked)
    read, encoded = watch.since()
    assert read[0][0] == 0 and encoded == 3


def test_a_second_turn_reads_what_is_new(world, digits, heard):
    engine, first = Engine(world.model, tokens=2048), heard(digits[: 10 * RATE])
    done(engine, engine.add(**first, **SPOKEN))
    said = {"role": "user", "content": [{"type": "audio", "audio": digits[: 10 * RATE]}, {"type": "text", "text": "What number do you hear?"}]}  # fmt: skip
    second = heard(digits[: 6 * RATE], before=(said, {"role": "assistant", "content": "374"}))
    watch, expected = Watch(engine), alone(world, second)
    assert done(engine, engine.add(**second, **SPOKEN)) == expected
    read, _ = watch.since()
    shared = first["input_ids"].shape[1] // BLOCK * BLOCK
    assert np.array_equal(first["input_ids"][0, :shared], second["input_ids"][0, :shared])
    assert shared and read[0][0] == shared and read[-1][1] == second["input_ids"].shape[1]


def test_strides_do_not_mix(world):
    """Whoever reads beside an answer, and in whatever steps, it is the one of an engine of its own."""
    questions = [world.questions[-1], world.questions[-2], world.questions[-4]]
    requests = [
        {**question, "max_new_tokens": 4, "talker_max_new_tokens": 6, "seed": 1, "prefill_tokens": chunk}
        for chunk in (BLOCK, None, 3 * BLOCK)
        for question in questions
    ]
    expected = []
    for request in requests:
        fresh = Engine(world.model, max_rows=1, tokens=2048)
        expected.append(answer(list(fresh.events(fresh.add(**request)))))
    engine = Engine(world.model, max_rows=4, tokens=4096)
    reading = [engine.read(**question, prefill_tokens=BLOCK) for question in questions[:2]]
    engine.added -= set(reading)  # nobody listens
    assert [answer(events) for events in run(engine, requests)] == expected
    for id in reading:
        engine.cancel(id)
    check_empty(engine)
    assert [answer(events) for events in run(engine, requests)] == expected  # found again


def test_what_is_known_is_not_read_again(world):
    engine, question = Engine(world.model, tokens=2048), world.questions[-1]
    watch, whole = Watch(engine), question["input_ids"].shape[1] // BLOCK * BLOCK
    assert [ahead(engine, question) for _ in range(2)] == [whole] * 2
    assert [stop for _, stop in watch.since()[0]] == list(range(BLOCK, whole + 1, BLOCK))
    short = {name: value[:, :100] for name, value in question.items() if name in ("input_ids", "attention_mask")}
    assert ahead(engine, short) == 0 and not watch.since()[0]
    assert ahead(engine, question, grows=True) == 0  # no sound is in it
    check_empty(engine)


def test_who_asks_what_is_being_read_waits_for_it(world):
    engine, question = Engine(world.model, tokens=2048), world.questions[-1]
    watch, asked = Watch(engine), {**question, "max_new_tokens": 2, "return_audio": False, "prefill_tokens": BLOCK}
    reading, id = engine.read(**question, prefill_tokens=BLOCK), engine.add(**asked)
    while engine.added:
        engine.step()
    length = question["input_ids"].shape[1]
    assert reading != id and sum(stop - start for start, stop in watch.since()[0]) == length


def test_reading_ahead_can_be_given_up(world):
    engine = Engine(world.model, tokens=2048)
    id = engine.read(**world.questions[-1], prefill_tokens=BLOCK)
    engine.step()
    assert engine.scheduler.pools[0].used
    engine.cancel(id)
    check_empty(engine)
    assert engine.step() == []


def test_what_read_does_not_take(world):
    engine, question = Engine(world.model, tokens=256), world.questions[0]
    assert tuple(range(BLOCK, CHUNK + 1, BLOCK)) == PREFILL_TOKENS
    for wrong in (100, 0, 640, "all"):
        with pytest.raises(InputError, match="prefill_tokens is .*expected one of"):
            engine.read(**question, prefill_tokens=wrong)
        with pytest.raises(InputError, match="prefill_tokens is .*expected one of"):
            engine.add(**question, prefill_tokens=wrong)
    with pytest.raises(InputError, match="read has no argument 'max_new_tokens'"):
        engine.read(**question, max_new_tokens=3)
    with pytest.raises(InputError, match="grows is 3"):
        engine.read(**question, grows=3)
    with pytest.raises(InputError, match="takes one conversation"):
        engine.read(input_ids=np.ones((2, 5), np.int64))
    with pytest.raises(InputError, match="make the prompt shorter"):
        engine.read(**world.questions[-1])


def test_prompts_are_read_ahead_into_packed_layers(ascend):
    """In chunks of a block, whose blocks another row finds."""
    thinker = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(MINIATURE, progress=False)
    ids = np.random.default_rng(0).integers(20, 90, (1, 300))
    asked, found = {"input_ids": ids, "prefill_tokens": 128, "max_new_tokens": 5, "eos_token_id": []}, []
    for ahead in (False, True):
        engine, read = Engine(thinker, max_rows=1, tokens=1024), []
        assert engine.thinker.pool.stack is not None
        if ahead:
            list(engine.events(engine.read(input_ids=ids, prefill_tokens=128)))
        chunk = engine.thinker.read
        engine.thinker.read = lambda row, *at, chunk=chunk, read=read: read.append(at) or chunk(row, *at)
        found.append(list(engine.events(engine.add(**asked)))[-1].sequences.tolist())
        assert read == [(0, 128), (128, 256), (256, 300)][2 * ahead :]
    assert found[0] == found[1]
