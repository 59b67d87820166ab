"""What `ms-omni plan` says of weights that are stored as codes: the folder, and where it fits."""

from ..errors import InputError

HEADER = ("", "weights", "callers that fit", "longest context", "a token reads", "takes at least")
ROW = "{:20s} {:>10s} {:>17s} {:>16s} {:>14s} {:>18s}"
MEANING = """callers: of {rows}, each with {context:,} tokens; the longest context is that of one caller. Beside weights and caches, of a laptop
{laptop:.1f} GB are left to its system and to the process, of a card {card:.1f} GB (estimates). A token reads these weights, and the keys
and values before it: the times are without any, and with the whole context, by {bandwidth:g} GB/s of a laptop's memory (--laptop-gb-per-s)
and {card_bandwidth:g} of a card's, and on a card no less than the launches take; computed, not measured."""


def storages_of(arguments, shapes):
    """({name: Storage} of what the arguments mean, in words how that was made): of --quantize, or of a folder that is quantised; ({}, "")
    without. Raises `InputError` for --quantize of such a folder.
    """
    from ..checkpoint.storage import scheme

    found, how = _of_folder(arguments.model, shapes) if arguments.model else ({}, "")
    if arguments.quantize is None:
        if arguments.group or arguments.quantize_embeddings:
            raise InputError("--group and --quantize-embeddings are for --quantize")
        if arguments.kv_cache_dtype != "auto" and not found:
            raise InputError("--kv-cache-dtype is for the laptops that are named where weights are codes; add --quantize")
        return found, how
    if found:
        raise InputError(f"{arguments.model} is quantised already ({how}); leave --quantize out")
    made = scheme(shapes, arguments.quantize, arguments.group, arguments.quantize_embeddings)
    return made.storages(shapes), arguments.quantize + (f", groups of {made.group}" if made.group else "")


def _of_folder(folder, shapes):
    from ..checkpoint import CheckpointReader
    from ..checkpoint.choice import storages
    from ..checkpoint.open import open_checkpoint, reader_of
    from ..checkpoint.plan import plan_loading
    from ..hub import resolve

    folder = resolve(folder, weights=False)
    if reader_of(folder) is CheckpointReader:
        return {}, ""
    reader = open_checkpoint(folder)
    found = storages(plan_loading(shapes, reader)[0], reader, None, "")
    kinds = sorted({f"int{kind.bits}" + (f" in groups of {kind.group}" if kind.group else "") for kind in found.values()})
    return found, f"as stored: {', '.join(kinds) or 'no matrix as codes'}"


def on_cards(storages, shapes):
    """({name: Storage} of what a card holds as codes, lines about what it does not)."""
    from ..ascend_storage import kept_whole, on_card
    from ..checkpoint.storage import matrix_shape

    matrices = {name: matrix_shape(name, shapes[name]) for name in storages}
    held = {name: on_card(storage, matrices[name]) for name, storage in storages.items()}
    lines = [
        f"in bfloat16 on a card, {len(names)} matrices such as {names[0]}: {reason}"
        for reason, names in kept_whole(storages, matrices).items()
    ]
    return {name: storage for name, storage in held.items() if storage is not None}, lines


def folder_lines(how, shapes, storages):
    """Of the folder, part by part, beside one in bfloat16."""
    from ..parallel.fitting import folder_bytes
    from .plan import gb

    plain, stored = folder_bytes(shapes, {}), folder_bytes(shapes, storages)
    total, all_stored = sum(plain.values()), sum(stored.values())
    yield f"{'folder':22s} {'bfloat16':>12s} {'quantised':>12s}  {how}"
    for part in sorted(plain):
        yield f"  {part:20s} {gb(plain[part]):>12s} {gb(stored[part]):>12s}"
    yield f"  {'total':20s} {gb(total):>12s} {gb(all_stored):>12s}  {all_stored / total:.4f} of it"


def fitting_lines(arguments, config, shapes, storages, hardware):
    """Of one card and of laptops."""
    from ..parallel.fitting import CARD_BYTES, PROCESS_BYTES, SYSTEM_BYTES, longest, places, predictions, token_s
    from .plan import gb, ms

    held, notes = on_cards(storages, shapes)
    yield ROW.format(*HEADER)
    for place in places(hardware, arguments.laptop_gb_per_s):
        one, *found = predictions(
            config,
            shapes,
            held if place.card else storages,
            place,
            arguments.context,
            [1, *arguments.rows],
            arguments.kv_cache_dtype,
        )
        room = [str(item.rows) for item in found if place.fits(item)]
        reach = longest(place, one, config, arguments.context)
        times = [token_s(place, one, hardware, full) for full in (False, True)]
        spread = ms(times[0]) if times[0] == times[1] else f"{ms(times[0])} - {ms(times[1])}"
        reads = gb(one.token.reads - one.cached)
        yield ROW.format(place.name, gb(one.held), ", ".join(room) or "none", f"{reach:,}" if reach else "-", reads, spread)
    yield from notes
    yield MEANING.format(
        rows=", ".join(map(str, arguments.rows)),
        context=arguments.context,
        laptop=(SYSTEM_BYTES + PROCESS_BYTES) / 1e9,
        card=CARD_BYTES / 1e9,
        bandwidth=arguments.laptop_gb_per_s,
        card_bandwidth=hardware.memory_gb_per_s,
    )
