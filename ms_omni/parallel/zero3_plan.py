"""The table of the plan "zero3": every rank holds an N-th of every parameter, gathered block by block (`zero3.py`)."""

import re

from .plan import Flat, Plan, Row

BUNDLE_BYTES = 1 << 20
"""Parameters of up to this size share one gather per block: starting a collective takes as long as sending that much."""

# `block` names the cell around which the weights are gathered. `(?!...)` leaves out what another row places.
ROWS = (
    Row(r"thinker\.model\.embed_tokens\.weight(_scale|_offset)?", Flat(by_rows=True)),
    Row(r"(?P<block>thinker\.model\.layers\.<n>)\..+", Flat()),
    Row(r"(?P<block>thinker\.(model\.norm|lm_head))\.weight(_scale|_offset)?", Flat()),
    Row(r"(?P<block>thinker\.audio_tower\.layers\.<n>)\..+", Flat()),
    Row(r"(?P<block>thinker\.audio_tower)\.(?!layers\.).+", Flat()),
    Row(r"(?P<block>thinker\.visual\.(blocks\.<n>|merger|merger_list\.<n>))\..+", Flat()),
    Row(r"(?P<block>thinker\.visual)\.(patch_embed|pos_embed)\..+", Flat()),
    Row(r"talker\.(code_predictor\.)?model\.codec_embedding\.(<n>\.)?weight(_scale|_offset)?", Flat(by_rows=True)),
    Row(r"(?P<block>talker\.model\.layers\.<n>)\..+", Flat()),
    Row(r"(?P<block>talker\.(model\.norm|codec_head))\.weight(_scale|_offset)?", Flat()),
    Row(r"(?P<block>talker\.(text|hidden)_projection)\..+", Flat()),
    Row(r"(?P<block>talker\.code_predictor)\.(?!model\.codec_embedding\.).+", Flat()),  # once per frame, not per code
    Row(r"code2wav\.code_embedding\.weight(_scale|_offset)?", Flat(by_rows=True)),
    Row(r"(?P<block>code2wav\.pre_transformer\.(layers\.<n>|norm))\..+", Flat()),
    Row(r"(?P<block>code2wav\.upsample\.<n>\.<n>)\..+", Flat()),
    Row(r"(?P<block>code2wav\.decoder\.<n>)\..+", Flat()),
)


def make_plan(config, shapes, size):
    """The `Plan` of the components that the parameters in `shapes` (by full name) belong to; for any model and size."""
    parts = {name.split(".", 1)[0] for name in shapes}
    rows = [row for row in ROWS if re.search("[a-z0-9]+", row.pattern.replace("?P<block>", ""))[0] in parts]
    return Plan("zero3", tuple(rows), pieces=True)


def block_of(name):
    """The name of the cell around which a parameter (full name) is gathered, or None for tables read by row."""
    hits = [hit for row in ROWS if (hit := re.fullmatch(row.pattern.replace("<n>", r"\d+"), name))]
    return hits[0].groupdict().get("block")


def bundles(sizes):
    """Splits `{name: bytes of the whole parameter}` into tuples of names that are gathered together."""
    small = tuple(name for name, nbytes in sizes.items() if nbytes <= BUNDLE_BYTES)
    return [*((name,) for name in sizes if name not in small), *([small] if small else [])]


def attach(model, slices, comm):
    """Lets the layers of a model gather what they read; see `zero3.py`."""
    from .zero3 import attach as fill  # needs MindSpore and mindone; the table does not

    return fill(model, slices, comm)
