"""`ms-omni plan`: what a model needs on N cards, before anything is loaded."""

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..outputs import SPEECH_RATE_HZ
from ..parallel.hardware import FORMS, GRAPH, TO_MEASURE
from . import Command
from .options import add_model

if TYPE_CHECKING:
    from ..config import Qwen3OmniMoeConfig
    from ..parallel.hardware import Hardware
    from ..quantised import Storage

Shapes = dict[str, tuple[int, ...]]
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
COMPUTING = "max(bytes read / memory bandwidth, operations / peak)"
SENDING = "bytes sent / bandwidth of each collective + collectives * latency"
COLUMNS = (
    "cards",
    "weights per card",
    "KV cache",
    "peak",
    "fits",
    "sent per token",
    "collectives",
    "token by bandwidth",
    "by launches",
)
LEFT_OUT = """the bounds leave out attention over the context, kernels that are too small for the whole bandwidth, and what the host does
between steps (waiting for numbers, the network); to confirm the times, measure on the cards:"""
NOT_BUILT = """speech='process' is for a thinker in one process: with several cards that hold it, what is said here of speech apart cannot
be run yet, and everything is done in turns"""
FITTING_HEADER = ("", "weights", "callers that fit", "longest context", "a token reads", "takes at least")
FITTING_ROW = "{:20s} {:>10s} {:>17s} {:>16s} {:>14s} {:>18s}"
UNKNOWN = """{folder} says that its weights are quantised and holds none of them: how each is stored is not known, and all is computed in
one dtype (--dtype). Fetch the weights, or say --quantize."""
MEANING = """callers: of {rows}, each with {context:,} tokens; the longest context is that of one caller. Beside weights and caches, of a laptop
{laptop:.1f} GB are left to its system and to the process, of a card {card:.1f} GB (estimates). A token reads these weights, and the keys
and values before it: the times are without any, and with the whole context, by {bandwidth:g} GB/s of a laptop's memory (--laptop-gb-per-s)
and {card_bandwidth:g} of a card's, and on a card no less than the launches take; computed, not measured."""


