"""What a plan costs before anything is loaded: memory per card, communication per token, and a lower bound of its time.

Everything is computed from the table that loading uses (`Plan.place`), so the bytes are those that a rank holds and the
collectives those that `Team.traffic` counts: one conversation, greedy text.

    seconds per token >= max(reads / memory bandwidth, operations / peak)
                         + sum(bytes / bandwidth of the collective) + collectives * latency

where `reads` are the weights that one token uses and its keys and values, with two operations for each element. ZeRO-3
gathers ahead while it computes, so there the larger of the two sides counts instead of their sum.
"""

import math
import re
from dataclasses import dataclass

from ..checkpoint.names import part_of, sources
from ..errors import InputError
from ..modeling import BUCKET_TOKENS
from .plan import STRATEGIES, strategy_module
from .traffic import Traffic
from .zero3_plan import block_of, bundles

AGREED = (12, 4)  # bytes of the two broadcasts of a token: rank 0's choice with its flag, and whether it goes on
CHOICE_BYTES = 8  # of a rank's largest score and its id, where the vocabulary is split
EXPERTS = re.compile(r".+\.mlp\.experts\.(gate_up|down)")
TEXT = re.compile(r"thinker\.(model\.(layers\.\d+|norm)\.|lm_head\.).+")


@dataclass(frozen=True)
class Prediction:
    """Bytes on the card that holds most, by part of the model; and what one token costs.

    gathered: whole weights held for the moment (ZeRO-3). loading: the peak while loading. reads: bytes of memory that a
    token reads. traffic: collectives of a token and their bytes.
    """

    strategy: str
    cards: int
    weights: dict
    kv_cache: int
    gathered: int
    loading: int
    reads: int
    traffic: Traffic
    itemsize: int

    @property
    def held(self):
        """Bytes of all weights on the card."""
        return sum(self.weights.values())

    @property
    def working(self):
        """Bytes that generation needs, apart from activations and MindSpore itself."""
        return self.held + self.kv_cache + self.gathered

    @property
    def peak(self):
        """The larger of loading and generating."""
        return max(self.loading, self.working)

    def seconds(self, hardware):
        """Lower bound of the time of a token: (computing, communication, both together)."""
        operations = 2 * self.reads / self.itemsize
        memory = max(self.reads / (1e9 * hardware.memory_gb_per_s), operations / (1e12 * hardware.bf16_tflops))
        sent = sum(nbytes / hardware.bandwidth(kind, self.cards) for kind, nbytes in self.traffic.nbytes.items())
        sent += self.traffic.total_calls * hardware.collective_us * 1e-6
        return memory, sent, max(memory, sent) if self.strategy == "zero3" else memory + sent


def predict(config, shapes, strategy, cards, context, itemsize):
    """The `Prediction` for a whole model.

    config: of the whole model; shapes: `{full name: shape}` of its parameters; strategy: "ep" or "zero3"; context: tokens
    in the cache; itemsize: bytes of an element. Raises `InputError` for what cannot be.
    """
    for name, value in (("cards", cards), ("the context", context)):
        if value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    if strategy not in STRATEGIES:
        raise InputError(f"the strategy is {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    text = config.thinker_config.text_config
    if context > text.max_position_embeddings:
        raise InputError(f"the context is {context} tokens, and the model has {text.max_position_embeddings} positions")
    if cards == 1:
        slices = [dict.fromkeys(shapes)]
    else:
        plan = strategy_module(strategy).make_plan(config, shapes, cards)
        slices = [plan.place(shapes, rank, cards) for rank in range(cards)]
    local = [{name: _elements(shapes[name], part) * itemsize for name, part in parts.items()} for parts in slices]
    held = max(local, key=lambda sizes: sum(sizes.values()))
    parts = slices[local.index(held)]
    gathering = strategy == "zero3" and cards > 1
    groups = _gathers(shapes, parts, itemsize, cards) if gathering else {}
    biggest = 2 * max((sum(whole) for whole in groups.values()), default=0)  # of one block, and of the one that follows
    whole = {name: math.prod(shape) * itemsize for name, shape in shapes.items()}
    cache = _cache_bytes(config, parts, context, itemsize)
    read = _reads(text, whole if gathering else held) + cache[0]
    loading = sum(held.values()) + _two_tensors(held, shapes, itemsize)
    traffic = _traffic(text, parts, groups, cards, itemsize)
    return Prediction(strategy, cards, _by_part(held), sum(cache), biggest, loading, read, traffic, itemsize)


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


def _reads(text, sizes):
    """Bytes of weights that a token of text reads; of the experts the share that is chosen, on average over ranks."""
    total = 0
    for name, nbytes in sizes.items():
        if EXPERTS.fullmatch(name) and TEXT.fullmatch(name):
            total += nbytes * text.num_experts_per_tok // text.num_experts
        elif TEXT.fullmatch(name) or (text.tie_word_embeddings and name == "thinker.model.embed_tokens.weight"):
            total += nbytes
    return total


def _gathers(shapes, runs, itemsize, cards):
    """`{block: [bytes of each gather]}` of ZeRO-3 for a token of text."""
    blocks, found = {}, {}
    for name in shapes:
        if TEXT.fullmatch(name):
            blocks.setdefault(block_of(name), []).append(name)
    for block, names in blocks.items():
        bundled = bundles({name: math.prod(shapes[name]) * itemsize for name in names})
        found[block] = [sum(runs[name].length for name in group) * cards * itemsize for group in bundled]
    if "thinker.lm_head.weight" not in shapes:  # a tied head reads the whole table
        found["table"] = [runs["thinker.model.embed_tokens.weight"].length * cards * itemsize]
    return found


def _traffic(text, parts, groups, cards, itemsize):
    traffic = Traffic()
    if cards == 1:
        return traffic
    row = text.hidden_size * itemsize
    for nbytes in AGREED:
        traffic.add("broadcast", nbytes)
    if groups:
        traffic.add("all_reduce", row)  # the token's row of the embedding
        for nbytes in (size for sizes in groups.values() for size in sizes):
            traffic.add("all_gather", nbytes)
        return traffic
    for name, part in parts.items():
        layer = name.startswith("thinker.model.layers.")
        if layer and (
            name.endswith(".mlp.experts.down") or (name.endswith(".self_attn.o_proj.weight") and not part.is_whole)
        ):
            traffic.add("all_reduce", row)
    if "thinker.lm_head.weight" in parts:
        traffic.add("all_gather", CHOICE_BYTES * cards)
    return traffic
