"""Prompts in chunks and tokens in batches on a pool of blocks: what a row gets, and that others leave no trace in it."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.common import api

from ms_omni.engine.kv_pool import KVPool, PoolStep, table_width
from ms_omni.errors import InputError
from ms_omni.modeling import ops
from ms_omni.modeling.cache import whole_sequence
from ms_omni.modeling.layers import Linear
from ms_omni.modeling.ops.reference import Reference
from ms_omni.modeling.steps import Graph
from ms_omni.modeling.talker import TalkerModel
from tests.ops.test_fused import STACKS, configured, fill

CHUNK, P = 64, 16
SIZES = (16, 32, 64)  # a chunk of a prompt is padded to one of these
RNG = np.random.default_rng(13)
needs_fused = pytest.mark.skipif(not hasattr(ops.implementation(), "decoder_step"), reason="no C++ compiler")


class Row:
    """Embeddings `[T, D]` of a prompt and of the tokens behind it."""

    def __init__(self, prompt, tokens, width):
        self.prompt, self.x = prompt, RNG.standard_normal((prompt + tokens, width)).astype(np.float32)
        self.positions = np.broadcast_to(np.arange(prompt + tokens, dtype=np.float32) * 1.25, (3, 1, prompt + tokens))


class Engine:
    """A pool full of NaN, and rows whose blocks are any of it."""

    def __init__(self, model, head, blocks=64, block=P, chunk=CHUNK, compile_after=None):
        self.model, self.chunk, self.pool = model, chunk, KVPool.of(model, blocks, block)
        for part in (*self.pool.keys, *self.pool.values):
            part.set_data(Tensor(np.full(part.shape, np.nan, np.float32)))
        self.step = PoolStep(model, head, self.pool, compile_after)
        self.free = list(RNG.permutation(blocks - 1) + 1)
        self.blocks = {}

    def admit(self, row):
        self.blocks[row] = [self.free.pop() for _ in range(-(-len(row.x) // self.pool.block))]

    def read(self, row):
        """Hidden states `[T, D]` of a prompt."""
        if row not in self.blocks:
            self.admit(row)
        found = []
        for start in range(0, row.prompt, self.chunk):
            count = min(self.chunk, row.prompt - start)
            size = next(size for size in (*SIZES, self.chunk) if size >= count)
            x, positions = np.full((1, size, row.x.shape[1]), 3.0, np.float32), np.zeros((3, 1, size), np.float32)
            x[0, :count], positions[:, :, :count] = row.x[start : start + count], row.positions[:, :, start : start + count]
            rope = self.model.rope(positions)
            hidden = self.pool.read_chunk(self.model, Tensor(x), rope, start, count, self.blocks[row])
            found.append(hidden.asnumpy()[0, :count])
        return np.concatenate(found)

    def decode(self, rows, token, bucket=None, width=None):
        """Logits and hidden states of one token of each row; bucket: with rows of padding up to so many."""
        lengths = [row.prompt + token + 1 for row in rows]
        tables = self.pool.tables([self.blocks[row] for row in rows], np.array(lengths))
        at = [slice(length - 1, length) for length in lengths]
        x = np.stack([row.x[metadata] for row, metadata in zip(rows, at)])
        positions = np.concatenate([row.positions[:, :, metadata] for row, metadata in zip(rows, at)], 1)
        padding = (bucket or len(rows)) - len(rows)
        x, positions = np.pad(x, ((0, padding), (0, 0), (0, 0))), np.pad(positions, ((0, 0), (0, padding), (0, 0)))
        tables = np.pad(tables, ((0, padding), (0, (width or tables.shape[1]) - tables.shape[1])))
        lengths = np.array([*lengths, *[1] * padding], np.int32)
        found = self.step(Tensor(x), self.model.rope(positions), tables, lengths)
        return [part.asnumpy()[: len(rows), 0] for part in found]


def model_of(stack="small", **changes):
    config, rng = configured(**{**STACKS[stack], **changes}), np.random.default_rng(7)
    return fill(TalkerModel(config), rng), fill(Linear(config.hidden_size, config.vocab_size, bias=False), rng)


def alone(model, head, row, tokens, **settings):
    """Hidden states of the prompt, and [logits, hidden] of each token."""
    engine = Engine(model, head, **settings)
    return engine.read(row), [[part[0] for part in engine.decode([row], token)] for token in range(tokens)]


def in_one_pass(model, head, row, stop):
    """The same without any cache: hidden states and logits of `[0, stop)`."""
    metadata, store = whole_sequence(model.rope(row.positions[:, :, :stop]), np.ones((1, stop), bool))
    hidden = model.run(Tensor(row.x[None, :stop]), metadata, store)
    return hidden.asnumpy()[0], ops.linear(hidden, head.weight).asnumpy()[0]


def gap(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@needs_fused
@pytest.mark.parametrize("stack", ["odd", "dense layers and biases", "threads"])
def test_every_row_has_the_bits_of_its_lone_run(stack):
    """Prompts whose chunks come in turns, tokens in buckets that rows join and leave."""
    model, head = model_of(stack)
    width = model.config.hidden_size
    rows = [Row(prompt, 3, width) for prompt in (1, 15, 16, 17, 63, 64, 65, 130, 200)]
    expected = {row: alone(model, head, row, 3) for row in rows}
    engine = Engine(model, head, blocks=90)
    for row in RNG.permutation(np.array(rows, object)):
        assert np.array_equal(engine.read(row), expected[row][0])
    for token, (batch, bucket, columns) in enumerate(((rows, 16, 32), (rows[::-1], 9, 16), (rows[3:7], 4, 64))):
        for found, name in zip(engine.decode(batch, token, bucket, columns), (0, 1)):
            for row, own in zip(batch, found, strict=True):
                assert np.array_equal(own, expected[row][1][token][name])
    for batch in (1, 2, 3, 5, 8):  # again: what is written is what was there
        found = engine.decode(rows[:batch], 1)[0]
        assert all(np.array_equal(own, expected[row][1][1][0]) for row, own in zip(rows, found))


@needs_fused
def test_blocks_and_chunks_of_the_sizes_in_use():
    model, head = model_of()
    row, other = Row(530, 2, 20), Row(700, 1, 20)
    found, tokens = alone(model, head, row, 2, block=128, chunk=512, blocks=7)
    engine = Engine(model, head, block=128, chunk=512, blocks=40)
    engine.read(other)
    assert np.array_equal(engine.read(row), found)
    for part, own in zip(engine.decode([other, row], 0, 2, 16), tokens[0]):
        assert np.array_equal(part[1], own)
    hidden, logits = in_one_pass(model, head, row, 532)
    assert gap(found, hidden[:530]) < 3e-6 and gap(tokens[1][0], logits[531]) < 3e-6


@needs_fused
@pytest.mark.parametrize("stack", ["odd", "threads"])
def test_a_token_is_what_the_cells_make_of_it_on_a_contiguous_cache(stack):
    model, head = model_of(stack)
    rows, cache = [Row(200, 4, model.config.hidden_size) for _ in range(3)], model.new_cache(3, 204)
    engine = Engine(model, head)
    for row in rows:
        engine.read(row)
    for token, at in [(None, slice(0, 200)), *((token, slice(200 + token, 201 + token)) for token in range(4))]:
        x, positions = np.stack([row.x[at] for row in rows]), np.repeat(rows[0].positions[:, :, at], 3, 1)
        metadata, store = cache.allocate(model.rope(positions), np.ones(x.shape[:2], bool))
        hidden = model.run(Tensor(x), metadata, store)
        if token is not None:
            expected = ops.linear(hidden, head.weight), hidden
            for found, own in zip(engine.decode(rows, token), expected, strict=True):
                assert gap(found, own.asnumpy()[:, 0]) < 3e-6


@pytest.fixture
def graphs(monkeypatch):
    """Shapes of the tables of each call that ran as a graph."""
    shapes, call = [], Graph.__call__

    def counted(graph, *arguments):
        shapes.append(arguments[4].shape)
        return call(graph, *arguments)

    monkeypatch.setattr(Graph, "__call__", counted)
    return shapes


def check_cells(engine, rows, tolerance):
    """Rows of a batch against one pass without a cache."""
    prompts = [engine.read(row) for row in rows]
    found = [engine.decode(rows, token, bucket=4) for token in range(3)]
    for number, (row, prompt) in enumerate(zip(rows, prompts)):
        hidden, logits = in_one_pass(engine.model, engine.step.output_layer, row, row.prompt + 3)
        assert gap(prompt, hidden[: row.prompt]) < tolerance
        for token in range(3):
            assert gap(found[token][0][number], logits[row.prompt + token]) < tolerance
            assert gap(found[token][1][number], hidden[row.prompt + token]) < tolerance


@pytest.mark.parametrize("after", [None, 1])
def test_the_cells_of_reference(use_operators, after, graphs):
    use_operators(Reference)
    layers = 2 if after is None else 1
    engine = Engine(*model_of(num_hidden_layers=layers, sparse=(after is None, True)), compile_after=after)
    check_cells(engine, [Row(prompt, 3, 20) for prompt in (5, 17, 70)], 3e-6)
    assert graphs == ([(4, 8)] * 2 if after else [])


@pytest.fixture
def compilations(monkeypatch):
    """`compilations()`: how many graphs MindSpore has compiled since the test began."""
    before = len(api.ms_compile_cache)
    return lambda: len(api.ms_compile_cache) - before


ALIGNED = {"head_dim": 16, "mrope_section": (3, 3, 2)}
PACKED = {
    "experts, all here": dict(num_hidden_layers=2, sparse=(True, True)),
    "chosen among all": dict(num_hidden_layers=1, sparse=(True,), norm_topk_prob=False),
    "dense layers and biases": dict(stack="dense layers and biases"),
    "one head, no norms": dict(stack="one head", sparse=(False,)),
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("ready", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_packed_layers_on_ascend(ascend, ready, kind, compilations):
    """As a graph, where it was made ready, and kernel by kernel."""
    model, head = model_of(**{**PACKED[kind], **ALIGNED})
    engine = Engine(model, head)
    assert engine.pool.stack is not None and engine.step.most is None
    if ready:
        engine.step.warm(4)
    made = compilations()
    check_cells(engine, [Row(prompt, 3, model.config.hidden_size) for prompt in (5, 17, 70)], 5e-6)
    assert compilations() == made == int(ready) and engine.step.most == (4 if ready else None)
    engine.pool.reserve(100)
    assert engine.step.most is None and compilations() == made  # graphs are of buffers


def test_launches_take_the_sizes_that_were_made_ready(ascend):
    engine = Engine(*model_of("one head", sparse=(False,), **ALIGNED))
    assert [engine.step.size(rows) for rows in (1, 2, 3)] == [1, 2, 4]
    engine.pool.stack.ready.update((16, 2))
    assert [engine.step.size(rows) for rows in (1, 2, 3, 16)] == [2, 2, 16, 16] and engine.step.most == 16


def test_layers_that_are_not_packed_run_as_cells_on_ascend(ascend):
    engine = Engine(*model_of("one head", head_dim=12, mrope_section=(2, 2, 2), sparse=(False,)))
    assert engine.pool.stack is None and engine.step.fused is None
    check_cells(engine, [Row(prompt, 3, 20) for prompt in (5, 17, 70)], 3e-6)


@pytest.mark.parametrize("step", ["decoder_step", "decoder_chunk"])
def test_layers_whose_packed_form_is_wrong_on_this_device_run_as_cells(ascend, monkeypatch, step):
    monkeypatch.setattr(ascend, "WRONG_STEPS", frozenset([(ms.float32, step)]))
    engine = Engine(*model_of("one head", sparse=(False,), **ALIGNED))
    assert engine.pool.stack is None and engine.step.fused is None
    check_cells(engine, [Row(prompt, 3, 20) for prompt in (5, 17, 70)], 5e-6)


def test_a_graph_of_each_shape_follows_the_pool_when_it_grows(use_operators, graphs):
    """Two calls of a shape run as they are; a pool with other buffers has graphs of its own, which need not wait again."""
    use_operators(Reference)
    stack = model_of("one head", head_dim=16, mrope_section=(3, 3, 2), sparse=(False,))
    rows = [Row(prompt, 5, 20) for prompt in (5, 30)]
    plain, engine = Engine(*stack), Engine(*stack, compile_after=2)
    for one in (plain, engine):
        for row in rows:
            one.read(row)

    def same(token):
        for found, own in zip(engine.decode(rows, token), plain.decode(rows, token), strict=True):
            assert gap(found, own) < 3e-6

    for token in range(3):  # blocks of 16: with the third the second row has 33 positions
        same(token)
    assert graphs == [] and engine.step.calls == {(2, 2): 2, (2, 4): 1}
    same(0), same(1)
    before = engine.step.graph
    engine.pool.reserve(70)
    for token in (2, 3, 4):
        same(token)
    assert graphs == [(2, 2), (2, 2), (2, 4), (2, 4)] and engine.step.graph is not before


def test_long_answers_take_few_graphs():
    pool, lengths = KVPool(1, 1, 2, 1), range(1, 8193)
    assert len({pool.tables([range(64)], [length]).shape for length in lengths}) == 7  # 1, 2, 4 .. 64 blocks of 128


@needs_fused
def test_the_cells_on_cpu_keep_every_row_by_itself(monkeypatch):
    monkeypatch.setattr(ops.implementation(), "prepare", staticmethod(lambda *_: None))
    model, head = model_of()
    rows = [Row(prompt, 2, 20) for prompt in (5, 17, 70)]
    own = [alone(model, head, row, 2)[1] for row in rows]
    engine = Engine(model, head)
    for row in rows:
        engine.read(row)
    for token in range(2):
        for name, found in enumerate(engine.decode(rows, token, bucket=4, width=8)):
            assert all(np.array_equal(part, lone[token][name]) for part, lone in zip(found, own))
    assert engine.step.fused is None


@needs_fused
def test_what_does_not_fit_is_refused():
    engine = Engine(*model_of())
    row = Row(20, 1, 20)
    engine.read(row)
    engine.blocks[row][1] = 64
    with pytest.raises(InputError, match="decoder_step: tables hold 64, expected 0 to 63"):
        engine.decode([row], 0)
    engine.blocks[row] = engine.blocks[row][:1]
    with pytest.raises(ValueError, match="a row has 1 blocks of 16 positions, but needs 2"):
        engine.decode([row], 0)
    other = KVPool(2, 2, 6, 8, block=P)
    with pytest.raises(
        InputError, match="the cache is of 2 layers, 1 rows, 2 heads .* expected 3 layers, 1 rows, 2 heads of 6"
    ):
        engine.step.pool = other
        engine.blocks[row] = [1, 2]
        engine.decode([row], 0)


def test_sizes():
    assert [table_width(blocks) for blocks in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]
    model, _ = model_of()
    pool = KVPool.of(model, 10)
    assert sum(part.nbytes for part in (*pool.keys, *pool.values)) == 10 * KVPool.block_bytes(model)
    slots = pool.slots(np.array([[7, 3]], np.int32), np.array([[127, 128, 400]]), np.array([[True, True, False]]))
    assert slots.tolist() == [(7 * 2 + 0) * 128 + 127, (7 * 2 + 1) * 128 + 127, 3 * 256, 3 * 256 + 128, 16, 128 + 16]