def add_arguments(parser: ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    add_model(source, required=False)
    source.add_argument("--config", metavar="NAME", help="a geometry of the package, such as instruct")
    parser.add_argument(
        "--cards", type=whole_numbers, metavar="N", help="number of cards; 1,2,4 makes a table (1 where weights are codes)"
    )
    parser.add_argument("--strategy", default="ep", choices=("ep", "zero3"), help="how the model is spread (default: ep)")
    parser.add_argument(
        "--context", type=int, default=8192, metavar="T", help="tokens in the cache of each caller (default: 8192)"
    )
    parser.add_argument(
        "--rows", type=whole_numbers, default=[1, 4, 16], metavar="N,N", help="callers at a time (default: 1,4,16)"
    )
    parser.add_argument("--speech-card", action="store_true", help="one more card, of its own for talker and vocoder")
    parser.add_argument("--prompt", type=int, default=512, metavar="P", help="tokens before the first sound (default: 512)")
    parser.add_argument("--hardware", default="910b", metavar="H", help="910b, 910c, or a JSON file (default: 910b)")
    parser.add_argument("--memory-gb", type=float, metavar="G", help="memory of a card (default: the hardware's)")
    stored = parser.add_argument_group("weights as codes: the folder's size, and which card or laptop it fits")
    stored.add_argument("--quantize", choices=("int8", "int4"), help="as `convert --quantize` stores them")
    stored.add_argument("--group", type=int, metavar="N", help="inputs that share a scale: 128, 64 or 32 (int4)")
    stored.add_argument("--quantize-embeddings", action="store_true", help="the table of tokens in 8 bits too")
    stored.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "int8"),
        default="auto",
        help="of keys and values on a laptop; int8: with a scale per token and head (default: auto, float32)",
    )
    stored.add_argument(
        "--laptop-gb-per-s", type=float, default=50.0, metavar="B", help="bandwidth of a laptop's memory (default: 50)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(ITEMSIZE), help="of the weights (default: bfloat16)")


def whole_numbers(text: str) -> list[int]:
    """ "1,2,4" -> [1, 2, 4]."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of cards, or several with commas") from None


def run(arguments: Namespace) -> None:
    from ..checkpoint.shapes import parameter_shapes
    from ..parallel.hardware import load_hardware
    from ..parallel.predict import predict

    hardware = load_hardware(arguments.hardware)
    memory_gb = hardware.memory_gb if arguments.memory_gb is None else arguments.memory_gb
    if not memory_gb > 0:
        raise InputError(f"--memory-gb is {memory_gb}, expected a positive number")
    if not arguments.laptop_gb_per_s > 0:
        raise InputError(f"--laptop-gb-per-s is {arguments.laptop_gb_per_s}, expected a positive number")
    config = read_config(arguments)
    shapes = parameter_shapes(config)
    stored = stored_by(arguments, shapes)
    numbers = arguments.cards or ([1] if stored.storages else [])
    if not numbers:
        raise InputError("--cards N says on how many cards the model is to be; it may be left out where weights are codes")
    held = on_cards(stored.storages, shapes)[0]

    def predicted(cards: int, rows: int) -> Any:
        return predict(
            config,
            shapes,
            arguments.strategy,
            cards,
            arguments.context,
            ITEMSIZE[arguments.dtype],
            arguments.prompt,
            rows,
            arguments.speech_card,
            held,
        )

    if stored.note:
        print(stored.note + "\n")
    if stored.storages:
        print("\n".join(folder_lines(stored, shapes)) + "\n")
        print("\n".join(fitting_lines(arguments, config, shapes, stored, hardware)) + "\n")
    if len(numbers) > 1:
        print(table([predicted(cards, 1) for cards in numbers], hardware, memory_gb))
    else:
        codec = config.code2wav_config
        frame_s = codec.samples_per_frame / SPEECH_RATE_HZ if codec else 0.0
        predictions = [predicted(numbers[0], rows) for rows in arguments.rows]
        print("\n".join(details(predictions, hardware, memory_gb, arguments, frame_s, stored.how)))


def read_config(arguments: Namespace) -> "Qwen3OmniMoeConfig":
    """The configuration of the folder or of the name."""
    from ..config import Qwen3OmniMoeConfig, load_named_config

    return load_named_config(arguments.config) if arguments.config else Qwen3OmniMoeConfig.from_pretrained(arguments.model)


def gb(nbytes: float) -> str:
    """Bytes in a unit that is easy to read; 1 GB is 1e9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"


def ms(seconds: float) -> str:
    """A time in milliseconds, with three digits or all before the point."""
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def table(predictions: Sequence[Any], hardware: "Hardware", memory_gb: float) -> str:
    """A Markdown table, one row per number of cards; its times are those of a token of text of one caller."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for item in predictions:
        bound = item.bound((item.token,), hardware, GRAPH)
        rows.append(
            (
                str(item.cards),
                gb(item.held),
                gb(item.kv_cache),
                gb(item.peak),
                "yes" if fits(item, memory_gb) else "no",
                gb(item.token.traffic.total_bytes),
                str(item.token.traffic.total_calls),
                ms(bound.bandwidth),
                ms(bound.launching),
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def fits(card: Any, memory_gb: float) -> bool:
    """Whether all that a card holds goes into it."""
    return card.peak <= 1e9 * memory_gb


def details(
    predictions: Sequence[Any], hardware: "Hardware", memory_gb: float, arguments: Namespace, frame_s: float, how: str
) -> Iterator[str]:
    """Lines with everything about one number of cards. predictions: a `Prediction` for each number of callers; frame_s: seconds of sound
    in a frame; how: of the weights that are codes.
    """
    item = predictions[0]
    where = f"{item.strategy} on {item.cards} x {hardware.name}{', and one for speech' if item.speaker else ''}"
    yield f"{where}, {arguments.dtype}{how and f' and codes ({how})'}, {arguments.context:,} tokens of context for each caller"
    yield from memory("weights on the card that holds most:", predictions, predictions, memory_gb)
    if item.speaker:
        yield from memory("weights on the card that speaks:", [each.speaker for each in predictions], predictions, memory_gb)
    computing, sent = item.token.transfer(hardware, item.cards)
    traffic = item.token.traffic
    yield f"sent per token         {gb(traffic.total_bytes):>12s}  in {traffic.total_calls} collectives: " + (
        ", ".join(f"{n} {kind} ({traffic.nbytes[kind]:,} B)" for kind, n in traffic.calls.items() if n) or "none"
    )
    joined = "max(a, b)" if item.strategy == "zero3" else "a + b"
    yield f"token by bandwidth     {ms(item.bound((item.token,), hardware, GRAPH).bandwidth):>12s}  = {joined}"
    yield f"  a = {ms(computing)}: {COMPUTING}"
    yield f"  b = {ms(sent)}: {SENDING}"
    yield f"estimates among the numbers used: {', '.join(hardware.estimates) or 'none'}"
    yield from steps("a token of text", predictions, lambda each: (each.token,), hardware)
    if item.frame:
        yield from steps(f"a frame of speech ({1000 * frame_s:.0f} ms)", predictions, lambda each: each.frame, hardware)
        yield from answers(predictions, hardware, arguments.prompt, frame_s)
        if item.speaker and item.cards > 1:
            yield NOT_BUILT
    yield LEFT_OUT
    yield from (f"  {command}\n      {what}" for command, what in TO_MEASURE)


def memory(title: str, cards: Sequence[Any], predictions: Sequence[Any], memory_gb: float) -> Iterator[str]:
    """Lines about one card. cards: the same one for each number of callers."""
    card = cards[0]
    yield title
    yield from (f"  {part:20s} {gb(nbytes):>12s}" for part, nbytes in sorted(card.weights.items()))
    yield f"  {'total':20s} {gb(card.held):>12s}"
    if card.gathered:
        yield f"gathered for a moment  {gb(card.gathered):>12s}"
    yield f"peak while loading     {gb(card.loading):>12s}"
    yield f"{'callers':>9s} {'KV cache':>13s} {'peak':>12s}  (activations, MindSpore itself and buffers of collectives come on top)"
    for each, item in zip(cards, predictions):
        verdict = "fits" if fits(each, memory_gb) else "does not fit"
        yield f"{item.rows:9d} {gb(each.kv_cache):>13s} {gb(each.peak):>12s}  {verdict} {memory_gb:g} GB"


def steps(
    title: str, predictions: Sequence[Any], steps_of: Callable[[Any], Sequence[Any]], hardware: "Hardware"
) -> Iterator[str]:
    """Lines with the least time of a step in each form, for each number of callers. steps_of: its steps in a `Prediction`."""
    yield (
        f"{title + ', at least':36s} {'callers':>7s} {'reads':>9s} {'launches':>9s} {'by them':>9s} {'by bandwidth':>13s} "
        f"{'in all':>9s} {'a caller':>9s}"
    )
    for form in FORMS:
        for item in predictions:
            bound, reads = item.bound(steps_of(item), hardware, form), sum(step.reads for step in steps_of(item))
            yield (
                f"  {form.name:34s} {item.rows:7d} {gb(reads):>9s} {bound.launches:9,} {ms(bound.launching):>9s} "
                f"{ms(bound.bandwidth):>13s} {ms(bound.least):>9s} {ms(bound.least / item.rows):>9s}  {bound.holds}"
            )


def answers(predictions: Sequence[Any], hardware: "Hardware", prompt: int, frame_s: float) -> Iterator[str]:
    """Lines about spoken answers of callers who call at once."""
    how = "on a card of its own, beside text" if predictions[0].speaker else "in turns with text, on the same cards"
    yield f"speech {how}, at least; the first sound is that of the last of all who call at once, each with {prompt:,} tokens"
    yield f"  {'':34s} {'callers':>7s} {'token':>9s} {'frame and sound':>16s} {'first sound':>12s} {'real-time factor':>17s}"
    for form in FORMS:
        for item in predictions:
            least = item.times(hardware, form, frame_s)
            yield (
                f"  {form.name:34s} {item.rows:7d} {ms(least.token):>9s} {ms(least.frame):>16s} {ms(least.first):>12s} "
                f"{least.factor:17.2f}"
            )


@dataclass(frozen=True)
class Stored:
    """How weights are stored. storages: `{name: Storage}` of those that are codes; how: in words how that was made; dtypes: `{name:
    dtype, as safetensors calls it}` of all weights as numbers, where a folder's own are known; note: what is not known.
    """

    storages: "dict[str, Storage]" = field(default_factory=dict)
    how: str = ""
    dtypes: dict[str, str] = field(default_factory=dict)
    note: str = ""


def stored_by(arguments: Namespace, shapes: Shapes) -> Stored:
    """What the arguments mean: --quantize, or a folder that is quantised. Raises `InputError` for --quantize of such a folder."""
    stored = _stored_in(arguments.model, shapes, arguments.quantize is not None) if arguments.model else Stored()
    if arguments.quantize is None:
        if arguments.group or arguments.quantize_embeddings:
            raise InputError("--group and --quantize-embeddings are for --quantize")
        if arguments.kv_cache_dtype != "auto" and not stored.storages:
            raise InputError("--kv-cache-dtype is for the laptops that are named where weights are codes; add --quantize")
        return stored
    if stored.storages:
        raise InputError(f"{arguments.model} is quantised already ({stored.how}); leave --quantize out")
    from ..checkpoint.storage import scheme

    made = scheme(shapes, arguments.quantize, arguments.group, arguments.quantize_embeddings)
    how = arguments.quantize + (f", groups of {made.group}" if made.group else "")
    return replace(stored, storages=made.storages(shapes), how=how, note="")


def _stored_in(name: str, shapes: Shapes, quantize: bool) -> Stored:
    from ..checkpoint import CheckpointReader, read_rank_index
    from ..checkpoint.convert import dtype_in
    from ..checkpoint.matching import plan_loading
    from ..checkpoint.open import open_checkpoint, reader_of
    from ..checkpoint.storage import storages
    from ..hub import resolve
    from ..quantised import Storage

    folder = resolve(name, weights=False)
    index = read_rank_index(folder)
    plain = (not index.storages) if index else reader_of(folder) is CheckpointReader
    if not any(folder.glob("*.safetensors")):
        return Stored(note="" if plain else UNKNOWN.format(folder=folder))
    if plain and not quantize:
        return Stored()
    if index:
        kinds = {name: Storage(**index.storages[name]) for name in shapes if name in index.storages}
        dtypes = dict.fromkeys(shapes, index.dtype)
    else:
        reader = open_checkpoint(folder)
        fills = plan_loading(shapes, reader)[0]
        kinds = storages(fills, reader, None, "")
        dtypes = {fill.parameter: dtype_in(reader, fill) for fill in fills}
    names = sorted({f"int{kind.bits}" + (f" in groups of {kind.group}" if kind.group else "") for kind in kinds.values()})
    return Stored(kinds, f"as stored: {', '.join(names) or 'no matrix as codes'}", dtypes)


def on_cards(storages: Mapping[str, "Storage"], shapes: Shapes) -> tuple[dict[str, "Storage"], list[str]]:
    """({name: Storage} of what a card holds as codes, lines about what it does not)."""
    from ..ascend import kept_whole, on_card
    from ..checkpoint.storage import matrix_shape

    matrices = {name: matrix_shape(name, shapes[name]) for name in storages}
    held = {name: on_card(storage, matrices[name]) for name, storage in storages.items()}
    lines = [
        f"in bfloat16 on a card, {len(names)} matrices such as {names[0]}: {reason}"
        for reason, names in kept_whole(storages, matrices).items()
    ]
    return {name: storage for name, storage in held.items() if storage is not None}, lines


def folder_lines(stored: Stored, shapes: Shapes) -> Iterator[str]:
    """Of the folder, part by part, beside one in bfloat16."""
    from ..checkpoint.safetensors import DTYPES
    from ..parallel.predict import folder_bytes

    plain, stored_bytes = folder_bytes(shapes, {}), folder_bytes(shapes, stored.storages, stored.dtypes)
    total, all_stored = sum(plain.values()), sum(stored_bytes.values())
    rest = sorted({DTYPES[stored.dtypes.get(name, "BF16")].name for name in shapes if name not in stored.storages})
    yield f"{'folder':22s} {'bfloat16':>12s} {'quantised':>12s}  {stored.how}; what is no codes: {', '.join(rest)}"
    for part in sorted(plain):
        yield f"  {part:20s} {gb(plain[part]):>12s} {gb(stored_bytes[part]):>12s}"
    yield f"  {'total':20s} {gb(total):>12s} {gb(all_stored):>12s}  {all_stored / total:.4f} of it"


def fitting_lines(
    arguments: Namespace, config: "Qwen3OmniMoeConfig", shapes: Shapes, stored: Stored, hardware: "Hardware"
) -> Iterator[str]:
    """Of one card and of laptops."""
    from ..parallel.predict import CARD_BYTES, PROCESS_BYTES, SYSTEM_BYTES, longest, places, predictions, token_s

    held, notes = on_cards(stored.storages, shapes)
    yield FITTING_ROW.format(*FITTING_HEADER)
    for machine in places(hardware, arguments.laptop_gb_per_s):
        single, *others = predictions(
            config,
            shapes,
            held if machine.card else stored.storages,
            machine,
            arguments.context,
            [1, *arguments.rows],
            arguments.kv_cache_dtype,
            stored.dtypes,
        )
        room = [str(item.rows) for item in others if machine.fits(item)]
        reach = longest(machine, single, config, arguments.context)
        times = [token_s(machine, single, hardware, full) for full in (False, True)]
        spread = ms(times[0]) if times[0] == times[1] else f"{ms(times[0])} - {ms(times[1])}"
        reads = gb(single.token.reads - single.cached)
        yield FITTING_ROW.format(
            machine.name, gb(single.held), ", ".join(room) or "none", f"{reach:,}" if reach else "-", reads, spread
        )
    yield from notes
    yield MEANING.format(
        rows=", ".join(map(str, arguments.rows)),
        context=arguments.context,
        laptop=(SYSTEM_BYTES + PROCESS_BYTES) / 1e9,
        card=CARD_BYTES / 1e9,
        bandwidth=arguments.laptop_gb_per_s,
        card_bandwidth=hardware.memory_gb_per_s,
    )


PLAN = Command(
    "plan",
    "Predict memory, communication and the least times of text and speech on several cards; nothing is loaded.",
    add_arguments,
    run,
)
