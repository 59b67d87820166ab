"""What a plan costs before anything is loaded: memory per card, communication, and lower bounds of the times of its steps.

Everything is computed from the table that loading uses (`Plan.place`), so the bytes are those that a rank holds and the
collectives those that `Team.traffic` counts: one conversation, greedy text.
"""

import math
from dataclasses import dataclass

from ..checkpoint.names import part_of, sources
from ..errors import InputError
from ..modeling import BUCKET_TOKENS
from .hardware import Hardware
from .launches import Form
from .plan import STRATEGIES, strategy_module
from .step_costs import (
    CHUNK_TOKENS,
    FIRST_FRAMES,
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


@dataclass(frozen=True)
class Prediction:
    """Bytes on the card that holds most, by part of the model; and what the steps cost.

    gathered: whole weights held for the moment (ZeRO-3). loading: the peak while loading. token: the `Step` of a token of text.
    speech: those of a frame, and first: those up to the first sound, in their order; both are empty where nobody computed them.
    """

    strategy: str
    cards: int
    weights: dict
    kv_cache: int
    gathered: int
    loading: int
    token: Step
    speech: tuple = ()
    first: tuple = ()

    @property
    def held(self) -> int:
        """Bytes of all weights on the card."""
        return sum(self.weights.values())

    @property
    def peak(self) -> int:
        """Bytes while loading or generating, whichever is more, apart from activations and MindSpore itself."""
        return max(self.loading, self.held + self.kv_cache + self.gathered)

    def bound(self, steps: tuple, hardware: Hardware, form: Form) -> Bound:
        """The `Bound` of steps of this prediction, one after the other."""
        return sum((step.bound(hardware, self.cards, form, self.strategy == "zero3") for step in steps), Bound())


def predict(config, shapes, strategy, cards, context, itemsize, prompt=CHUNK_TOKENS) -> Prediction:
    """The `Prediction` for a whole model.

    config: of the whole model; shapes: `{full name: shape}` of its parameters; strategy: "ep" or "zero3"; context: tokens
    in the cache; itemsize: bytes of an element; prompt: tokens in front of the first sound. Raises `InputError` for what
    cannot be.
    """
    text = config.thinker_config.text_config
    for name, value in (("cards", cards), ("the context", context), ("the prompt", prompt)):
        if value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    if strategy not in STRATEGIES:
        raise InputError(f"the strategy is {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    for name, value in (("context", context), ("prompt", prompt)):
        if value > text.max_position_embeddings:
            raise InputError(f"the {name} is {value} tokens, and the model has {text.max_position_embeddings} positions")
    if cards == 1:
        slices = [dict.fromkeys(shapes)]
    else:
        plan = strategy_module(strategy).make_plan(config, shapes, cards)
        slices = [plan.place(shapes, rank, cards) for rank in range(cards)]
    local = [
        {name: _elements(shapes[name], part) * size_of(name, itemsize) for name, part in parts.items()} for parts in slices
    ]
    held = max(local, key=lambda sizes: sum(sizes.values()))
    parts = slices[local.index(held)]
    gathering = strategy == "zero3" and cards > 1
    groups = gathers(shapes, parts, itemsize, cards) if gathering else {}
    biggest = 2 * max((sum(whole) for whole in groups.values()), default=0)  # of one block, and of the one that follows
    read = {name: math.prod(shape) * size_of(name, itemsize) for name, shape in shapes.items()} if gathering else held
    cache = _cache_bytes(config, parts, context, itemsize)
    loading = sum(held.values()) + _two_tensors(held, shapes, itemsize)

    def thinker(tokens, cached):
        return text_step(
            config, read, text_traffic(text, parts, groups, cards, itemsize, tokens), cached, itemsize, cards, tokens
        )

    token = thinker(1, cache[0])
    speech = () if gathering or config.talker_config is None else _speech(config, held, cache[1], itemsize, cards)
    first = speech and _first_sound(
        config, held, prompt, itemsize, cards, thinker, _cache_bytes(config, parts, prompt, itemsize)
    )
    return Prediction(strategy, cards, _by_part(held), sum(cache), biggest, loading, token, speech, first)


def _speech(config, sizes, cached, itemsize, cards):
    """The steps of a frame."""
    return (talker_step(config, sizes, cached, itemsize, cards), codes_step(config, sizes, itemsize))


def _first_sound(config, sizes, prompt, itemsize, cards, thinker, cache):
    """The steps up to the first sound: both read the prompt, then frames take turns with the tokens that they speak."""
    chunks = [min(CHUNK_TOKENS, prompt - start) for start in range(0, prompt, CHUNK_TOKENS)]
    reading = [thinker(tokens, 0) for tokens in chunks]
    reading += [talker_step(config, sizes, 0, itemsize, cards, tokens) for tokens in chunks]
    talker, codes = _speech(config, sizes, cache[1], itemsize, cards)
    turn = [thinker(1, cache[0]), talker, codes]
    return (*reading, codes, *turn * (FIRST_FRAMES - 1), sound_step(sizes))


def _elements(shape, part):
    return math.prod(shape if part is None else part.local_shape)


def _by_part(sizes):
    parts = {}
    for name, nbytes in sizes.items():
        part = part_of(name) or "other"
        parts[part] = parts.get(part, 0) + nbytes
    return parts


def _two_tensors(held, shapes, itemsize):
    """The parameter that is being filled (in the host's memory) and the stored tensor that is being read."""
    largest = max(held, key=held.get)
    stored = max(math.prod(source.shape) for name in shapes for source in sources(name, shapes[name])[:1])
    return held[largest] + min(stored * itemsize, held[largest])


def _cache_bytes(config, parts, context, itemsize):
    """Keys and values of the thinker, and of the talker when there is one."""
    text = config.thinker_config.text_config
    width = parts.get("thinker.model.layers.0.self_attn.k_proj.weight")
    rows = text.num_key_value_heads * text.head_dim
    if getattr(width, "axis", None) is not None:
        rows = width.length
    positions = -(-context // BUCKET_TOKENS) * BUCKET_TOKENS
    sizes = [2 * text.num_hidden_layers * rows * positions * itemsize]
    if config.talker_config is not None:
        talker = config.talker_config.text_config
        sizes.append(2 * talker.num_hidden_layers * talker.num_key_value_heads * talker.head_dim * positions * itemsize)
    return sizes
