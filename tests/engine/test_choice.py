"""Ids that are chosen on the device (its kernels in numpy) are those that the host would choose, or as likely."""

from itertools import pairwise
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.engine.choice import Chooser, PenaltyBuffers
from ms_omni.engine.engine import Engine
from ms_omni.errors import InputError
from ms_omni.generation.sampling import NAMES, Chosen, Likeliest, RowSampler, SamplingParams, row_stream
from ms_omni.modeling.ops.reference import Reference
from ms_omni.parallel.vocabulary import SplitVocabulary
from tests.parallel.ranks import Ranks

SIZE = 150
ENDS = {"eos_token_id": (3, 30), "min_new_tokens": 4}
PENALTIES = [
    {},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.1},
    {"suppress_tokens": (0, 20, 40), "begin_suppress_tokens": (7, 8), "bad_words_ids": [[5], [3]], **ENDS},
    {"frequency_penalty": -0.5, **ENDS},
]
ON_THE_HOST = [
    {"repetition_penalty": 0.8},
    {"sequence_bias": {(4,): 3.0}},
    {"bad_words_ids": [[1, 2]]},
    {"no_repeat_ngram_size": 2},
    {"remove_invalid_values": True},
    {"exponential_decay_length_penalty": (2, 1.2), "eos_token_id": 3},
    *({"do_sample": True, "top_k": 5, **filters} for filters in ({"top_k": 0}, {"top_k": 65}, {"min_p": 0.1})),
    *({"do_sample": True, "top_k": 5, name: 0.5} for name in ("top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")),
]
DRAWS = [
    {"top_k": 50},
    {"top_k": 8, "temperature": 0.6},
    {"top_k": 64, "top_p": 0.8, "temperature": 1.4},
    {"top_k": 20, "top_p": 0.9, "repetition_penalty": 1.5, "presence_penalty": 1.0, "suppress_tokens": (1, 2)},
]


def sampler_of(params, seed=0, prompt=(9, 9, 11, 60)):
    params = SamplingParams(**params)
    return RowSampler(params, row_stream(seed, 0) if params.do_sample else None, prompt)


def logits_of(rows, seed=5, size=SIZE):
    return np.random.default_rng(seed).normal(size=(rows, 1, size)).astype(np.float32) * 2


@pytest.fixture
def chooser(ascend):
    return Chooser(SimpleNamespace(size=SIZE, dtype=ms.float32), 8)


def tokens_of(chooser, samplers, logits):
    """One step of all rows."""
    tokens = [row.choose(line) for row, line in zip(samplers, chooser(samplers, Tensor(logits)))]
    for row, token in zip(samplers, tokens):
        row.note(token)
    return tokens


@pytest.mark.parametrize("compiled", [False, True])
def test_the_likeliest_ids_are_those_of_the_host(chooser, compiled):
    """With penalties as they change from token to token; and of equal logits the first."""
    if compiled:
        chooser.warm([8])
    samplers, host = ([sampler_of(params) for params in PENALTIES] for _ in range(2))
    for step in range(7):
        logits = np.round(logits_of(8, step) * 2)
        if step not in (4, 6):  # ids that are banned for a while
            logits[..., 30 if step % 2 else 7] += 20
        expected = [row.choose(line) for row, line in zip(host, logits[:, 0])]
        for row, token in zip(host, expected):
            row.note(token)
        assert tokens_of(chooser, samplers, logits) == expected
    assert len(chooser.graphs) == 4 * compiled and bool(chooser.choices) is not compiled


def test_only_rows_that_a_device_cannot_choose_for_are_copied(chooser):
    samplers = [sampler_of(params) for params in [{}, *ON_THE_HOST]]
    logits = logits_of(len(samplers) + 2)
    found = chooser([*samplers, None, sampler_of({})], Tensor(logits), observed=[len(samplers) + 1])
    assert found.pop(len(samplers)) is None and isinstance(found[0], Chosen)
    for row, line in enumerate(found[1:-1], 1):
        assert (line == logits[row, 0]).all()
    assert (found[-1] == logits[len(samplers) + 1, 0]).all()


