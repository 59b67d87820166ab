"""Checkpoints cut for the ranks of a plan: one file per rank, which later starts map; and whole again.

The plan's table decides what is in each file, as it does when a rank reads its slices of a whole checkpoint.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoint.convert import Prepared, convert, kinds_of, prepared
from ..checkpoint.load import numpy_dtype
from ..checkpoint.parameters import arrays_of
from ..checkpoint.rank_files import AssembledReader, Cuttable, read_rank_index
from ..checkpoint.safetensors import dtype_name
from ..config import Qwen3OmniMoeConfig, Qwen3OmniMoeThinkerConfig, read_config_json
from ..errors import InputError
from ..quantised import Storage
from ..runtime import setup
from .plan import STRATEGIES, make_plan


def convert_for_ranks(
    src: str | Path,
    dst: str | Path,
    ranks: int,
    strategy: str,
    *,
    dtype: Any = None,
    options: dict[str, Any] | None = None,
    prepare: Callable[..., Prepared] = prepared,
    progress: bool = True,
) -> Any:
    """Writes the checkpoint `src` (published or converted) to the new folder `dst`, cut for `ranks` processes.

    strategy: "ep" or "zero3"; options: of its plan. dtype: what is computed in later; default: the device's own, and bfloat16 beside codes
    where the source has that. prepare: what is done to the weights on the way, see `ms_omni.checkpoint.convert.prepared`.
    Raises `CheckpointError`, and `InputError` for a number of ranks that the plan cannot serve.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"the plan is {strategy!r}, expected one of {', '.join(map(repr, STRATEGIES))}")
    if ranks < 2:
        raise InputError(f"got {ranks} ranks, expected at least 2: one process reads the checkpoint as it is")
    options = options or {}
    config = _config(src)
    checkpoint = Cuttable(src, _is_tied(config), prepare)
    plan = make_plan(strategy, config, checkpoint.shapes, ranks, **options)
    parts = [plan.slices(checkpoint.shapes, rank, ranks, checkpoint.arrays) for rank in range(ranks)]
    numbers = [fill for name, fill in checkpoint.fills.items() if name not in checkpoint.storages]
    kinds = {kind for fill in numbers for kind in kinds_of(checkpoint.reader, fill).values()}
    unchanged = checkpoint.storages and kinds == {"BF16"}
    kind = "BF16" if dtype is None and unchanged else dtype_name(numpy_dtype(setup(dtype).dtype))
    return checkpoint.write(dst, parts, kind, plan=strategy, options=options, progress=progress)


def convert_from_ranks(src: str | Path, dst: str | Path, *, progress: bool = True) -> Any:
    """Writes a checkpoint that is cut for ranks to the new folder `dst` as it was published, bit by bit.

    Raises `CheckpointError` for one whose numbers were rounded, or that is damaged.
    """
    index = read_rank_index(src)
    assert index is not None
    shapes = {name: tuple(shape) for name, shape in index.parameters.items()}
    plan = make_plan(index.plan, _config(src), shapes, index.ranks, **index.options)
    storages = {name: Storage(**kind) for name, kind in index.storages.items()}
    arrays = {name: arrays_of(name, shapes[name], storage) for name, storage in storages.items()}
    parts = [plan.slices(shapes, rank, index.ranks, arrays) for rank in range(index.ranks)]
    return convert(src, dst, progress=progress, reader=AssembledReader(src, index, parts))


def _config(folder: str | Path) -> Any:
    """The configuration of a full checkpoint or of a thinker alone; None for other parts, whose plans need none."""
    content, _ = read_config_json(folder)
    if "thinker_config" in content:
        return Qwen3OmniMoeConfig.from_pretrained(folder)
    return Qwen3OmniMoeThinkerConfig.from_pretrained(folder) if "audio_config" in content else None


def _is_tied(config: Any) -> bool:
    thinker = getattr(config, "thinker_config", config)
    return thinker is not None and thinker.text_config.tie_word_embeddings
