"""What the steps of an answer cost on the card that holds most, and the least time that they take for it.

A step takes no less than the larger of two times:

    bandwidth = max(reads / memory bandwidth, operations / peak) + sum(bytes / bandwidth of the collective) + collectives * latency
    launches  = (kernels + collectives) * what it takes the host to start one, which depends on the form (`hardware.Form`)

where `reads` are the weights that the step uses and the keys and values of its rows, and `operations` two for each element and
row; those of attention itself are left out. Of E experts, of which each row chooses k, B rows read E * (1 - (1 - k / E) ** B) where
they choose evenly. ZeRO-3 gathers ahead while it computes, so there the larger of the two sides of the first line counts instead
of their sum. Steps follow each other: each waits for a number that the one before has chosen.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..checkpoint.storage import stored_bytes
from .hardware import GATHERED_LAYER, VOCODER, Form, Hardware
from .mesh import Traffic
from .plan import block_of, bundles

TEXT = re.compile(r"thinker\.(model\.(layers\.\d+|norm)\.|lm_head\.).+")
TALKER = re.compile(r"talker\.(model\.(layers\.\d+|norm)\.|codec_head\.).+")
CODES = re.compile(r"talker\.code_predictor\.model\.(layers\.\d+|norm)\..+")
CODE_HEADS = re.compile(r"talker\.code_predictor\.lm_head\..+")
SOUND = re.compile(r"code2wav\..+")
EXPERTS = re.compile(r".+\.mlp\.experts\.(gate_up|down)")
TABLE, HEAD = "thinker.model.embed_tokens.weight", "thinker.lm_head.weight"

MESSAGE_BYTES = 2048  # of rank 0's message per tick (`engine/ranks.py`), and of another where there is a word to be spoken
CODE_BYTES = 8  # of a code 0, which goes at once
CHOICE_BYTES = 8  # of a rank's largest score and its id, where the vocabulary is split
FIRST_FRAMES, LATER_FRAMES = 4, 25  # of the first piece of sound, and of those that it grows to (`generation/request.py`)
CHUNK_TOKENS = 512  # of a prompt that are read at once (`engine/blocks.py`)


class Size(NamedTuple):
    """What of a parameter lies somewhere."""

    nbytes: int
    elements: int


@dataclass(frozen=True)
class Bound:
    """Seconds by bandwidth, by launches, and at least; launches: how many."""

    bandwidth: float = 0.0
    launching: float = 0.0
    least: float = 0.0
    launches: int = 0

    def __add__(self, other: "Bound") -> "Bound":
        return Bound(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def holds(self) -> str:
        """Which of the two is the larger one, in words."""
        return "launches hold" if self.launching > self.bandwidth else "bandwidth holds"


@dataclass(frozen=True)
class Step:
    """reads: bytes of memory; traffic: collectives and their bytes; kernels: form -> how many it launches; compiled: whether it is
    part of the forms that are graphs, which steps over several tokens are not.
    """

    reads: int
    operations: float
    traffic: Traffic
    kernels: Callable[[Form], int]
    compiled: bool = True

    def transfer(self, hardware: Hardware, cards: int) -> tuple[float, float]:
        """Seconds on the card, and between the cards."""
        computing = max(self.reads / (1e9 * hardware.memory_gb_per_s), self.operations / (1e12 * hardware.bf16_tflops))
        sent = sum(nbytes / hardware.bandwidth(kind, cards) for kind, nbytes in self.traffic.nbytes.items())
        return computing, sent + self.traffic.total_calls * hardware.collective_us * 1e-6

    def bound(self, hardware: Hardware, cards: int, form: Form, overlaps: bool = False) -> Bound:
        """The `Bound` of its time in a form. overlaps: whether it computes while it sends."""
        computing, sent = self.transfer(hardware, cards)
        bandwidth = max(computing, sent) if overlaps else computing + sent
        launches = self.kernels(form) + self.traffic.total_calls
        launching = 1e-6 * launches * hardware.launch_us[form.kernels if self.compiled else "eager"]
        return Bound(bandwidth, launching, max(bandwidth, launching), launches)


def text_step(
    config: Any,
    sizes: Mapping[str, Size],
    traffic: Traffic,
    cache_bytes: int,
    cards: int,
    tokens: int = 1,
    chunk: bool = False,
    whole: bool = True,
    head: int = 1,
) -> Step:
    """The thinker, for a token of each of `tokens` rows, or for a chunk of one row's prompt, at most `CHUNK_TOKENS`.

    sizes: `{name: Size}` of what it reads; traffic: see `text_traffic`; cache_bytes: of the keys and values of all rows; whole:
    False under ZeRO-3, where nothing is compiled; head: launches of the product with the head.
    """
    text = config.thinker_config.text_config
    reads, operations = _products(sizes, TEXT, text, tokens)
    if text.tie_word_embeddings:
        reads, operations = reads + sizes[TABLE].nbytes, operations + 2 * tokens * sizes[TABLE].elements

    def kernels(form):
        layers = text.num_hidden_layers
        step = form.thinker(layers, cards, chunk) if whole else GATHERED_LAYER * layers + form.besides
        return step + (0 if chunk else form.choice + head - 1)

    return Step(reads + cache_bytes, operations, traffic, kernels, whole and not chunk)


def talker_step(
    config: Any, sizes: Mapping[str, Size], cache_bytes: int, cards: int, tokens: int = 1, chunk: bool = False
) -> Step:
    """The talker, as `text_step`; every card that speaks computes it. Code 0 is drawn with a penalty."""
    text = config.talker_config.text_config
    reads, operations = _products(sizes, TALKER, text, tokens)

    def kernels(form):
        return form.talker(text.num_hidden_layers, chunk) + (0 if chunk else form.choice + form.penalties)

    traffic = _broadcasts(cards, () if chunk else (MESSAGE_BYTES, CODE_BYTES * tokens))
    return Step(reads + cache_bytes, operations, traffic, kernels, not chunk)


def codes_step(config: Any, sizes: Mapping[str, Size], rows: int = 1) -> Step:
    """The codes that follow a code 0; the predictor's layers are read once for each, for all rows."""
    c = config.talker_config.code_predictor_config
    codes, layers = c.num_code_groups - 1, c.num_hidden_layers
    reads, operations = _products(sizes, CODES, tokens=rows)
    heads = _products(sizes, CODE_HEADS, tokens=rows)
    return Step(codes * reads + heads[0], codes * operations + heads[1], Traffic(), lambda form: form.codes(layers, codes))


