"""Steps whose weights are bfloat16 or codes with scales: the numbers of the dequantised matrices, and rows that equal their lone runs."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from ms_omni.arrays import MODEL_TYPES
from ms_omni.engine.kv_pool import KVPool
from ms_omni.errors import InputError
from ms_omni.modeling import ops
from ms_omni.modeling.layer import unfilled
from ms_omni.modeling.ops.fused import BlockTables
from ms_omni.modeling.step_weights import frame_weights, stack_weights
from ms_omni.modeling.talker import TalkerModel
from ms_omni.quantised import Quantised, Storage, dequantised, quantised
from tests.ops import test_fused as fused

try:
    from ms_omni.modeling.ops import cpu_fused
except OSError as error:
    pytest.skip(f"no kernels here: {error}", allow_module_level=True)

ROUND = dict(
    hidden_size=96,
    intermediate_size=64,
    num_attention_heads=4,
    head_dim=32,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=160,
    mrope_section=(6, 5, 5),
)
WIDE = {**fused.THREADED, "hidden_size": 1152, "moe_intermediate_size": 192, "shared_expert_intermediate_size": 224}
STACKS = {
    "round": ROUND,
    "odd": fused.ODD,
    "dense, with biases": {**ROUND, "sparse": (False,) * 3, "attention_bias": True},
    "threads": {**WIDE, "intermediate_size": 1120},
    "blocks": {
        **ROUND,
        "hidden_size": 256,
        "head_dim": 64,
        "moe_intermediate_size": 384,
        "shared_expert_intermediate_size": 128,
    },
}
FORMS = {
    "bfloat16": "bfloat16",
    "int8": Storage(8, None, "bfloat16"),
    "int8 in groups, with offsets": Storage(8, 32, "float32", "float32"),
    "int4": Storage(4, 32, "bfloat16"),
    "int4 with offsets": Storage(4, 32, "float16", "bfloat16"),
}
WIDE_FORMS = {  # with a stack whose matrices such groups divide
    "int8 in groups of 128, with offsets": Storage(8, 128, "float32", "float32"),
    "int8 with offsets": Storage(8, None, "bfloat16", "float16"),
    "int4 in groups of 64": Storage(4, 64, "bfloat16"),
    "int4 in groups of 128, with offsets": Storage(4, 128, "float16", "bfloat16"),
    "int4 with one scale a row": Storage(4, None, "float32"),
}
CASES = [(stack, form) for stack in STACKS for form in FORMS if stack != "odd" or form in ("bfloat16", "int8")]
CASES += [("blocks", form) for form in WIDE_FORMS]
EXACT = {"bfloat16"} if "VNNI" in ops.vectors() else {"bfloat16", "int8", "int4"}
"""Forms whose dequantised numbers no rounding has touched: where a matrix lies the same way, as no experts do, bits are the same. Products
of bytes (VNNI) sum whole numbers, which are rounded elsewhere."""


def as_tensor(array):
    """Of numpy's bfloat16 as well."""
    return Tensor(array.astype(np.float32)).astype(ms.bfloat16) if array.dtype.name == "bfloat16" else Tensor(array)


def stored(weight, form, rng, transposed=False):
    """A weight in that form, and the same numbers in float32. transposed: it is `[..., K, N]`, codes are not."""
    if form == "bfloat16":
        half = unfilled(weight, weight.shape, ms.bfloat16)  # MindSpore cannot make one of a tensor beside numpy 2
        half.set_data(weight.astype(ms.bfloat16))
        return half, Parameter(half.astype(ms.float32))
    matrix = weight.asnumpy()
    coded = quantised(np.ascontiguousarray(matrix.swapaxes(-1, -2)) if transposed else matrix, form)
    if form.offset:
        offsets = 0.1 * rng.standard_normal(coded.scales.shape)
        coded = coded._replace(offsets=offsets.astype(MODEL_TYPES[form.offset]))
    plain = dequantised(coded)
    parts = [None if part is None else as_tensor(part) for part in coded]
    return Quantised(*parts), Parameter(Tensor(np.ascontiguousarray(plain.swapaxes(-1, -2)) if transposed else plain))


def stored_stack(weights, form, rng):
    """`StackWeights` twice: in that form, and of the same numbers in float32."""
    pairs = []
    for layer in weights.layers:
        names = [name for name in cpu_fused._MATRICES if getattr(layer, name) is not None]
        coded = {name: stored(getattr(layer, name), form_of(name, form), rng, name.startswith("experts_")) for name in names}
        pairs.append([layer._replace(**{name: coded[name][side] for name in names}) for side in (0, 1)])
    return [weights._replace(layers=tuple(layers)) for layers in zip(*pairs)]


def form_of(name, form):
    return "bfloat16" if name in ("router", "shared_gate") else form


