"""The router and the mixture of experts, in both of its paths."""

import itertools

import numpy as np
import pytest

from ms_omni.modeling import ops
from ms_omni.modeling.ops import reference, stored
from ms_omni.modeling.ops.reference import Reference
from tests.ops import formulas


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("n, e, k", [(1, 2, 1), (5, 7, 3), (4, 4, 4)])
def test_route_topk(n, e, k, normalise, normal, tensors, close):
    logits = normal(n, e) * 2
    weights, indices = ops.route_topk(*tensors(logits), k, normalise)
    probs = formulas.softmax(logits)
    order = np.argsort(-probs, axis=-1)[:, :k]
    assert indices.asnumpy().tolist() == order.tolist()
    assert indices.asnumpy().dtype == np.int32 and weights.asnumpy().dtype == np.float32
    picked = np.take_along_axis(probs, order, -1)
    close(weights, picked / picked.sum(-1, keepdims=True) if normalise else picked)


def test_route_topk_breaks_ties_into_different_experts(tensors, close):
    weights, indices = ops.route_topk(*tensors(np.zeros((3, 6), np.float32)), 4, True)
    assert all(len(set(row)) == 4 for row in indices.asnumpy().tolist())
    close(weights, np.full((3, 4), 0.25))


def test_route_topk_survives_large_logits(tensors, close):
    logits = np.array([[3000.0, 0, 2999, -3000]], np.float32)
    weights, indices = ops.route_topk(*tensors(logits), 2, True)
    assert indices.asnumpy().tolist() == [[0, 2]]
    close(weights, formulas.softmax([[3000.0, 2999.0]]))


def moe(normal, rng, n, e, k, d=6, inner=5):
    indices = np.stack([rng.permutation(e)[:k] for _ in range(n)]).astype(np.int32)
    weights = rng.uniform(0.1, 1, (n, k)).astype(np.float32)
    return normal(n, d), normal(e, d, 2 * inner), normal(e, inner, d), weights, indices


PATHS = {"gathered": stored.gathered_experts, "grouped": stored.grouped_experts}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n, e, k", [(1, 3, 1), (1, 5, 3), (7, 5, 2), (40, 3, 3), (30, 9, 4)])
def test_experts(path, n, e, k, normal, rng, tensors, close):
    case = moe(normal, rng, n, e, k)
    close(PATHS[path](*tensors(*case)), formulas.experts(*case), 5e-6)


@pytest.mark.parametrize("path", [*PATHS.values(), ops.experts])
@pytest.mark.parametrize("n, e, k", [(1, 5, 3), (7, 5, 2), (40, 3, 3), (2, 9, 1)])
def test_shares_of_the_experts_add_up(path, n, e, k, normal, rng, tensors, close):
    """Each share computes what its own experts say; one that nobody asks for adds nothing."""
    case = moe(normal, rng, n, e, k)
    x, gate_up, down, weights, indices = case
    bounds = [0, 1, e - 1, e]
    parts = [path(*tensors(x, gate_up[a:b], down[a:b], weights, indices), a) for a, b in itertools.pairwise(bounds)]
    close(sum(part.asnumpy() for part in parts), formulas.experts(*case), 5e-6)


@pytest.mark.parametrize("path", PATHS)
def test_all_tokens_to_one_expert(path, normal, rng, tensors, close):
    case = moe(normal, rng, 9, 4, 1)
    case[-1][:] = 2
    close(PATHS[path](*tensors(*case)), formulas.experts(*case), 5e-6)


@pytest.mark.parametrize("rows", [Reference.GRAPH_EXPERT_ROWS, Reference.GRAPH_EXPERT_ROWS + 2])
def test_both_sides_of_the_switch_between_the_paths(rows, normal, rng, tensors, close, monkeypatch):
    taken = []
    for name in PATHS:
        function = PATHS[name]
        monkeypatch.setattr(reference, f"{name}_experts", lambda *a, f=function, n=name: taken.append(n) or f(*a))
    case = moe(normal, rng, rows // 2, 6, 2)
    close(Reference.experts(*tensors(*case)), formulas.experts(*case), 5e-6)
    assert taken == ["gathered" if rows <= Reference.GRAPH_EXPERT_ROWS else "grouped"]


def test_expert_load(normal, tensors, close):
    logits, mask = normal(6, 4), np.array([1, 1, 0, 1, 0, 1], np.float32)
    counts, probability = ops.expert_load(*tensors(logits), 2, *tensors(mask))
    probs = formulas.softmax(logits)
    chosen = np.argsort(-probs, axis=-1)[:, :2][mask == 1]
    close(counts, np.bincount(chosen.ravel(), minlength=4).astype(float), 0)
    close(probability, probs[mask == 1].sum(0))
