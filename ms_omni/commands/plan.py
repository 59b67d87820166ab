"""`ms-omni plan`: what a model needs on N cards, before anything is loaded."""

import argparse

NAME = "plan"
HELP = "Predict memory, communication and the least time of a token on several cards; nothing is loaded."
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
COMPUTING = "max(bytes read / memory bandwidth, operations / peak)"
SENDING = "bytes sent / bandwidth of each collective + collectives * latency"
COLUMNS = ("cards", "weights per card", "KV cache", "peak", "fits", "sent per token", "collectives", "token, at least")


def add_arguments(parser):
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="DIR|NAME", help="checkpoint folder, or the name of a model on a hub")
    source.add_argument("--config", metavar="NAME", help="a geometry that comes along, such as instruct")
    parser.add_argument("--cards", type=numbers, required=True, metavar="N", help="number of cards; 1,2,4 makes a table")
    parser.add_argument("--strategy", default="ep", choices=("ep", "zero3"), help="how the model is spread (default: ep)")
    parser.add_argument("--context", type=int, default=8192, metavar="T", help="tokens in the cache (default: 8192)")
    parser.add_argument("--hardware", default="910b", metavar="H", help="910b, 910c, or a JSON file (default: 910b)")
    parser.add_argument("--memory-gb", type=float, metavar="G", help="memory of a card (default: the hardware's)")
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(ITEMSIZE), help="of the weights (default: bfloat16)")


def numbers(text):
    """ "1,2,4" -> [1, 2, 4]."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of cards, or several with commas") from None


def run(arguments):
    from ..checkpoint.shapes import parameter_shapes
    from ..errors import InputError
    from ..parallel.hardware import load_hardware
    from ..parallel.predict import predict

    hardware = load_hardware(arguments.hardware)
    memory_gb = hardware.memory_gb if arguments.memory_gb is None else arguments.memory_gb
    if not memory_gb > 0:
        raise InputError(f"--memory-gb is {memory_gb}, expected a positive number")
    config = read_config(arguments)
    shapes = parameter_shapes(config)
    found = [
        predict(config, shapes, arguments.strategy, cards, arguments.context, ITEMSIZE[arguments.dtype])
        for cards in arguments.cards
    ]
    if len(found) > 1:
        print(table(found, hardware, memory_gb))
    else:
        print(details(found[0], hardware, memory_gb, arguments))


def read_config(arguments):
    """The configuration of the folder or of the name."""
    from ..config import Qwen3OmniMoeConfig
    from ..config.named import load_named_config

    return load_named_config(arguments.config) if arguments.config else Qwen3OmniMoeConfig.from_pretrained(arguments.model)


def gb(nbytes):
    """Bytes in a unit that is easy to read; 1 GB is 1e9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"


def ms(seconds):
    """A time in milliseconds, with three digits or all before the point."""
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def table(found, hardware, memory_gb):
    """A Markdown table, one row per number of cards."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for item in found:
        rows.append(
            (
                str(item.cards),
                gb(item.held),
                gb(item.kv_cache),
                gb(item.peak),
                fits(item, memory_gb),
                gb(item.traffic.total_bytes),
                str(item.traffic.total_calls),
                ms(item.seconds(hardware)[2]),
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def fits(item, memory_gb):
    """ "yes" or "no"."""
    return "yes" if item.peak <= 1e9 * memory_gb else "no"


def details(item, hardware, memory_gb, arguments):
    """Everything about one number of cards."""
    computing, sent, least = item.seconds(hardware)
    lines = [
        f"{item.strategy} on {item.cards} x {hardware.name}, {arguments.dtype}, context of {arguments.context:,} tokens",
        "weights on the card that holds most:",
    ]
    lines += [f"  {part:20s} {gb(nbytes):>12s}" for part, nbytes in sorted(item.weights.items())]
    lines += [
        f"  {'total':20s} {gb(item.held):>12s}",
        f"KV cache               {gb(item.kv_cache):>12s}",
        *([f"gathered for a moment  {gb(item.gathered):>12s}"] if item.gathered else []),
        f"peak while loading     {gb(item.loading):>12s}",
        f"peak                   {gb(item.peak):>12s}  {'fits' if fits(item, memory_gb) == 'yes' else 'does not fit'} "
        f"{memory_gb:g} GB (activations and MindSpore itself come on top)",
        f"sent per token         {gb(item.traffic.total_bytes):>12s}  in {item.traffic.total_calls} collectives: "
        + (
            ", ".join(f"{n} {kind} ({item.traffic.nbytes[kind]:,} B)" for kind, n in item.traffic.calls.items() if n)
            or "none"
        ),
        f"read per token         {gb(item.reads):>12s}",
        f"token, at least        {ms(least):>12s}  = {'max(a, b)' if item.strategy == 'zero3' else 'a + b'}",
        f"  a = {ms(computing)}: {COMPUTING}",
        f"  b = {ms(sent)}: {SENDING}",
        f"estimates among the numbers used: {', '.join(hardware.estimates) or 'none'}",
    ]
    return "\n".join(lines)