def steps(model, weights, head, rows, block=16, padding=0):
    """Logits and hidden of each token of rows `[T, D]` of one length, decoded together."""
    batch, length = len(rows) + padding, len(rows[0])
    used = -(-length // block)
    pool, prepared, results = KVPool.of(model, batch * used, block), ops.prepare(weights), []
    tables = np.arange(batch * used, dtype=np.int32).reshape(batch, used)
    for position in range(length):
        x = np.stack([row[position] for row in rows] + [np.ones_like(rows[0][0])] * padding)[:, None]
        rope = model.rope(fused.positions([position] * batch).transpose(0, 2, 1))
        lengths = np.full(batch, position + 1, np.int32)
        cache = BlockTables(pool.keys, pool.values, pool.heads, block, tables, lengths)
        results += [result.asnumpy()[: len(rows)] for result in ops.decoder_step(Tensor(x), *rope, head, cache, prepared)]
    return results


@pytest.mark.parametrize("stack, form", CASES)
def test_the_numbers_are_those_of_the_dequantised_matrices(stack, form, rng, normal, close):
    model, head = fused.random_stack(STACKS[stack], TalkerModel, rng)
    storage = {**FORMS, **WIDE_FORMS}[form]
    coded, plain = stored_stack(stack_weights(model), storage, rng)
    kept_head, plain_head = stored(head.weight, storage, rng)
    rows = [normal(2, model.config.hidden_size) for _ in range(8)]
    whole = steps(model, coded, kept_head, rows)
    for got, want in zip(whole, steps(model, plain, plain_head, rows), strict=True):
        close(got, want, 1e-5)
        assert form not in EXACT or stack != "dense, with biases" or np.array_equal(got, want)
    for begin, end in ((0, 1), (2, 4), (3, 8)):  # tiles of one row, of two, of five; seven rows are a tile and one behind it
        some = steps(model, coded, kept_head, rows[begin:end], padding=begin)
        assert all(np.array_equal(one, all_[begin:end]) for one, all_ in zip(some, whole, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_stays_so_and_in_its_row(form, rng, normal):
    model, head = fused.random_stack(ROUND, TalkerModel, rng)
    coded, _ = stored_stack(stack_weights(model), FORMS[form], rng)
    kept_head, _ = stored(head.weight, FORMS[form], rng)
    rows = [normal(1, 96) for _ in range(3)]
    logits, _ = steps(model, coded, kept_head, rows)
    for wrong in (np.nan, np.inf):
        got, _ = steps(
            model, coded, kept_head, [rows[0], np.where(np.arange(96) == 70, np.float32(wrong), rows[1]), rows[2]]
        )
        assert np.isnan(got[1]).all() and np.array_equal(got[[0, 2]], logits[[0, 2]])


@pytest.mark.parametrize("form", FORMS)
def test_a_code_predictor_of_any_form(form, rng, normal):
    talker = fused.talker_like(6, rng, **{**ROUND, "vocab_size": 211})
    weights, sides = frame_weights(talker), []
    parts = [stored(part, FORMS[form], rng) for part in (weights.first_embedding, *weights.embeddings, *weights.heads)]
    for side, stack in enumerate(stored_stack(weights.stack, FORMS[form], rng)):
        first, *tables = (part[side] for part in parts)
        sides.append(
            weights._replace(stack=stack, first_embedding=first, embeddings=tuple(tables[:5]), heads=tuple(tables[5:]))
        )
    inputs = [Tensor(x) for x in fused.frame_inputs(talker, 3, rng, normal)]
    (codes, total), (same, expected) = (ops.code_frame(*inputs, (0.8, 20, 0.9), ops.prepare(side)) for side in sides)
    assert np.array_equal(codes.asnumpy(), same.asnumpy())
    assert form not in EXACT or np.array_equal(total.asnumpy(), expected.asnumpy())


def numbers(*shape, kind=np.int8):
    return Tensor(np.zeros(shape, kind))


WRONG = {
    "codes of another shape": (lambda q: q._replace(codes=numbers(128, 64)), r"codes int8 \[128, 64\], expected int8 \[128, 96\]"),
    "codes of another type": (lambda q: q._replace(codes=numbers(128, 96, kind=np.int16)), "codes int16"),
    "scales for other rows": (lambda q: q._replace(scales=numbers(64, 3, kind=np.float32)), r"scales float32 \[64, 3\]"),
    "groups that do not divide": (lambda q: q._replace(scales=numbers(128, 5, kind=np.float32)), r"scales float32 \[128, 5\]"),
    "no scales": (lambda q: q._replace(scales=numbers(128, 0, kind=np.float32)), r"scales float32 \[128, 0\]"),
    "scales of another type": (lambda q: q._replace(scales=numbers(128, 3)), r"scales int8 \[128, 3\]"),
    "other offsets than scales": (lambda q: q._replace(offsets=numbers(128, 1, kind=np.float32)), r"offsets float32 \[128, 1\]"),
    "groups of 4 bits that are no blocks": (lambda _: Quantised(numbers(128, 48, kind=np.uint8), numbers(128, 6, kind=np.float32)), "multiple of 32"),
    "float16": (lambda _: numbers(128, 96, kind=np.float16), "float16"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused_before_it_is_read(wrong, rng):
    model, _ = fused.random_stack(ROUND, TalkerModel, rng)
    weights = stack_weights(model)
    change, message = WRONG[wrong]
    bad = change(stored(weights.layers[1].q, FORMS["int8 in groups, with offsets"], rng)[0])
    changed = weights._replace(layers=(weights.layers[0], weights.layers[1]._replace(q=bad), weights.layers[2]))
    if wrong == "float16":  # is what cells are for
        assert ops.prepare(changed) is None
        return
    with pytest.raises(InputError, match=f"a decoder step: q has .*{message}"):
        ops.prepare(changed)
    rows = [np.ones((1, 96), np.float32)]
    with pytest.raises(InputError, match="a decoder step: the output layer"):
        steps(model, weights, Quantised(numbers(37, 48), numbers(37, 1, kind=np.float32)), rows)
