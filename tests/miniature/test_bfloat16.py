"""The miniature in bfloat16 on emulated kernels of Ascend is as close to float32 as PyTorch's bfloat16 is.

How far PyTorch is, `tests/reference/record_bfloat16.py` has measured. Both round a token's states as often, so the distances
differ by chance alone: ours were 0.93 (thinker), 0.96 (talker), 0.99 (predictor), 1.00 (questions) of PyTorch's, through packed layers
0.95, 0.96 and 0.97, and with other random texts 1.01 for thinker and talker (0.94 to 1.09, and 0.97 to 1.04, of 90 % of resamplings).
"""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni import Qwen3OmniMoeForConditionalGeneration, runtime
from ms_omni.engine.kv_pool import KVPool, PoolStep
from ms_omni.modeling import ops
from ms_omni.modeling.ops import ascend_kernels as kernels
from ms_omni.modeling.steps import prepared_frame
from tests.ascend_emulation import bfloat16
from tests.reference import bfloat16_cases

pytestmark = pytest.mark.slow
CHANCE = 1.1


@pytest.fixture(scope="module")
def reference():
    return json.loads(bfloat16_cases.FILE.read_text())


@pytest.fixture
def rounded(ascend, miniature, monkeypatch):
    """The model in bfloat16; every kernel rounds its results to it."""
    monkeypatch.setattr(runtime, "_resolve_dtype", lambda *_: (ms.bfloat16, "emulated"))
    monkeypatch.setattr(ascend, "settled", classmethod(lambda cls, dtype: cls))  # compares in a process without bfloat16
    undo = bfloat16.install()
    yield Qwen3OmniMoeForConditionalGeneration.from_pretrained(miniature, compile_steps=False, progress=False)
    undo()


def numbers(tensor):
    return tensor.astype(ms.float32).asnumpy()


def thinker(model, inputs):
    return numbers(model.thinker(input_ids=inputs.text).logits)


def talker(model, inputs):
    positions = np.broadcast_to(np.arange(bfloat16_cases.TOKENS), (3, *inputs.text.shape))
    return numbers(model.talker(inputs_embeds=Tensor(inputs.rows).astype(model.dtype), position_ids=positions).logits)


def predictor(model, inputs):
    cell, codes = model.talker.code_predictor, inputs.codes.astype(np.int32)
    tables = [model.talker.get_input_embeddings(), *cell.get_input_embeddings()]
    rows = [Tensor(inputs.hidden).astype(model.dtype)]
    rows += [table(Tensor(codes[:, i : i + 1])) for i, table in enumerate(tables[: codes.shape[1] - 1])]
    states = cell.model(inputs_embeds=ops.concat(tuple(rows), 1), use_cache=False).last_hidden_state
    return np.stack([numbers(head(states[:, 1 + i])) for i, head in enumerate(cell.lm_head)])


def vocoder(model, inputs):
    return numbers(model.code2wav(inputs.frames))


PARTS = {part.__name__: part for part in (thinker, talker, predictor, vocoder)}


READ = 16
"""Tokens of each row that are read as a chunk; the others follow one at a time, all rows at once."""


def pooled(decoder, output_layer, x):
    """Logits `[B, T, V]` of rows x `[B, T, D]` through packed layers."""
    b, count = x.shape[:2]
    pool = KVPool.of(decoder, 1 + b, block=32)
    step = PoolStep(decoder, output_layer, pool, compile_after=None)
    assert step.fused is pool.stack is not None
    positions = np.broadcast_to(np.arange(count, dtype=np.float32), (3, b, count))
    read = []
    for row in range(b):
        rope = decoder.rope(positions[:, row : row + 1, :READ])
        read.append(numbers(pool.read_chunk(decoder, x[row : row + 1, :READ], rope, 0, READ, [1 + row])))
    found = [numbers(output_layer(Tensor(np.concatenate(read)).astype(x.dtype)))]
    for place in range(READ, count):
        at = slice(place, place + 1)
        where = np.arange(1, 1 + b, dtype=np.int32)[:, None], np.full(b, place + 1, np.int32)
        found.append(numbers(step(x[:, at], decoder.rope(positions[:, :, at]), *where)[0]))
    return np.concatenate(found, 1)


