"""What a plan costs before anything is loaded: memory per card, communication, and lower bounds of the times of its steps.

Everything is computed from the table that loading uses (`Plan.slices`), so the bytes are those that a rank holds and the
collectives those that `ProcessGroup.traffic` counts: some callers at once, greedy text, speech as it is drawn by default.

    in turns   every card   prompts | token, frame, sound | token, frame, sound | ...
    apart      thinker's    prompts | token | token | token | ...          a word goes over as soon as it is written,
               speech's           prompts | frame, sound | frame, sound |  and nobody waits for the other

Also where a model fits whose weights are stored in some way, in a folder, on one card and on a laptop. A card holds what no code is
in bfloat16, and of codes those that its kernels multiply with; the processor of a laptop computes in float32, and holds matrices as
they are stored, in bfloat16 or as codes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..ascend import launches
from ..checkpoint.names import part_of, sources
from ..checkpoint.safetensors import DTYPES
from ..checkpoint.storage import stored_bytes
from ..errors import InputError
from ..modeling import BLOCK_TOKENS
from ..quantised import Storage
from .hardware import GRAPH, Form, Hardware
from .plan import STRATEGIES, make_plan
from .step_costs import (
    CHUNK_TOKENS,
    FIRST_FRAMES,
    HEAD,
    LATER_FRAMES,
    Bound,
    Step,
    codes_step,
    gathers,
    size_of,
    sound_step,
    talker_step,
    text_step,
    text_traffic,
)

SCALE_BYTES = 4  # of a head's keys, or values, of a token (`engine/kv_pool.py`)
SPEECH = ("talker.", "code2wav.")
"""Beginnings of the names of what speaks."""


@dataclass(frozen=True)
class Card:
    """Bytes on the card that holds most. weights: by part of the model; kv_cache: of all callers; gathered: whole weights held for the
    moment (ZeRO-3); loading: the peak while loading.
    """

    weights: dict[str, int]
    kv_cache: int
    loading: int
    gathered: int = 0

    @property
    def held(self) -> int:
        """Bytes of all weights."""
        return sum(self.weights.values())

    @property
    def peak(self) -> int:
        """Bytes while loading or generating, whichever is more, apart from activations and MindSpore itself."""
        return max(self.loading, self.held + self.kv_cache + self.gathered)


@dataclass(frozen=True)
class Times:
    """The least time, in seconds, of a step of text; of a frame of speech with its share of a piece of sound; from the call to the
    first sound of the last of all callers, who call at once; and of a second of speech while its text is still written, that is,
    the real-time factor.
    """

    token: float
    frame: float
    first: float
    factor: float


@dataclass(frozen=True)
class Prediction(Card):
    """The card of those that hold the thinker, and what the steps of `rows` callers cost.

    speaker: the `Card` of its own that speaks, or None. token: the `Step` of a token of text for all of them, which reads cached bytes
    of keys and values. Where speech was
    computed, frame: the steps of a frame; sound: of a piece of sound of one caller; reading and hearing: of one prompt, by the
    thinker and by the talker.
    """

    strategy: str = ""
    cards: int = 1
    rows: int = 1
    speaker: Card | None = None
    cached: int = 0
    token: Step = field(kw_only=True)
    frame: tuple[Step, ...] = ()
    sound: Step | None = None
    reading: tuple[Step, ...] = ()
    hearing: tuple[Step, ...] = ()

    def bound(self, steps: tuple, hardware: Hardware, form: Form) -> Bound:
        """The `Bound` of steps of this prediction, one after the other."""
        return sum((step.bound(hardware, self.cards, form, self.strategy == "zero3") for step in steps), Bound())

    def times(self, hardware: Hardware, form: Form, frame_s: float) -> Times:
        """Of answers that are spoken, in turns or apart. frame_s: seconds of sound in a frame."""
        token, codes, sound, read, hear = (
            self.bound(steps, hardware, form).least
            for steps in ((self.token,), self.frame, (self.sound,), self.reading, self.hearing)
        )
        frame = codes + sound * self.rows / LATER_FRAMES
        if self.speaker is None:
            prompts, turn, both = self.rows * (read + hear), token + codes, token + frame
        else:  # one is heard while the next one is read
            prompts, turn = read + hear + (self.rows - 1) * max(read, hear), max(token, codes)
            both = max(token, frame)
        first = prompts + codes + (FIRST_FRAMES - 1) * turn + self.rows * sound
        return Times(token, frame, first, both / frame_s)


def predict(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    strategy: str,
    cards: int,
    context: int,
    itemsize: int,
    prompt: int = CHUNK_TOKENS,
    rows: int = 1,
    speech_card: bool = False,
    storages: Mapping[str, Any] | None = None,
    cache: str = "auto",
) -> Prediction:
    """The `Prediction` for a whole model.

    config: of the whole model; shapes: `{full name: shape}` of its parameters; strategy: "ep" or "zero3"; context: tokens
    in the cache of each caller; itemsize: bytes of an element; prompt: tokens in front of the first sound; rows: callers at a time;
    speech_card: whether talker and vocoder have a card of their own, beside the others; storages: `{name: Storage or "bfloat16"}` of what
    is held otherwise than in numbers of itemsize (see `step_costs.size_of`); cache: "int8" for keys and values as codes with a scale per
    token and head. Raises `InputError` for what cannot be.
    """
    text = config.thinker_config.text_config
    _check(config, strategy, cards, context, prompt, rows, speech_card)
    if cards == 1:
        slices = [dict.fromkeys(shapes)]
    else:
        plan = make_plan(strategy, config, shapes, cards)
        slices = [plan.slices(shapes, rank, cards) for rank in range(cards)]
    if speech_card:
        slices = [{name: part for name, part in parts.items() if not name.startswith(SPEECH)} for parts in slices]

    def sizes_of(parts):
        return {
            name: size_of(name, shapes[name], itemsize, part, (storages or {}).get(name)) for name, part in parts.items()
        }

    local = [sizes_of(parts) for parts in slices]
    held = max(local, key=_nbytes)
    parts = slices[local.index(held)]
    gathering = strategy == "zero3" and cards > 1
    whole = sizes_of(dict.fromkeys(shapes))
    groups = gathers(whole, held, cards) if gathering else {}
    biggest = 2 * max(map(sum, groups.values()), default=0)  # of one block, and of the one that follows
    read = whole if gathering else held
    caches = _cache_bytes(config, parts, context, itemsize, cache == "int8")

    head, part = 1, parts.get(HEAD)
    if isinstance((storages or {}).get(HEAD), Storage):
        head = launches(shapes[HEAD][0] if part is None else part.local_shape[0])

    def thinker(tokens, cached, chunk=False):
        traffic = text_traffic(text, parts, groups, cards, itemsize, tokens, 1 if chunk else rows)
        return text_step(config, read, traffic, cached, cards, tokens, chunk, not gathering, head)

    spoken, speaker = {}, None
    if config.talker_config is not None and not gathering:
        speaking = {name: size for name, size in whole.items() if name.startswith(SPEECH)}
        talker = talker_step(config, speaking, rows * caches[1], 1 if speech_card else cards, rows)
        spoken = {"frame": (talker, codes_step(config, speaking, rows)), "sound": sound_step(speaking)}
        chunks = [min(CHUNK_TOKENS, prompt - start) for start in range(0, prompt, CHUNK_TOKENS)]
        spoken["reading"] = tuple(thinker(tokens, 0, chunk=True) for tokens in chunks)
        spoken["hearing"] = tuple(talker_step(config, speaking, 0, 1, tokens, chunk=True) for tokens in chunks)
        if speech_card:
            speaker = _card(speaking, shapes, rows * caches.pop(), itemsize)
    card = _card(held, shapes, rows * sum(caches), itemsize, biggest)
    cached = rows * caches[0]
    steps = {"token": thinker(rows, cached), **spoken}
    return Prediction(**vars(card), strategy=strategy, cards=cards, rows=rows, speaker=speaker, cached=cached, **steps)


def _check(config: Any, strategy: str, cards: int, context: int, prompt: int, rows: int, speech_card: bool) -> None:
    for name, value in (("cards", cards), ("the context", context), ("the prompt", prompt), ("callers", rows)):
        if value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    if strategy not in STRATEGIES:
        raise InputError(f"the strategy is {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    positions = config.thinker_config.text_config.max_position_embeddings
    for name, value in (("context", context), ("prompt", prompt)):
        if value > positions:
            raise InputError(f"the {name} is {value} tokens, and the model has {positions} positions")
    if speech_card and (strategy != "ep" or config.talker_config is None):
        what = "this model has no talker" if config.talker_config is None else "zero3 spreads what speaks over all cards"
        raise InputError(f"a card for speech was asked for, and {what}; leave it out")


def _nbytes(sizes: Mapping[str, Any]) -> int:
    return sum(size.nbytes for size in sizes.values())


def _card(sizes: Mapping[str, Any], shapes: Mapping, cache: int, itemsize: int, gathered: int = 0) -> Card:
    weights: dict[str, int] = {}
    for name, size in sizes.items():
        part = part_of(name) or "other"
        weights[part] = weights.get(part, 0) + size.nbytes
    return Card(weights, cache, _nbytes(sizes) + _two_tensors(sizes, shapes, itemsize), gathered)


def _two_tensors(held: Mapping[str, Any], shapes: Mapping, itemsize: int) -> int:
    """The parameter that is being filled (in the host's memory) and the stored tensor that is being read."""
    largest = max(size.nbytes for size in held.values())
    stored = max(math.prod(source.shape) for name in held for source in sources(name, shapes[name])[:1])
    return largest + min(stored * itemsize, largest)


def _cache_bytes(config: Any, parts: Mapping[str, Any], context: int, itemsize: int, codes: bool) -> list[int]:
    """Keys and values of a caller: `[of the thinker]`, and of the talker when there is one."""
    text = config.thinker_config.text_config
    width = parts.get("thinker.model.layers.0.self_attn.k_proj.weight")
    rows = text.num_key_value_heads * text.head_dim
    if width is not None and not width.flat and width.axis is not None:
        rows = width.length
    positions = -(-context // BLOCK_TOKENS) * BLOCK_TOKENS
    stacks = [(text, rows)]
    if config.talker_config is not None:
        talker = config.talker_config.text_config
        stacks.append((talker, talker.num_key_value_heads * talker.head_dim))
    return [
        2 * c.num_hidden_layers * positions * (width + width // c.head_dim * SCALE_BYTES if codes else width * itemsize)
        for c, width in stacks
    ]


BFLOAT16 = "bfloat16"
NONE: Mapping[str, str] = MappingProxyType({})
GIB = 1 << 30
SYSTEM_BYTES = 3 * GIB  # of a laptop, for its system and other programs: an estimate
PROCESS_BYTES = 900_000_000  # of this process without weights: 0.5 GB for the miniature (measured), the rest for 512 tokens
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


def longest(place: Place, found: Prediction, config: Any, context: int) -> int:
    """Tokens of the longest context of a single caller that fits, by a prediction for one with `context` tokens."""
    room = place.bytes - place.taken - found.held if place.free(found) >= 0 else 0
    blocks = -(-context // BLOCK_TOKENS)
    return min(BLOCK_TOKENS * (room * blocks // found.kv_cache), config.thinker_config.text_config.max_position_embeddings)


def predictions(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    storages: Mapping[str, Storage],
    place: Place,
    context: int,
    rows: list[int],
    cache: str = "auto",
    dtypes: Mapping[str, str] = NONE,
) -> list[Prediction]:
    """Of one place, for each number of callers. storages: of the folder, on a card as `ascend.on_card` says; cache: see `predict`, of a
    laptop; dtypes: see `folder_bytes`, of a laptop.
    """
    held = storages if place.card else in_memory(shapes, storages, dtypes)
    itemsize, cache = (2, "auto") if place.card else (4, cache)
    return [predict(config, shapes, "ep", 1, context, itemsize, rows=each, storages=held, cache=cache) for each in rows]
