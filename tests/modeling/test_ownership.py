"""Who reads parameters, and where a plan reaches into the model. Read off the source with ast."""

import ast
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.modeling.layer import CellsOnly, identity
from ms_omni.modeling.layers import Embedding, Linear
from ms_omni.modeling.moe import Experts
from ms_omni.parallel.layers import Some, SplitHead, become

PACKAGE = Path(__file__).resolve().parents[2] / "ms_omni"
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
PARAMETERS = {"weight", "bias", "gate_up", "down"}
OTHERS = {
    "ByRow": "put in front of an Embedding by a plan: it looks its own rows up",
    "Change": "a tensor of an adapter, in numpy",
    "Product": "weights as Ascend's kernels take them, made of operands",
}
SCALES = {"self_attn_layer_scale", "mlp_layer_scale", "q_norm", "k_norm"}
"""Parts that a model may have or not; no plan touches them."""
PLANS = [f"parallel/{name}.py" for name in ("layers", "group", "zero3")]
BOOKS = {"following", "coming", "process_group", "accord", "prepared_frame"}
"""What blocks note about one another, who holds a model together, and what was prepared for weights that are gone."""


def bases(node):
    return {base.id for base in node.bases if isinstance(base, ast.Name)}


def owners():
    """Names of the classes that are a `Layer`."""
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {"Layer", *OTHERS}
    while more := {node.name for node in classes if bases(node) & found} - found:
        found |= more
    return found


def attributes(tree):
    """(class or None, attribute node) of every attribute in a file."""
    inside = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            inside |= {id(part): node.name for part in ast.walk(node)}
    return [(inside.get(id(node)), node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]


def test_nobody_reads_the_parameters_of_another():
    own = owners()
    assert {"Linear", "Embedding", "Experts", "RMSNorm", "Convolution"} <= own
    found = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for name, tree in TREES.items()
        for cls, node in attributes(tree)
        if node.attr in PARAMETERS and not (cls in own and ast.unparse(node.value) == "self")
    ]
    assert not found


def assigned(tree):
    """Attribute nodes that are given a value."""
    targets = [
        node.targets if isinstance(node, ast.Assign) else [node.target] for node in ast.walk(tree) if is_assignment(node)
    ]
    return [
        node for several in targets for target in several for node in ast.walk(target) if isinstance(node, ast.Attribute)
    ]


def is_assignment(node):
    return isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign))


def test_a_plan_reaches_into_the_model_in_two_places():
    """Where a layer reads its parameters, and where a block has a part of a sum; the rest are subclasses (`become`)."""
    planned = {
        node.attr
        for name in PLANS
        for node in assigned(TREES[name])
        if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) != "self"
    }
    assert planned <= {"source", "reduce"} | BOOKS and {"source", "reduce"} <= planned
    calls = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    replaceable = {
        target.attr
        for node in calls
        if isinstance(node.value, ast.Name) and node.value.id == "identity"
        for target in node.targets
        if isinstance(target, ast.Attribute)
    }
    assert replaceable - SCALES == {"source", "reduce"}


def test_a_layer_says_whether_it_can_be_read_in_place():
    linear, experts = Linear(3, 4), Experts(2, 3, 4)
    weight, bias = linear.stored()
    assert weight is linear.weight and bias is linear.bias and linear.in_place and linear.dtype == weight.dtype
    assert experts.stored() == (experts.gate_up, experts.down)
    linear.source = lambda x: x
    become(experts, Some, first=1)
    for layer in (linear, experts):
        with pytest.raises(CellsOnly):
            layer.stored()
    linear.source, linear.stable = identity, True
    assert not linear.in_place


def test_a_plan_keeps_what_a_layer_is():
    head = Linear(3, 4, bias=False)
    parameters = head.parameters_dict()
    become(head, SplitHead, size=4, vocabulary=None)
    assert isinstance(head, Linear) and isinstance(head, SplitHead) and head.parameters_dict() == parameters


@pytest.mark.parametrize("kind", [Linear, Embedding])
def test_any_matrix_is_a_head(kind):
    head = kind(5, 3) if kind is Embedding else kind(3, 5, bias=False)
    weight, x = np.arange(15, dtype=np.float32).reshape(5, 3), np.ones((1, 2, 3), np.float32)
    head.weight.set_data(Tensor(weight))
    assert head.size == 5 and (head.logits(Tensor(x)).asnumpy() == x @ weight.T).all()
    head.resize(7, None)
    assert head.size == 7 and head.weight.shape == (7, 3) and (head.weight.asnumpy()[5:] == weight.mean(0)).all()
