"""Keys and values as codes of 8 bits: rows stay by themselves, a prefix is found again, more tokens fit, and answers hardly change."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.commands.options import add_engine
from ms_omni.engine import kv_pool
from ms_omni.engine.engine import Engine
from ms_omni.engine.kv_pool import KVPool
from ms_omni.errors import InputError
from ms_omni.modeling import ops
from ms_omni.modeling.ops.reference import Reference
from tests.engine import test_kv_pool as pools
from tests.engine.callers import Callers, World, answer, check_empty
from tests.engine.test_kv_pool import Row, gap, graphs, model_of, needs_fused  # noqa: F401

INT8 = {"kv_cache_dtype": "int8"}


class Codes(pools.Engine):
    """That of the other tests on a pool of codes, whose scales are NaN wherever nobody has anything."""

    def __init__(self, model, head, blocks=64, block=pools.P, chunk=pools.CHUNK, compile_after=None):
        super().__init__(model, head, blocks, block, chunk, compile_after)
        self.pool = KVPool.of(model, blocks, block, "int8")
        for scales in self.pool.parts[1]:
            scales.set_data(Tensor(np.full(scales.shape, np.nan, np.float32)))
        self.step = kv_pool.PoolStep(model, head, self.pool, compile_after)


def decoded(engine, row, tokens):
    return [[part[0] for part in engine.decode([row], token)] for token in range(tokens)]


@needs_fused
@pytest.mark.parametrize("stack", ["odd", "threads"])
def test_every_row_has_the_bits_of_its_lone_run(stack):
    model, head = model_of(stack)
    rows = [Row(prompt, 2, model.config.hidden_size) for prompt in (1, 16, 63, 65, 200)]
    expected = {}
    for row in rows:
        alone = Codes(model, head)
        expected[row] = alone.read(row), decoded(alone, row, 2)
    engine = Codes(model, head, blocks=90)
    for row in rows[::-1]:
        assert np.array_equal(engine.read(row), expected[row][0])
    engine.pool.reserve(100)  # codes are kept as they are
    for token, (batch, bucket, columns) in enumerate(((rows, 8, 32), (rows[::-1], 5, 16))):
        for name, found in enumerate(engine.decode(batch, token, bucket, columns)):
            assert all(np.array_equal(own, expected[row][1][token][name]) for row, own in zip(batch, found, strict=True))


def test_fused_steps_cells_and_graphs_agree(use_operators, graphs):
    """What a step writes, and the cells, and the cells as a graph, is read by all of them."""
    model, head = model_of("one head", sparse=(False,))  # no experts: a token near two of them may have either
    row = Row(40, 4, model.config.hidden_size)
    engine = Codes(model, head)
    prompt, tokens = engine.read(row), decoded(engine, row, 4)
    plain = pools.Engine(model, head)
    exact = plain.read(row), decoded(plain, row, 4)
    assert 0 < gap(prompt, exact[0]) < 0.03 and all(gap(a[0], b[0]) < 0.03 for a, b in zip(tokens, exact[1]))
    use_operators(Reference)
    cells = Codes(model, head, compile_after=2)
    assert gap(cells.read(row), prompt) < 1e-3  # a number that is half way between two codes is either of them
    for found, own in zip(decoded(cells, row, 4), tokens, strict=True):
        assert all(gap(part, other) < 1e-3 for part, other in zip(found, own, strict=True))
    assert len(graphs) == 2


def test_a_pool_that_is_not_what_a_step_expects_is_refused():
    engine = Codes(*model_of())
    if engine.step.fused is None:
        pytest.skip("no C++ compiler")
    row = Row(5, 1, 20)
    engine.read(row)
    key = engine.pool.keys[0]
    engine.pool.keys = (key._replace(scales=key.scales[:-1]), *engine.pool.keys[1:])
    with pytest.raises(InputError, match="Int8 buffers .* or of int8 with a float32 scale for each row"):
        engine.decode([row], 0)


def test_sizes(monkeypatch, world):
    model, _ = model_of()
    for block in (16, 128):
        numbers, scales = KVPool.of(model, 10, block, "int8").parts
        assert {part.dtype for part in numbers} == {ms.int8} and {part.dtype for part in scales} == {ms.float32}
        assert sum(part.nbytes for part in (*numbers, *scales)) == 10 * KVPool.block_bytes(model, block, "int8")
    config = world.model.config.thinker_config.text_config
    plain, codes = (KVPool.block_bytes(world.model.thinker.model, dtype=dtype) for dtype in kv_pool.CACHE_DTYPES)
    assert plain / codes == 4 * config.head_dim / (config.head_dim + 4)
    monkeypatch.setattr("ms_omni.engine.engine.free_memory_gb", lambda: (0.04, ""))
    found = [Engine(world.model.thinker, kv_cache_dtype=dtype).blocks for dtype in kv_pool.CACHE_DTYPES]
    assert found == [int(0.02e9 / size) for size in (plain, codes)]


class Int8World(World):
    """What each is answered alone with such a cache."""

    def __init__(self, world):
        super().__init__()
        self.model, self.processor, self.questions = world.model, world.processor, world.questions

    def alone(self, kind):
        if kind not in self.answers:
            engine = Engine(self.model, max_rows=1, tokens=2048, **INT8)
            id = engine.add(**self.request(kind))
            row = engine.rows[id]
            events = list(engine.events(id))
            self.answers[kind] = answer(events), np.concatenate(row.codes, axis=1).tolist() if row.codes else []
        return self.answers[kind]


@needs_fused
def test_callers_get_what_they_get_alone(world):
    """Texts and speech, whoever joins."""
    mine, kinds = Int8World(world), range(4)
    callers = Callers(mine, Engine(mine.model, max_rows=3, tokens=2048, **INT8))
    for kind in kinds:
        callers.call(kind)
        callers.step()
    while callers.calls:
        callers.step()
    assert not callers.faults and callers.counts["answers"] == len(kinds) and callers.counts["spoken"]
    check_empty(callers.engine)


@needs_fused
def test_rows_that_were_dropped_go_on_as_if_they_had_not_been(world):
    requests = [{**world.ask(f"What is {n} plus 2?"), "max_new_tokens": 150, "eos_token_id": []} for n in range(2)]
    engines = [Engine(world.model.thinker, tokens=tokens, **INT8) for tokens in (1024, 384)]
    preempted, plan = [], engines[1].scheduler.plan
    engines[1].scheduler.plan = lambda: preempted.extend((found := plan()).preempted) or found
    roomy, tight = (answers_of(engine, requests) for engine in engines)
    assert tight == roomy and preempted


def answers_of(engine, requests):
    """The ids of each, all asked at once."""
    ids = [engine.add(**request) for request in requests]
    last = dict.fromkeys(ids)
    while engine.added:
        last.update(engine.step())
    return [last[id].sequences.tolist() for id in ids]


def test_greedy_answers_are_those_of_a_cache_in_float32(world):
    requests = [{**question, "max_new_tokens": 12} for question in world.questions[:-8]]
    found = [answers_of(Engine(world.model.thinker, tokens=8192, **options), requests) for options in ({}, INT8)]
    agree = [own == other for own, other in zip(*found, strict=True)]
    assert sum(agree) >= len(agree) - 1, agree


def test_a_prefix_is_found_and_has_the_bits_of_a_cold_run(world):
    first, second = (world.questions[-8 + n] for n in (0, 1))
    options = {"max_new_tokens": 6, "eos_token_id": []}

    def run(engine, question):
        return answer(list(engine.events(engine.add(**question, **options))))

    warm, cold = (Engine(world.model.thinker, max_rows=1, tokens=2048, **INT8) for _ in range(2))
    reads, read = [], warm.thinker.pool.read_chunk
    warm.thinker.pool.read_chunk = lambda *arguments: reads.append(arguments[3]) or read(*arguments)
    run(warm, first)
    reads.clear()
    assert run(warm, second) == run(cold, second) and min(reads) > 0


def test_what_cannot_be_is_refused_before_anything_is_made(world, monkeypatch, ascend):
    with pytest.raises(InputError, match="kv_cache_dtype is 'fp8', expected one of auto, int8"):
        world.model.engine(kv_cache_dtype="fp8")
    monkeypatch.setattr(KVPool, "of", lambda *_, **__: pytest.fail("buffers were made"))
    assert not ops.caches_codes()
    with pytest.raises(InputError, match="kv_cache_dtype='int8' is for CPU"):
        Engine(world.model.thinker, **INT8)


def test_the_commands_options_are_those_of_the_engine():
    import argparse

    parser = argparse.ArgumentParser()
    add_engine(parser)
    assert parser.parse_args([]).kv_cache_dtype == "auto"
    choices = next(action.choices for action in parser._actions if action.dest == "kv_cache_dtype")
    assert choices == kv_pool.CACHE_DTYPES
