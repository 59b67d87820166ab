"""What `ms-omni plan` says of weights that are stored as codes: the folder, and where it fits."""

from dataclasses import dataclass, field, replace

from ..checkpoint.header import DTYPES
from ..checkpoint.storage import matrix_shape, scheme
from ..errors import InputError
from ..quantised import Storage

HEADER = ("", "weights", "callers that fit", "longest context", "a token reads", "takes at least")
ROW = "{:20s} {:>10s} {:>17s} {:>16s} {:>14s} {:>18s}"
UNKNOWN = """{folder} says that its weights are quantised and holds none of them: how each is stored is not known, and all is computed in
one dtype (--dtype). Fetch the weights, or say --quantize."""
MEANING = """callers: of {rows}, each with {context:,} tokens; the longest context is that of one caller. Beside weights and caches, of a laptop
{laptop:.1f} GB are left to its system and to the process, of a card {card:.1f} GB (estimates). A token reads these weights, and the keys
and values before it: the times are without any, and with the whole context, by {bandwidth:g} GB/s of a laptop's memory (--laptop-gb-per-s)
and {card_bandwidth:g} of a card's, and on a card no less than the launches take; computed, not measured."""


@dataclass(frozen=True)
class Stored:
    """How weights are stored. storages: `{name: Storage}` of those that are codes; how: in words how that was made; dtypes: `{name:
    dtype, as safetensors calls it}` of all weights as numbers, where a folder's own are known; note: what is not known.
    """

    storages: dict[str, Storage] = field(default_factory=dict)
    how: str = ""
    dtypes: dict[str, str] = field(default_factory=dict)
    note: str = ""


def stored_by(arguments, shapes) -> Stored:
    """What the arguments mean: --quantize, or a folder that is quantised. Raises `InputError` for --quantize of such a folder."""
    found = _of_folder(arguments.model, shapes, arguments.quantize is not None) if arguments.model else Stored()
    if arguments.quantize is None:
        if arguments.group or arguments.quantize_embeddings:
            raise InputError("--group and --quantize-embeddings are for --quantize")
        if arguments.kv_cache_dtype != "auto" and not found.storages:
            raise InputError("--kv-cache-dtype is for the laptops that are named where weights are codes; add --quantize")
        return found
    if found.storages:
        raise InputError(f"{arguments.model} is quantised already ({found.how}); leave --quantize out")
    made = scheme(shapes, arguments.quantize, arguments.group, arguments.quantize_embeddings)
    how = arguments.quantize + (f", groups of {made.group}" if made.group else "")
    return replace(found, storages=made.storages(shapes), how=how, note="")


def _of_folder(folder, shapes, quantize) -> Stored:
    from ..checkpoint import CheckpointReader, read_rank_index
    from ..checkpoint.choice import storages
    from ..checkpoint.open import open_checkpoint, reader_of
    from ..checkpoint.parameters import dtype_in
    from ..checkpoint.plan import plan_loading
    from ..hub import resolve

    folder = resolve(folder, weights=False)
    index = read_rank_index(folder)
    plain = (not index.storages) if index else reader_of(folder) is CheckpointReader
    if not any(folder.glob("*.safetensors")):
        return Stored(note="" if plain else UNKNOWN.format(folder=folder))
    if plain and not quantize:
        return Stored()
    if index:
        found = {name: Storage(**index.storages[name]) for name in shapes if name in index.storages}
        dtypes = dict.fromkeys(shapes, index.dtype)
    else:
        reader = open_checkpoint(folder)
        fills = plan_loading(shapes, reader)[0]
        found = storages(fills, reader, None, "")
        dtypes = {fill.parameter: dtype_in(reader, fill) for fill in fills}
    kinds = sorted({f"int{kind.bits}" + (f" in groups of {kind.group}" if kind.group else "") for kind in found.values()})
    return Stored(found, f"as stored: {', '.join(kinds) or 'no matrix as codes'}", dtypes)


def on_cards(storages, shapes):
    """({name: Storage} of what a card holds as codes, lines about what it does not)."""
    from ..ascend_storage import kept_whole, on_card

    matrices = {name: matrix_shape(name, shapes[name]) for name in storages}
    held = {name: on_card(storage, matrices[name]) for name, storage in storages.items()}
    lines = [
        f"in bfloat16 on a card, {len(names)} matrices such as {names[0]}: {reason}"
        for reason, names in kept_whole(storages, matrices).items()
    ]
    return {name: storage for name, storage in held.items() if storage is not None}, lines


def folder_lines(stored, shapes):
    """Of the folder, part by part, beside one in bfloat16."""
    from ..parallel.fitting import folder_bytes
    from .plan import gb

    plain, stored_bytes = folder_bytes(shapes, {}), folder_bytes(shapes, stored.storages, stored.dtypes)
    total, all_stored = sum(plain.values()), sum(stored_bytes.values())
    rest = sorted({DTYPES[stored.dtypes.get(name, "BF16")].name for name in shapes if name not in stored.storages})
    yield f"{'folder':22s} {'bfloat16':>12s} {'quantised':>12s}  {stored.how}; what is no codes: {', '.join(rest)}"
    for part in sorted(plain):
        yield f"  {part:20s} {gb(plain[part]):>12s} {gb(stored_bytes[part]):>12s}"
    yield f"  {'total':20s} {gb(total):>12s} {gb(all_stored):>12s}  {all_stored / total:.4f} of it"


def fitting_lines(arguments, config, shapes, stored, hardware):
    """Of one card and of laptops."""
    from ..parallel.fitting import CARD_BYTES, PROCESS_BYTES, SYSTEM_BYTES, longest, places, predictions, token_s
    from .plan import gb, ms

    held, notes = on_cards(stored.storages, shapes)
    yield ROW.format(*HEADER)
    for place in places(hardware, arguments.laptop_gb_per_s):
        one, *found = predictions(
            config,
            shapes,
            held if place.card else stored.storages,
            place,
            arguments.context,
            [1, *arguments.rows],
            arguments.kv_cache_dtype,
            stored.dtypes,
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
