"""What a plan costs before anything is loaded: memory per card, communication, and lower bounds of the times of its steps.

Everything is computed from the table that loading uses (`Plan.place`), so the bytes are those that a rank holds and the
collectives those that `Team.traffic` counts: some callers at once, greedy text, speech as it is drawn by default.

    in turns   every card   prompts | token, frame, sound | token, frame, sound | ...
    apart      thinker's    prompts | token | token | token | ...          a word goes over as soon as it is written,
               speech's           prompts | frame, sound | frame, sound |  and nobody waits for the other
"""

import math
from dataclasses import dataclass, field

from ..ascend_storage import launches
from ..checkpoint.names import part_of, sources
from ..errors import InputError
from ..modeling import BLOCK_TOKENS
from ..quantised import Storage
from .hardware import Hardware
from .launches import Form
from .plan import STRATEGIES, strategy_module
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

    weights: dict
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
    frame: tuple = ()
    sound: Step | None = None
    reading: tuple = ()
    hearing: tuple = ()

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
    config,
    shapes,
    strategy,
    cards,
    context,
    itemsize,
    prompt=CHUNK_TOKENS,
    rows=1,
    speech_card=False,
    storages=None,
    cache="auto",
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
        plan = strategy_module(strategy).make_plan(config, shapes, cards)
        slices = [plan.place(shapes, rank, cards) for rank in range(cards)]
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


def _check(config, strategy, cards, context, prompt, rows, speech_card):
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


def _nbytes(sizes):
    return sum(size.nbytes for size in sizes.values())


def _card(sizes, shapes, cache, itemsize, gathered=0):
    weights = {}
    for name, size in sizes.items():
        part = part_of(name) or "other"
        weights[part] = weights.get(part, 0) + size.nbytes
    return Card(weights, cache, _nbytes(sizes) + _two_tensors(sizes, shapes, itemsize), gathered)


def _two_tensors(held, shapes, itemsize):
    """The parameter that is being filled (in the host's memory) and the stored tensor that is being read."""
    largest = max(size.nbytes for size in held.values())
    stored = max(math.prod(source.shape) for name in held for source in sources(name, shapes[name])[:1])
    return largest + min(stored * itemsize, largest)


def _cache_bytes(config, parts, context, itemsize, codes):
    """Keys and values of a caller: `[of the thinker]`, and of the talker when there is one."""
    text = config.thinker_config.text_config
    width = parts.get("thinker.model.layers.0.self_attn.k_proj.weight")
    rows = text.num_key_value_heads * text.head_dim
    if getattr(width, "axis", None) is not None:
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