def sound_step(sizes: Mapping[str, Size]) -> Step:
    """The vocoder, for a piece of sound of one row; its operations are few beside what it reads."""
    return Step(_products(sizes, SOUND)[0], 0.0, Traffic(), lambda _: VOCODER, compiled=False)


def size_of(name: str, shape: tuple[int, ...], itemsize: int, part: Any = None, storage: Any = None) -> Size:
    """The `Size` of a parameter, or of a part of it.

    Args:
        shape: of the whole parameter; part: its `Slice` or `Run`, None for all of it.
        itemsize: bytes of a number of what is no codes; the vocoder's have at least 4, in every model.
        storage: the `Storage` of codes, "bfloat16", or None for numbers of itemsize.
    """
    local = tuple(shape) if part is None else part.local_shape
    elements = math.prod(local)
    if storage is None or storage == "bfloat16":
        number = 2 if storage else max(itemsize, 4) if SOUND.fullmatch(name) else itemsize
        return Size(elements * number, elements)
    if part is None or not part.flat:
        return Size(stored_bytes(name, local, storage), elements)
    return Size(round(stored_bytes(name, shape, storage) * elements / math.prod(shape)), elements)


def _products(
    sizes: Mapping[str, Size], pattern: re.Pattern[str], mixture: Any = None, tokens: int = 1
) -> tuple[int, float]:
    """(bytes read, operations) of the weights that match. mixture: the configuration that says which share of its experts a token
    chooses; of the others each reads all, and of them as many as `tokens` even choices find.
    """
    share = mixture.num_experts_per_tok / mixture.num_experts if mixture else 1.0
    reads = operations = 0.0
    for name, size in sizes.items():
        if pattern.fullmatch(name):
            chosen = share if EXPERTS.fullmatch(name) else 1.0
            reads += size.nbytes * (1 - (1 - chosen) ** tokens)
            operations += 2 * size.elements * chosen * tokens
    return round(reads), operations


def _broadcasts(cards: int, messages: Iterable[int]) -> Traffic:
    """Broadcasts of rank 0's choices."""
    traffic = Traffic()
    for nbytes in messages if cards > 1 else ():
        traffic.add("broadcast", nbytes)
    return traffic


def gathers(whole: Mapping[str, Size], held: Mapping[str, Size], cards: int) -> dict[str | None, list[int]]:
    """`{block: [bytes of each gather]}` of ZeRO-3 for a token of text. whole, held: `{name: Size}` of parameters and of a rank's parts."""
    blocks: dict[str | None, list[str]] = {}
    found: dict[str | None, list[int]] = {}
    for name in whole:
        if TEXT.fullmatch(name):
            blocks.setdefault(block_of(name), []).append(name)
    for block, names in blocks.items():
        bundled = bundles({name: whole[name].nbytes for name in names})
        found[block] = [sum(held[name].nbytes for name in group) * cards for group in bundled]
    if "thinker.lm_head.weight" not in whole:  # a tied head reads the whole table
        found["table"] = [held[TABLE].nbytes * cards]
    return found


def text_traffic(
    text: Any,
    parts: Mapping[str, Any],
    groups: Mapping[Any, list[int]],
    cards: int,
    itemsize: int,
    tokens: int = 1,
    choices: int = 1,
) -> Traffic:
    """Collectives of one pass over `tokens` tokens of text, after which so many are chosen. groups: see `gathers`, for ZeRO-3."""
    traffic = _broadcasts(cards, [MESSAGE_BYTES])
    if cards == 1:
        return traffic
    rows = tokens * text.hidden_size * itemsize
    if groups:
        traffic.add("all_reduce", rows)  # the tokens' rows of the embedding
        for nbytes in (size for sizes in groups.values() for size in sizes):
            traffic.add("all_gather", nbytes)
        return traffic
    for name, part in parts.items():
        layer = name.startswith("thinker.model.layers.")
        if layer and (
            name.endswith(".mlp.experts.down") or (name.endswith(".self_attn.o_proj.weight") and not part.is_whole)
        ):
            traffic.add("all_reduce", rows)
    if HEAD in parts:
        traffic.add("all_gather", CHOICE_BYTES * choices * cards)
    return traffic
