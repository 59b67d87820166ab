"""The index of a checkpoint that is cut for several ranks: one file of weights per rank, made by `convert_for_ranks`.

config.json, ...                    as in the checkpoint that it was made from
ranks.index.json                    what `RankIndex` holds
rank-00001-of-00004.safetensors     this rank's part of every parameter, under our full names, in the dtype computed in
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ms_omni.errors import CheckpointError
from ms_omni.files import read_text

RANKS_INDEX = "ranks.index.json"
FORMAT = "ms_omni ranks 1"


@dataclass(frozen=True)
class RankIndex:
    """plan and options: how it was cut; ranks: for how many; dtype: of the files, safetensors' name; geometry: a digest of
    names and shapes per component; whole: names that rank 0's file holds as they are, nobody's parameters.

    For the way back: parameters: their shapes by full name; root: what stood before our names in the source ("" or
    "thinker."); stored: its dtypes by published name, `usual` where nothing is said; shapes: those that a parameter cannot
    show. exact: whether every bit of the source can be had back from the files' dtype, but for what it held or holds as codes.
    storages: the fields of `Storage` of those parameters that the files hold as codes, by full name.
    """

    plan: str
    options: dict
    ranks: int
    dtype: str
    geometry: dict
    whole: list
    parameters: dict
    root: str
    usual: str
    stored: dict
    shapes: dict
    exact: bool
    storages: dict = field(default_factory=dict)

    def file(self, rank):
        """The name of a rank's file."""
        return f"rank-{rank:05d}-of-{self.ranks:05d}.safetensors"

    def write(self, folder: Path) -> None:
        """Writes the index into `folder`."""
        content = {"format": FORMAT, **asdict(self)}
        (folder / RANKS_INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def fingerprint(self) -> str:
        """Tells indices apart; stands in every rank's file."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=16).hexdigest()


def read_rank_index(folder: str | Path) -> RankIndex | None:
    """The index of a folder, or None where it has none. Raises CheckpointError for one that cannot be read."""
    path = Path(folder) / RANKS_INDEX
    if not path.is_file():
        return None
    try:
        content = json.loads(read_text(path))
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        index = RankIndex(**content)
        for part in fields(index):
            if not isinstance(getattr(index, part.name), part.type):
                raise ValueError(f"{part.name} is no {part.type.__name__}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is not an index of rank files: {problem}. Convert again.") from None
    return index


def geometry(shapes: dict) -> dict:
    """A digest per component of `{full name: shape}`."""
    states = {}
    for name in sorted(shapes):
        state = states.setdefault(name.split(".", 1)[0], hashlib.blake2b(digest_size=8))
        state.update(f"{name} {list(shapes[name])}\n".encode())
    return {component: state.hexdigest() for component, state in states.items()}