def packed_thinker(model, inputs):
    return pooled(model.thinker.model, model.thinker.output_layer, model.thinker.embed_text(inputs.text))


def packed_talker(model, inputs):
    return pooled(model.talker.model, model.talker.output_layer, Tensor(inputs.rows).astype(model.dtype))


def packed_predictor(model, inputs):
    """The layers of the frame's graph, on codes that are given."""
    frame, codes = prepared_frame(model.talker).launch.cell, inputs.codes.astype(np.int64)
    tables = [frame.first, *frame.tables]
    x, found = [Tensor(inputs.hidden).astype(model.dtype)], []
    for index, head in enumerate(frame.heads):
        x.append(kernels.embedding(Tensor(codes[:, index : index + 1]), tables[index]))
        rows, total = ops.concat(x, 1), None
        shape = rows.shape
        rows = rows.reshape(-1, shape[-1])
        for layer in frame.layers:
            rows, total = layer(rows, total, frame.ropes[index], frame.masks[index])
        states = kernels.add_rms_norm(rows, total, frame.norm, frame.eps)[0].reshape(shape)
        found.append(numbers(kernels.dense(states[:, -1], head, None)))
    return np.stack(found)


PACKED = {"thinker": packed_thinker, "talker": packed_talker, "predictor": packed_predictor}


def logits(model, question, ids):
    """`[T, V]` at every token of prompt and answer."""
    inputs = dict(question.inputs)
    whole = np.concatenate([inputs.pop("input_ids"), [ids[:-1]]], axis=1)
    inputs["attention_mask"] = np.ones_like(whole)
    return numbers(model.thinker(input_ids=whole, **inputs, use_audio_in_video=question.use_audio_in_video).logits)[0]


@pytest.fixture(scope="module")
def exact(model, miniature):
    """Every part's result in float32, and the questions' logits."""
    inputs = bfloat16_cases.random_inputs(miniature)
    return {name: part(model, inputs) for name, part in PARTS.items()}


@pytest.fixture(scope="module")
def exact_logits(model, miniature, reference):
    recorded = reference["questions"]
    return {item.name: logits(model, item, recorded[item.name]["ids"]) for item in bfloat16_cases.questions(miniature)}


@pytest.mark.parametrize("name", PARTS)
def test_random_inputs(name, exact, rounded, miniature, reference):
    distance = bfloat16_cases.distance(exact[name], PARTS[name](rounded, bfloat16_cases.random_inputs(miniature)))
    print(f"{name}: {distance / reference[name]:.2f}")
    if name == "vocoder":
        assert distance < 1e-5  # it is float32
    else:
        assert 0 < distance < CHANCE * reference[name]


@pytest.mark.parametrize("name", PACKED)
def test_packed_layers(name, exact, rounded, miniature, reference):
    """What answers are made with: chunks of prompts, tokens, codes of a frame."""
    found = PACKED[name](rounded, bfloat16_cases.random_inputs(miniature))
    distance = bfloat16_cases.distance(exact[name], found.reshape(exact[name].shape))
    print(f"packed {name}: {distance / reference[name]:.2f}")
    assert 0 < distance < CHANCE * reference[name]


def test_questions(exact_logits, rounded, miniature, reference):
    """Pictures, videos and sound: the logits of all questions together, and every answer."""
    found = []
    for question in bfloat16_cases.questions(miniature):
        recorded = reference["questions"][question.name]
        assert question.digest == recorded["digest"]
        distance = bfloat16_cases.distance(exact_logits[question.name], logits(rounded, question, recorded["ids"]))
        found.append((distance, recorded["distance"]))
        ids = rounded.thinker.generate(
            **question.inputs,
            use_audio_in_video=question.use_audio_in_video,
            max_new_tokens=bfloat16_cases.MAX_NEW_TOKENS,
            eos_token_id=question.end_ids,
        )
        same = ids[0, question.inputs["input_ids"].shape[1] :].tolist() == recorded["ids"]
        assert same or not recorded["same_answer"], question.name
    ours, theirs = np.mean(found, axis=0)
    print(f"questions: {ours / theirs:.2f}")
    assert 0 < ours < CHANCE * theirs, found
