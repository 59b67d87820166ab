"""Strange values, and ways to damage bytes and JSON."""

import copy
import json
from pathlib import Path

import numpy as np

STRANGE = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**40, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308, 2 + 1j),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        np.float32("nan"),
        np.int64(3),
        np.array([1, 2]),
        np.zeros((0,)),
        np.zeros((2, 2)),
    ),
    *("", "x", "yes", "None", "0", "\ud800", "a" * 5000, b"x", Path("x"), Ellipsis, object(), len, int, ValueError("x")),
    *(
        [],
        [1],
        [None],
        [[]],
        [-1],
        ["x"],
        [float("nan")],
        [2**63],
        (),
        (1, 2),
        {},
        {"a": 1},
        {1: None},
        set(),
        {1},
        range(3),
    ),
)
JSON_VALUES = (
    *(None, True, 0, 1, -1, 3, 2**31, 2**40, 10**30, 0.5, -0.5, 1e-320, 1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "0",
        "../x",
        "\u0000",
        "a" * 5000,
        [],
        [0],
        [[]],
        [None] * 3,
        ["x", 1],
        [-1, 0],
        {},
        {"x": 1},
        [1e30, 1e30, 1e30],
    ),
)
NEVER_NUMBERS = (str, bytes, dict, set, complex, Path, type, range)


def damaged_bytes(content: bytes, rng) -> bytes:
    """Cut off, changed here and there, overwritten for a while, doubled, shifted, or with something in front."""
    data, start = bytearray(content), int(rng.integers(0, max(len(content), 1)))
    way = rng.integers(0, 7)
    if way == 0:
        return content[:start]
    if way == 1:
        data[start : start + int(rng.integers(1, 4096))] = bytes(int(rng.integers(1, 4096)))
    elif way == 2:
        data[start:start] = rng.bytes(int(rng.integers(1, 64)))
    elif way == 3:
        data = data + data[start:]
    elif way == 4:
        data = bytearray(rng.bytes(int(rng.integers(1, 32)))) + data
    else:
        reach = len(data) if way == 5 else min(len(data), 200)
        for place in rng.integers(0, max(reach, 1), int(rng.integers(1, 16))):
            data[place] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(0, 256))]))
    return bytes(data)


def leaves(value, path=()):
    """The places of a JSON value, containers among them."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*path, key)
        yield from leaves(part, (*path, key))


def damaged_json(content, rng):
    """Text of JSON in which one or two values are others, or gone, doubled or deeply nested; or in which bytes are damaged."""
    if rng.random() < 0.15:
        return damaged_bytes(json.dumps(content).encode(), rng)
    content = copy.deepcopy(content)
    for _ in range(int(rng.integers(1, 3))):
        places = list(leaves(content))
        if not places:
            break
        *way, last = places[rng.integers(0, len(places))]
        holder = content
        for key in way:
            holder = holder[key]
        deed = rng.integers(0, 8)
        if deed == 0:
            del holder[last]
        elif deed == 1 and isinstance(holder, dict):
            holder[f"{last}_"] = holder.pop(last)
        elif deed == 2:
            holder[last] = [holder[last]]
        else:
            holder[last] = JSON_VALUES[rng.integers(0, len(JSON_VALUES))]
    text = json.dumps(content)
    if rng.random() < 0.03:
        text = text[:1] + '"deep": ' + "[" * 100_000 + "]" * 100_000 + ", " + text[1:]
    return text.encode()
