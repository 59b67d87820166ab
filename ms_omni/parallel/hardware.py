"""What a card can do, and how many kernels the host starts on it for a step.

Cards are described in configs/hardware/*.json: each number with its source and whether it is an estimate. The host starts kernels
one after another, so their number bounds the time of a step, whatever the card can do and however many rows the step is for. They
are counted at the published sizes by MindSpore's own kernel selection for Ascend, in dry run (`tests/ascend_dryrun`); views and
reshapes are no launches, and none is of a kind that CANN has to build. For other sizes they grow with the layers, of the code
predictor also with the codes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import config_folder
from ..errors import ConfigError

SCALARS = ("memory_gb", "memory_gb_per_s", "bf16_tflops", "collective_us")
BY_CARDS = ("all_gather_gb_per_s", "all_reduce_gb_per_s")
LAUNCH_US = ("eager", "graph")
KEYS = (*SCALARS, *BY_CARDS, "launch_us")
TO_MEASURE = (
    ("ms-omni doctor --only mindspore,operators,speed", "replaces memory_gb_per_s, bf16_tflops, launch_us"),
    (
        "ms-omni doctor --only loopback,mindspore,msrun",
        "replaces all_reduce_gb_per_s, all_gather_gb_per_s, collective_us",
    ),
    (
        "ms-omni launch --cards N launch/benchmark.py --geometry DIR --only decode,speech,answer",
        "a token for several rows, a frame, a spoken answer: no less than the bounds, and how much more",
    ),
    (
        "ms-omni bench serve --geometry DIR --rows 1,4,16 --spoken 1",
        "of a model in one process: first sound and real-time factor of callers at once",
    ),
)
"""Commands that show whether the times of `ms-omni plan` are true, and what each gives."""


@dataclass(frozen=True)
class Hardware:
    """One card and its host. GB are 1e9 bytes; bandwidths of collectives are bytes of the result per second, by number of cards;
    launch_us: what the host needs to start a kernel, called one by one ("eager") and as part of a graph.
    """

    name: str
    memory_gb: float
    memory_gb_per_s: float
    bf16_tflops: float
    collective_us: float
    all_gather_gb_per_s: dict[int, float]
    all_reduce_gb_per_s: dict[int, float]
    launch_us: dict[str, float]
    estimates: tuple[str, ...]

    def bandwidth(self, kind: str, cards: int) -> float:
        """Bytes per second of a collective over `cards`, by the nearest number of cards that is known and not larger."""
        table = self.all_reduce_gb_per_s if kind == "all_reduce" else self.all_gather_gb_per_s
        return 1e9 * table[max((known for known in table if known <= cards), default=min(table))]


def load_hardware(where: str | Path) -> Hardware:
    """`Hardware` from a JSON file, or by the name of one that comes along ("910b"). Raises `ConfigError`."""
    files = {path.stem: path for path in sorted((config_folder() / "hardware").glob("*.json"))}
    path = files.get(str(where), Path(where))
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"hardware is {str(where)!r}, expected a file, or one of {', '.join(files)}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    return _read(path, entries)


def _read(path: Path, entries: Any) -> Hardware:
    expected = {"name", *KEYS}
    if not isinstance(entries, dict) or set(entries) != expected:
        found = sorted(entries) if isinstance(entries, dict) else type(entries).__name__
        raise ConfigError(f"{path} holds {found}, expected {sorted(expected)}")
    values: dict[str, Any] = {"name": entries["name"]}
    for key in KEYS:
        entry = entries[key]
        if not isinstance(entry, dict) or set(entry) != {"value", "source", "estimate"}:
            raise ConfigError(f"{path}: {key} needs a value, its source, and whether it is an estimate")
        value = _by_cards(path, key, entry["value"]) if key in BY_CARDS else entry["value"]
        if key == "launch_us" and (not isinstance(value, dict) or set(value) != set(LAUNCH_US)):
            raise ConfigError(f"{path}: {key} is {value!r}, expected microseconds for {', '.join(LAUNCH_US)}")
        if not all(map(_positive, value.values() if isinstance(value, dict) else [value])):
            raise ConfigError(f"{path}: {key} is {entry['value']!r}, expected positive numbers")
        values[key] = value
    return Hardware(**values, estimates=tuple(key for key in KEYS if entries[key]["estimate"]))


def _by_cards(path: Path, key: str, table: Any) -> dict[int, float]:
    if not isinstance(table, dict) or not table or not all(text.isdecimal() for text in table):
        raise ConfigError(f"{path}: {key} is {table!r}, expected bandwidths by number of cards")
    return {int(cards): value for cards, value in table.items()}


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


FRAME = (5, 15)  # layers of the published code predictor, codes that it writes


@dataclass(frozen=True)
class Form:
    """How the steps of decoding run. kernels: how they are started, a key of the hardware's `launch_us`; layer: launches of a layer
    of the thinker on one card; rank: more of each on one of several cards, without the collectives; shared: more of each layer
    with a shared expert, as in the talker; besides: of a step beside its layers; frame: codes 1 .. 15 of a frame, sampled; choice:
    of a token for each row, sampled, and penalties: more where it has some; chunk, chunk_besides: as layer and besides, of a chunk of a
    prompt, whose kernels are called one by one.
    """

    name: str
    kernels: str
    layer: int
    rank: int = 3
    shared: int = 6
    besides: int = 2
    frame: int = 1189
    choice: int = 8
    penalties: int = 6
    chunk: int = 23
    chunk_besides: int = 2

    def thinker(self, layers: int, cards: int, chunk: bool = False) -> int:
        """Of one step, without the choice of a token."""
        more = self.rank if cards > 1 else 0
        return self._step(layers, more, chunk)

    def talker(self, layers: int, chunk: bool = False) -> int:
        """Of one step of the talker, without the choice of code 0 and the codes that follow it."""
        return self._step(layers, self.shared, chunk)

    def _step(self, layers: int, more: int, chunk: bool) -> int:
        each, besides = (self.chunk, self.chunk_besides) if chunk else (self.layer, self.besides)
        return (each + more) * layers + besides

    def codes(self, layers: int, codes: int) -> int:
        """Of the codes that follow a code 0."""
        return round(self.frame * layers * codes / (FRAME[0] * FRAME[1]))


GRAPH = Form("graph", "graph", layer=22)
"""As it is: all kernels are CANN's."""
BOOSTED = Form("boosted graph", "graph", layer=20)
"""With `MS_OMNI_BOOST=1`: with kernels that come with MindSpore (infer_boost), whose attention nobody has seen run."""
FORMS = (GRAPH, BOOSTED)
GATHERED_LAYER = 42
"""Of a layer whose weights are gathered when they are used (ZeRO-3), whose cells run one by one; without the gathers."""
VOCODER = 701
"""Of a piece of sound of one row, one by one; on MindSpore 2.7.1 29 fewer."""