def test_every_option_is_tried_on_the_device_or_left_to_the_host():
    tried = {name for params in (*PENALTIES, *DRAWS, *ON_THE_HOST) for name in params}
    elsewhere = {"max_new_tokens", "forced_eos_token_id", "renormalize_logits", "pad_token_id", "seed"}
    assert tried | elsewhere == set(NAMES)


def test_a_forced_end_is_chosen_on_the_host(chooser):
    sampler = sampler_of({"forced_eos_token_id": (3,), "max_new_tokens": 2})
    assert isinstance(chooser([sampler], Tensor(logits_of(1)))[0], Chosen)
    sampler.note(8)
    assert sampler.choose(chooser([sampler], Tensor(logits_of(1)))[0]) == 3


@pytest.mark.parametrize("compiled", [False, True])
def test_ids_are_drawn_as_often_as_they_are_likely(ascend, compiled):
    """Seven rows of each kind of sampling, beside some that take the likeliest."""
    chooser, logits, steps = (
        Chooser(SimpleNamespace(size=SIZE, dtype=ms.float32), 32),
        np.tile(logits_of(1), (32, 1, 1)),
        400,
    )
    if compiled:
        chooser.warm([32], [(True, True)])
    samplers = [sampler_of({"do_sample": True, **DRAWS[seed // 7]}, seed) for seed in range(28)]
    given = Tensor(logits)
    found = np.array([[row.id for row in chooser([*samplers, sampler_of({})], given)] for _ in range(steps)])
    assert (found[:, -1] == logits[0, 0].argmax()).all()
    for row, params in enumerate(DRAWS):
        sampler = samplers[7 * row]
        scores = sampler.filtered(sampler.adjusted(logits[0, 0])).astype(np.float64)
        expected = np.exp(scores) / np.exp(scores).sum() * 7 * steps
        counts = np.bincount(found[:, 7 * row : 7 * row + 7].ravel(), minlength=SIZE)
        assert not counts[expected == 0].any()
        rare = expected < 5
        counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
        chi_square = ((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
        freedom = len(counts) - 1
        assert chi_square < freedom + 3 * np.sqrt(2 * freedom), params


def test_a_row_draws_the_same_alone_and_beside_others(chooser):
    params = {"do_sample": True, "top_k": 40, "repetition_penalty": 1.2}
    alone, together = sampler_of(params, 3), sampler_of(params, 3)
    others = [sampler_of({**params, "temperature": 2.0}, seed) for seed in range(4)]
    for step in range(20):
        logits = logits_of(8, step)
        (token,) = tokens_of(chooser, [alone], logits[step % 4 : step % 4 + 1])
        rows = [*others[: step % 4], together, *others[step % 4 :]]
        assert tokens_of(chooser, rows, logits)[step % 4] == token


def test_slots_go_to_others_without_a_trace(ascend):
    """Ten rows on three slots, of which some are forgotten."""
    planes, params = PenaltyBuffers(SIZE, 0, 4), {"repetition_penalty": 1.5, "suppress_tokens": (1, 2)}
    samplers = [sampler_of(params, prompt=(row, 50 + row)) for row in range(10)]
    for step in range(12):
        rows = [samplers[(step + more) % len(samplers)] for more in (0, 3, 5)]
        slots = planes.slots(rows)
        assert len(set(slots)) == 3 and 0 not in slots
        numbers = planes.buffer.asnumpy().reshape(2, 4, SIZE)
        assert (numbers[0, 0] == 1).all() and (numbers[1, 0] == 0).all()
        for slot, sampler in zip(slots, rows):
            factor, bias = numbers[:, slot]
            assert set(np.flatnonzero(factor != 1)) == set(sampler.history)
            assert set(np.flatnonzero(bias)) == {1, 2} and (bias[[1, 2]] == -np.inf).all()
            sampler.note(100 + step)
        if step == 6:
            del samplers[:4], sampler, rows


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("params", [{}, {"do_sample": True, "top_k": 4}, {"repetition_penalty": 1.2}])
def test_logits_that_are_no_numbers_end_in_an_error(chooser, params, broken):
    logits = logits_of(2)
    logits[1] = broken
    samplers = [sampler_of(params) for _ in range(2)]
    found = chooser(samplers, Tensor(logits))
    assert 0 <= samplers[0].choose(found[0]) < SIZE
    with pytest.raises(InputError, match="thinker's logits hold NaN or infinite numbers"):
        samplers[1].choose(found[1])


def test_where_every_id_is_banned_there_is_an_error(chooser):
    sampler = sampler_of({"suppress_tokens": tuple(range(SIZE - 1)), "bad_words_ids": [[SIZE - 1]]})
    with pytest.raises(InputError, match="every token of the vocabulary is banned"):
        sampler.choose(chooser([sampler], Tensor(logits_of(1)))[0])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("drawn", [False, True])
def test_ranks_with_parts_of_the_vocabulary_choose_as_one_process(ascend, size, drawn):
    """On two ranks 75 ids each: of them 64 travel, or one."""
    bounds = [SIZE * rank // size for rank in range(size + 1)]
    params = [{"do_sample": True, **draw} for draw in DRAWS[: 4 * drawn]] + PENALTIES[:3]
    logits, host = np.round(logits_of(8) * 8), [sampler_of(item, seed) for seed, item in enumerate(params)]
    expected = [row.choose(line) for row, line in zip(host, logits[:, 0])]

    parts = []
    for first, last in pairwise(bounds):
        head = SimpleNamespace(size=last - first, dtype=ms.float32, vocabulary=SimpleNamespace(first=first))
        rows = [sampler_of(item, seed) for seed, item in enumerate(params)]
        parts.append(Chooser(head, 8)(rows, Tensor(np.ascontiguousarray(logits[..., first:last]))))
        assert all(
            isinstance(part, Likeliest) and len(part.ids) == (min(64, last - first) if drawn else 1) for part in parts[-1]
        )

    def work(comm):
        return SplitVocabulary(comm, bounds).likeliest(parts[comm.rank])

    for found in Ranks(size).run(work):
        rows = [sampler_of(item, seed) for seed, item in enumerate(params)]
        assert [row.choose(line) for row, line in zip(rows, found)] == expected


def answers_of(engine, requests):
    """Ids of each, all asked at once."""
    ids, found = [engine.add(**request) for request in requests], {}
    while engine.added:
        for id, event in engine.step():
            found[id] = getattr(event, "sequences", None) if hasattr(event, "sequences") else found.get(id)
    return [np.asarray(found[id]).tolist() for id in ids]


def test_an_engine_on_the_device_answers_as_one_on_the_host(ascend, tiny_model, use_operators, monkeypatch):
    """Greedy rows of all kinds side by side, of which some are chosen for on the host; and sampled ones are what they are alone."""
    options = [*PENALTIES[:3], {"begin_suppress_tokens": (7,), "bad_words_ids": [[5]]}, *ON_THE_HOST[:4]]
    requests = [
        {"input_ids": np.array([[31, 32, 33 + row]]), "max_new_tokens": 6, "eos_token_id": [], **item}
        for row, item in enumerate(options)
    ]
    sampled = [
        {**request, "do_sample": True, "top_k": 20, "temperature": 0.7, "seed": row}
        for row, request in enumerate(requests[:3])
    ]
    chosen, take = [], RowSampler.choose
    monkeypatch.setattr(RowSampler, "choose", lambda row, found: chosen.append(found) or take(row, found))
    thinker = tiny_model.thinker
    found = answers_of(Engine(thinker), requests + sampled)
    assert len(chosen) == 6 * 7
    assert found[len(requests) :] == [answers_of(Engine(thinker), [request])[0] for request in sampled]
    use_operators(Reference)
    assert found[: len(requests)] == answers_of(Engine(thinker), requests)
