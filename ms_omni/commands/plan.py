"""`ms-omni plan`: what a model needs on N cards, before anything is loaded."""

import argparse

from ..parallel.launches import FORMS
from .speech_output import SAMPLE_RATE_HZ

NAME = "plan"
HELP = "Predict memory, communication and the least times of text and speech on several cards; nothing is loaded."
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
TRUST = """to trust the times, measure on the cards:
  each estimate above ('ms-omni doctor' does, and compares), and the kernels of a step, which MindSpore counted without a card
  what the bounds leave out: attention over the context, kernels that are too small for the whole bandwidth, and what the host
  does between steps (choosing tokens, waiting for their numbers, the network)"""


def add_arguments(parser):
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="DIR|NAME", help="checkpoint folder, or the name of a model on a hub")
    source.add_argument("--config", metavar="NAME", help="a geometry that comes along, such as instruct")
    parser.add_argument("--cards", type=numbers, required=True, metavar="N", help="number of cards; 1,2,4 makes a table")
    parser.add_argument("--strategy", default="ep", choices=("ep", "zero3"), help="how the model is spread (default: ep)")
    parser.add_argument("--context", type=int, default=8192, metavar="T", help="tokens in the cache (default: 8192)")
    parser.add_argument("--prompt", type=int, default=512, metavar="P", help="tokens before the first sound (default: 512)")
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
        predict(config, shapes, arguments.strategy, cards, arguments.context, ITEMSIZE[arguments.dtype], arguments.prompt)
        for cards in arguments.cards
    ]
    if len(found) > 1:
        print(table(found, hardware, memory_gb))
    else:
        codec = config.code2wav_config
        frame_s = codec.samples_per_frame / SAMPLE_RATE_HZ if codec and found[0].speech else 0.0
        print(details(found[0], hardware, memory_gb, arguments, frame_s))


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
    """A Markdown table, one row per number of cards; its times are those of a token of text in a compiled step, as it is."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for item in found:
        bound = item.bound((item.token,), hardware, FORMS[1])
        rows.append(
            (
                str(item.cards),
                gb(item.held),
                gb(item.kv_cache),
                gb(item.peak),
                fits(item, memory_gb),
                gb(item.token.traffic.total_bytes),
                str(item.token.traffic.total_calls),
                ms(bound.bandwidth),
                ms(bound.launching),
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def fits(item, memory_gb):
    """ "yes" or "no"."""
    return "yes" if item.peak <= 1e9 * memory_gb else "no"


def details(item, hardware, memory_gb, arguments, frame_s):
    """Everything about one number of cards. frame_s: seconds of sound in a frame."""
    computing, sent = item.token.transfer(hardware, item.cards)
    traffic, joined = item.token.traffic, "max(a, b)" if item.strategy == "zero3" else "a + b"
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
        f"sent per token         {gb(traffic.total_bytes):>12s}  in {traffic.total_calls} collectives: "
        + (", ".join(f"{n} {kind} ({traffic.nbytes[kind]:,} B)" for kind, n in traffic.calls.items() if n) or "none"),
        f"read per token         {gb(item.token.reads):>12s}",
        f"token by bandwidth     {ms(computing + sent if joined == 'a + b' else max(computing, sent)):>12s}  = {joined}",
        f"  a = {ms(computing)}: {COMPUTING}",
        f"  b = {ms(sent)}: {SENDING}",
        f"estimates among the numbers used: {', '.join(hardware.estimates) or 'none'}",
        *times(item, hardware, f"a frame of speech ({1000 * frame_s:.0f} ms)", arguments.prompt),
        TRUST,
    ]
    return "\n".join(lines)


def times(item, hardware, frame, prompt):
    """Lines with the least times of the steps, a form each."""
    for name, steps in (
        ("a token of text", (item.token,)),
        (frame, item.speech),
        (f"the first sound after {prompt:,} tokens", item.first),
    ):
        if steps:
            yield f"{name + ', at least':44s} {'launches':>9s} {'by them':>10s} {'by bandwidth':>13s} {'in all':>10s}"
            for form in FORMS:
                found = item.bound(steps, hardware, form)
                yield (
                    f"  {form.name:42s} {found.launches:9,} {ms(found.launching):>10s} {ms(found.bandwidth):>13s} "
                    f"{ms(found.least):>10s}  {found.holds}"
                )
