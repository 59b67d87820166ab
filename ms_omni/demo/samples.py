"""The miniature checkpoint and its sample files: where they are, and what is asked about them."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, InputError

MINIATURE = Path("examples/miniature")
INDEX = "samples.json"


@dataclass(frozen=True)
class Sample:
    """One question. media: (kind, file) in order; answer: the right one; shown: what is to be seen and heard, in words."""

    name: str
    question: str
    answer: str
    shown: str
    media: tuple
    use_audio_in_video: bool

    @property
    def messages(self):
        """The conversation, in the schema of `apply_chat_template`."""
        content = [{"type": kind, kind: str(file)} for kind, file in self.media]
        return [{"role": "user", "content": [*content, {"type": "text", "text": self.question}]}]


def find_miniature():
    """The folder of the miniature checkpoint, in a clone of the repository or as installed.

    Raises `CheckpointError` when it is nowhere to be found.
    """
    for folder in _places():
        if (folder / "config.json").is_file():
            return folder
    tried = " or ".join(map(str, _places()))
    raise CheckpointError(
        f"the miniature checkpoint is not in {tried}; install ms_omni again, or name a checkpoint with --model"
    )


def find_samples(model):
    """The folder of sample files: those beside the checkpoint, else the miniature's.

    Raises `InputError` when there are none.
    """
    folders = [folder / "samples" for folder in (Path(model), *_places())]
    for folder in folders:
        if (folder / INDEX).is_file():
            return folder
    raise InputError(f"there are no sample files in {' or '.join(map(str, folders))}; install ms_omni again")


def _places():
    """Where the miniature may be: in the clone that this package runs from, beside it as setup.py puts it, or in the clone
    that we stand in.
    """
    package = Path(__file__).resolve().parents[1]
    return list(dict.fromkeys((package.parent / MINIATURE, package / "_miniature", Path.cwd() / MINIATURE)))


def load_samples(folder):
    """The `Sample`s of a folder, in order. Raises `InputError` for a folder without them or with files missing."""
    folder = Path(folder)
    try:
        entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / INDEX} cannot be read: {error}; git checkout restores it") from None
    samples = [_sample(folder, entry) for entry in entries]
    missing = sorted({file.name for sample in samples for _, file in sample.media if not file.is_file()})
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}; git checkout restores the sample files")
    return samples


def _sample(folder, entry):
    media = tuple((item["type"], folder / item["file"]) for item in entry["media"])
    known = {name: entry[name] for name in ("name", "question", "answer", "shown", "use_audio_in_video")}
    return Sample(media=media, **known)
