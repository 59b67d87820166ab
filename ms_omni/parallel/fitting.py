"""Where a model fits whose weights are stored in some way, in a folder, on one card and on a laptop; computed, nothing is loaded.

A card holds what no code is in bfloat16, and of codes those that its kernels multiply with; the processor of a laptop computes in
float32, and holds matrices as they are stored, in bfloat16 or as codes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..checkpoint.header import DTYPES
from ..checkpoint.names import part_of
from ..checkpoint.storage import stored_bytes
from ..modeling import BLOCK_TOKENS
from ..quantised import Storage
from .hardware import Hardware
from .launches import GRAPH
from .predict import Prediction, predict

BFLOAT16 = "bfloat16"
NONE: Mapping[str, str] = MappingProxyType({})
GIB = 1 << 30
SYSTEM_BYTES = 3 * GIB  # of a laptop, for its system and other programs: an estimate
PROCESS_BYTES = (
    900_000_000  # of this process without weights: 0.5 GB for the miniature (measured), the rest for a prompt of 512 tokens
)
CARD_BYTES = 2 * GIB  # MindSpore, CANN, activations: an estimate
WIDENED = re.compile(r"code2wav\..+|thinker\.audio_tower\.conv2d\d\..+")
"""Float32 on a processor, whatever the folder says: the vocoder, and convolutions."""
CARDS_GB, LAPTOPS_GB = (32, 64), (24, 32, 64)


@dataclass(frozen=True)
class Place:
    """A card or a laptop. bytes: of its memory; taken: of them, by all but weights and caches; gb_per_s: of its memory; card: a card."""

    name: str
    bytes: int
    taken: int
    gb_per_s: float
    card: bool

    def free(self, found: Prediction) -> int:
        """Bytes beside the weights, below 0 where those have no room; a laptop maps a folder, and loading takes nothing on top."""
        return self.bytes - self.taken - (max(found.held, found.loading) if self.card else found.held)

    def fits(self, found: Prediction) -> bool:
        """Whether weights and caches of a prediction have room."""
        return min(self.free(found), self.bytes - self.taken - found.held - found.kv_cache) >= 0


def places(hardware: Hardware, gb_per_s: float) -> list[Place]:
    """The cards of 32 and 64 GB, with the speed of `hardware`, and laptops with so many GB/s."""
    cards = [Place(f"1 x Ascend, {gb} GB", gb * 10**9, CARD_BYTES, hardware.memory_gb_per_s, True) for gb in CARDS_GB]
    return cards + [Place(f"laptop, {gb} GB", gb * GIB, SYSTEM_BYTES + PROCESS_BYTES, gb_per_s, False) for gb in LAPTOPS_GB]


def folder_bytes(shapes: Mapping, storages: Mapping[str, Storage], dtypes: Mapping[str, str] = NONE) -> dict[str, int]:
    """`{part of the model: bytes}` of a folder's weights. dtypes: of what is no codes, where that is not bfloat16, as safetensors
    calls them.
    """
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        part, itemsize = part_of(name) or "other", DTYPES[dtypes.get(name, "BF16")].itemsize
        found[part] = found.get(part, 0) + stored_bytes(name, shape, storages.get(name), itemsize)
    return found


def in_memory(
    shapes: Mapping, storages: Mapping[str, Storage], dtypes: Mapping[str, str] = NONE
) -> dict[str, Storage | str]:
    """`storages` of `predict` for a processor: codes, and all other matrices that the folder has in bfloat16 (dtypes: see
    `folder_bytes`); the rest is float32.
    """
    matrices = (name for name, shape in shapes.items() if len(shape) > 1 and not WIDENED.fullmatch(name))
    kept = (name for name in matrices if dtypes.get(name, "BF16") == "BF16")
    return dict.fromkeys(kept, BFLOAT16) | dict(storages)


def token_s(place: Place, found: Prediction, hardware: Hardware, full: bool) -> float:
    """The least time of a caller's token: what it reads, by the memory's bandwidth, and on a card no less than the launches take.
    full: with all the keys and values of the context, or with none.
    """
    reading = (found.token.reads - (0 if full else found.cached)) / (1e9 * place.gb_per_s)
    return max(reading, found.bound((found.token,), hardware, GRAPH).launching) if place.card else reading


def longest(place: Place, found: Prediction, config, context: int) -> int:
    """Tokens of the longest context of a single caller that fits, by a prediction for one with `context` tokens."""
    room = place.bytes - place.taken - found.held if place.free(found) >= 0 else 0
    blocks = -(-context // BLOCK_TOKENS)
    return min(BLOCK_TOKENS * (room * blocks // found.kv_cache), config.thinker_config.text_config.max_position_embeddings)


def predictions(
    config,
    shapes,
    storages,
    place: Place,
    context: int,
    rows: list[int],
    cache: str = "auto",
    dtypes: Mapping[str, str] = NONE,
) -> list[Prediction]:
    """Of one place, for each number of callers. storages: of the folder, on a card as `ascend_storage` says; cache: see `predict`, of a
    laptop; dtypes: see `folder_bytes`, of a laptop.
    """
    held = storages if place.card else in_memory(shapes, storages, dtypes)
    itemsize, cache = (2, "auto") if place.card else (4, cache)
    return [predict(config, shapes, "ep", 1, context, itemsize, rows=each, storages=held, cache=cache) for each in rows]
