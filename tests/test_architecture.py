"""docs/architecture.md is true: what it names exists, and in its walks each function calls the next."""

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`((?:ms_omni|tests|launch)/[\w./]*)`(?: `([\w.]+)`)?")
STEP = re.compile(r"^(\d+)\. `([\w./]+)` `([\w.]+)`(?: \(as `(\w+)`\))?", re.MULTILINE)


def walks():
    """[[(path, name, what it is called as), ...], ...]: a walk begins where the numbers begin anew."""
    found = []
    for number, path, name, other in STEP.findall(PAGE):
        if number == "1":
            found.append([])
        assert len(found[-1]) + 1 == int(number), f"step {number}, {path} {name}, does not follow the one before it"
        found[-1].append((path, name, other or name.split(".")[-1]))
    return found


@functools.cache
def tree(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def definition(path, name):
    """The node of a function, method, class or value of a Python file, or None."""
    scope = tree(path).body
    for part in name.split("."):
        node = next((node for node in scope if part in names_of(node)), None)
        scope = getattr(node, "body", ())
    return node


def names_of(node):
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [getattr(node, "name", None)]


def is_operator(node):
    return any("operator" in mentioned(part) for part in getattr(node, "decorator_list", ()))


def mentioned(node):
    """What a piece of code refers to: names, attributes, and texts, by which kernels are looked up."""
    found = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    found |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    return found | {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def body_of(path, name):
    """The text of a C++ function: from its head to the brace that stands as far left as the head; None: there is none."""
    text = (ROOT / path).read_text(encoding="utf-8")
    head = re.search(rf"^( *)(?:KERNEL\({name},|[\w<>:*& ]+ \*?{name}\([^;]*?\{{$).*$", text, re.MULTILINE)
    return head and text[head.end() :].split(f"\n{head[1]}}}")[0]


@pytest.mark.parametrize("path, name", sorted(set(NAMED.findall(PAGE))))
def test_what_is_named_exists(path, name):
    assert (ROOT / path).exists()
    if name:
        found = definition(path, name) if path.endswith(".py") else body_of(path, name)
        assert found, f"{path} has no {name}"


@pytest.mark.parametrize("walk", walks(), ids=lambda walk: f"{walk[0][1]} to {walk[-1][0]} {walk[-1][1]}")
def test_each_step_calls_the_next(walk):
    for (path, name, _), (_, following, called) in itertools.pairwise(walk):
        if path.endswith(".py"):
            node = definition(path, name)
            if is_operator(node):
                assert following.endswith(f".{name}"), f"{following} is no implementation of the operator {name}"
            else:
                assert called in mentioned(node), f"{path}: {name} does not call {called}"
        else:
            assert re.search(rf"\b{called}\(", body_of(path, name)), f"{path}: {name} does not call {called}"


def test_the_walks_go_where_they_say():
    """From the engine's step to a kernel, and from a message to the encoder."""
    ways = walks()
    assert any(way[0][1] == "Engine.step" and way[-1][0].endswith((".cpp", ".h")) for way in ways)
    assert any(way[0][1].endswith("apply_chat_template") for way in ways)
    assert any(("ms_omni/modeling/vision_encoder.py", "VisionEncoder.construct", "visual") in way for way in ways)
    assert sum(map(len, ways)) > 40
