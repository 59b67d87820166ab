"""The fused steps against the cells over the `reference` operators: odd sizes, batches, both samplings, changed cells."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.engine.kv_pool import KVPool, PoolStep
from ms_omni.errors import InputError
from ms_omni.modeling import BLOCK_TOKENS, ops
from ms_omni.modeling.code_predictor import CodePredictor
from ms_omni.modeling.layers import Linear
from ms_omni.modeling.ops.reference import Reference
from ms_omni.modeling.steps import FrameStep
from ms_omni.modeling.talker import TalkerModel
from ms_omni.modeling.thinker import ThinkerTextModel
from ms_omni.parallel.layers import Some, become

pytestmark = pytest.mark.skipif(
    not hasattr(ops.implementation(), "decoder_step"), reason="no C++ compiler, so no fused steps"
)
BLOCK = 4
SMALL = dict(
    vocab_size=37,
    hidden_size=20,
    intermediate_size=13,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=6,
    num_experts=5,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    moe_intermediate_size=9,
    shared_expert_intermediate_size=11,
    rope_theta=1e4,
    mrope_section=(1, 1, 1),
    rms_norm_eps=1e-5,
    hidden_act="silu",
    attention_bias=False,
    sparse=(True, True, True),
)
ODD = dict(
    hidden_size=67,
    head_dim=34,
    num_attention_heads=3,
    num_key_value_heads=3,
    num_experts=7,
    num_experts_per_tok=7,
    moe_intermediate_size=35,
    mrope_section=(6, 6, 5),
    norm_topk_prob=False,
    intermediate_size=130,
)
THREADED = dict(
    hidden_size=512,
    head_dim=64,
    num_attention_heads=8,
    num_experts=8,
    moe_intermediate_size=200,
    num_experts_per_tok=3,
    mrope_section=(12, 10, 10),
    vocab_size=3001,
    intermediate_size=1100,
)
STACKS = {
    "small": {},
    "odd": ODD,
    "dense layers and biases": dict(sparse=(False, True, False), attention_bias=True),
    "one head": dict(num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1),
    "threads": THREADED,
}


def configured(**changes):
    values = {**SMALL, **changes}
    return SimpleNamespace(**values, is_sparse_layer=lambda index: values["sparse"][index])


def fill(cell, rng):
    """Random weights that keep activations near one; no two equal."""
    for parameter in cell.get_parameters():
        value = rng.standard_normal(parameter.shape)
        value = 1 + 0.2 * value if parameter.ndim == 1 else value / np.sqrt(parameter.shape[-1])
        parameter.set_data(Tensor(value.astype(np.float32)))
    return cell


@pytest.fixture
def cells_only(use_operators):
    """Switches to the `reference` operators, under which there is no fused step."""
    return lambda: use_operators(Reference)


def random_stack(changes, model_class, rng):
    """A decoder and an output layer."""
    config = configured(**changes)
    return fill(model_class(config), rng), fill(Linear(config.hidden_size, config.vocab_size, bias=False), rng)


def step_of(model, head, blocks=1, block=BLOCK):
    return PoolStep(model, head, KVPool.of(model, blocks, block), compile_after=None)


def decode(model, head, rows, tokens, block=BLOCK, padding=0, first=0):
    """Logits and hidden states of the last so many tokens of rows `[T, D]`, which are decoded together behind the others, read as
    prompts of their own. block: positions in one; padding: rows that only fill up the batch; first: the first row's first block.
    """
    used, batch = [-(-len(row) // block) for row in rows], len(rows) + padding
    step = step_of(model, head, 1 + first + sum(used), block)
    numbers = np.random.default_rng(first).permutation(sum(used)) + 1 + first
    tables = [list(part) for part in np.split(numbers, np.cumsum(used)[:-1])]
    for row, table in zip(rows, tables):
        count = len(row) - tokens
        step.pool.read_chunk(model, Tensor(row[None, :count]), model.rope(positions(range(count))), 0, count, table)
    results = []
    for token in range(tokens):
        at = [len(row) - tokens + token for row in rows]
        x = np.stack([row[i] for row, i in zip(rows, at)] + [np.ones_like(rows[0][0])] * padding)
        lengths = np.array([i + 1 for i in at] + [1] * padding, np.int32)
        rope = model.rope(positions(at + [0] * padding).transpose(0, 2, 1))
        found = step(Tensor(x[:, None]), rope, step.pool.tables(tables + [[0]] * padding, lengths), lengths)
        assert all(len(x) == batch for x in found)
        results += [x.asnumpy()[: len(rows)] for x in found]
    return step, results


def positions(numbers):
    """Rotary positions float32 `[3, 1, S]`."""
    return np.broadcast_to(np.array(numbers, np.float32) * np.float32(1.25), (3, 1, len(numbers)))


@pytest.mark.parametrize("batch, prompt, tokens", [(1, 2, 3), (3, 5, 2), (13, 2, 1)])
@pytest.mark.parametrize("model_class", [ThinkerTextModel, TalkerModel])
@pytest.mark.parametrize("stack", STACKS)
def test_decoder_step(stack, model_class, batch, prompt, tokens, rng, normal, close, cells_only):
    """Rows of different lengths, over the ends of blocks; and the keys and values that are left."""
    model, head = random_stack(STACKS[stack], model_class, rng)
    rows = [normal(prompt + 3 * (row % 4) + tokens, model.config.hidden_size) for row in range(batch)]
    step, fused = decode(model, head, rows, tokens, padding=batch % 3)
    assert step.fused is not None and step.graph is None
    cells_only()
    plain, expected = decode(model, head, rows, tokens, padding=batch % 3)
    assert plain.fused is None
    for got, want in zip(fused, expected, strict=True):
        close(got, want, 2e-5)
    for cached, other in zip((*step.pool.keys, *step.pool.values), (*plain.pool.keys, *plain.pool.values)):
        close(cached, other.asnumpy(), 2e-5)


def test_decoder_step_in_blocks_of_the_size_in_use(rng, normal, close, cells_only):
    model, head = random_stack({}, TalkerModel, rng)
    rows = [normal(length, model.config.hidden_size) for length in (BLOCK_TOKENS + 1, 3, 2 * BLOCK_TOKENS + 2)]
    _, fused = decode(model, head, rows, 2, BLOCK_TOKENS)
    cells_only()
    for got, want in zip(fused, decode(model, head, rows, 2, BLOCK_TOKENS)[1], strict=True):
        close(got, want, 2e-5)


def talker_like(groups, rng, **changes):
    """The parts of a talker that make codes 1 .. n-1."""
    config = configured(num_code_groups=groups, **changes)
    parts = SimpleNamespace(
        code_predictor=fill(CodePredictor(config), rng),
        prepared_frame=None,
        model=fill(TalkerModel(configured(**{**changes, "vocab_size": 90})), rng),
    )
    return parts


def frame_inputs(talker, batch, rng, normal):
    groups, width = talker.code_predictor.config.num_code_groups, talker.code_predictor.config.hidden_size
    code = rng.integers(0, 90, (batch, 1)).astype(np.int32)
    noise = rng.uniform(size=(batch, groups - 1)).astype(np.float32)
    return normal(batch, 1, width), code, noise


def frames(talker, sampling, arrays):
    step = FrameStep(talker, len(arrays[0]), sampling)
    codes, total = step(*(Tensor(x) for x in arrays))
    assert codes.dtype == ms.int32
    return step, codes.asnumpy(), total.asnumpy()


@pytest.mark.parametrize(
    "stack, groups, batch, sampling",
    [
        *(("small", 3, 2, sampling) for sampling in (None, (0.8, 20, 0.9), (1.2, 0, 1.0), (1.0, 5, 0.4))),
        *(("small", 2, 1, None), ("one head", 8, 5, (1.2, 0, 1.0)), ("odd", 16, 3, (0.8, 20, 0.9))),
        *(("threads", 8, 1, (1.0, 5, 0.4)), ("threads", 4, 7, None)),
    ],
)
def test_code_frame(stack, groups, batch, sampling, rng, normal, close, cells_only):
    talker = talker_like(groups, rng, **{**STACKS[stack], "vocab_size": 211})
    arrays = frame_inputs(talker, batch, rng, normal)
    step, codes, total = frames(talker, sampling, arrays)
    assert step.fused is not None and step.graph is None
    cells_only()
    talker.prepared_frame = None
    _, expected, summed = frames(talker, sampling, arrays)
    assert codes.tolist() == expected.tolist()
    assert (codes[:, 0] == arrays[1][:, 0]).all()
    close(total, summed, 2e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_a_frame_of_numbers_that_are_none_shows_in_the_sum(fused, rng, normal, cells_only):
    talker = talker_like(3, rng, **{**STACKS["small"], "vocab_size": 211})
    arrays = frame_inputs(talker, 1, rng, normal)
    assert np.isfinite(frames(talker, None, arrays)[2]).all()
    weight = (talker.code_predictor.lm_head[0] if fused else talker.code_predictor.model.norm).weight
    array = weight.asnumpy().copy()
    array[-1] = np.nan  # of the last code's logit, or of every state
    weight.set_data(Tensor(array))
    talker.prepared_frame = None
    if not fused:
        cells_only()
    assert np.isnan(frames(talker, None, arrays)[2]).any()


def test_weights_given_later_are_used(rng, normal):
    talker = talker_like(8, rng)
    arrays = frame_inputs(talker, 2, rng, normal)
    step, codes, _ = frames(talker, None, arrays)
    first = fill(talker_like(8, rng).code_predictor, rng)
    for parameter, other in zip(talker.code_predictor.get_parameters(), first.get_parameters()):
        parameter.set_data(Tensor(other.asnumpy().copy()))
    fresh = frames(talker, None, arrays)[1]
    assert (step(*(Tensor(x) for x in arrays))[0].asnumpy() == fresh).all()
    assert not (codes == fresh).all()


def test_a_code_outside_the_vocabulary_is_an_error(rng, normal):
    talker = talker_like(4, rng)
    hidden, code, noise = frame_inputs(talker, 1, rng, normal)
    with pytest.raises(InputError):
        frames(talker, None, (hidden, code + 90, noise))


def other(x):
    return x


CHANGES = {
    "reduce of attention": lambda layer: setattr(layer.self_attn, "reduce", other),
    "reduce of experts": lambda layer: setattr(layer.mlp, "reduce", other),
    "source of experts": lambda layer: setattr(layer.mlp.experts, "source", other),
    "some of the experts": lambda layer: become(layer.mlp.experts, Some, first=0),
    "source of a norm": lambda layer: setattr(layer.self_attn.q_norm, "source", other),
    "source of a projection": lambda layer: setattr(layer.self_attn.k_proj, "source", other),
    "source of the shared expert": lambda layer: setattr(layer.mlp.shared_expert.up_proj, "source", other),
    "source of the router": lambda layer: setattr(layer.mlp.gate, "source", other),
    "layer scale": lambda layer: setattr(layer, "mlp_layer_scale", other),
    "another activation": lambda layer: setattr(layer.mlp.shared_expert, "act_fn", ops.gelu),
    "another eps": lambda layer: setattr(layer.input_layernorm, "eps", 1e-3),
    "stable sums": lambda layer: setattr(layer.self_attn, "stable", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_cells_that_do_something_else_run_themselves(change, rng):
    model = fill(TalkerModel(configured()), rng)
    head = Linear(model.config.hidden_size, 7, bias=False)
    assert step_of(model, head).fused is not None
    CHANGES[change](model.layers[-1])
    assert step_of(model, head).fused is None


def test_an_output_layer_that_gathers_its_weight_runs_itself(rng):
    model = fill(TalkerModel(configured()), rng)
    head = Linear(model.config.hidden_size, 7, bias=False)
    head.source = other
    assert step_of(model, head).fused is None
