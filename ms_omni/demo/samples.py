"""The miniature checkpoint and its sample files: where they are, what is asked about them, and the answers as lines of text."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, InputError
from ..outputs import SPEECH_RATE_HZ, AudioChunk, StreamEnd, TextDelta

MINIATURE = Path("examples/miniature")
INDEX = "samples.json"
MAX_TOKENS, MAX_FRAMES = 48, 200  # of an answer; a frame is 80 ms
TRANSCRIBE = "What number do you hear?"
SHARES = (0.38, 0.34, 0.28)  # of the columns of the table
LEAST, MOST = 70, 120  # characters of its lines


@dataclass(frozen=True)
class Sample:
    """One question. media: (kind, file) in order; answer: the right one; shown: the media in words."""

    name: str
    question: str
    answer: str
    shown: str
    media: tuple[tuple[str, Path], ...]
    use_audio_in_video: bool

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, in the schema of `apply_chat_template`."""
        content = [{"type": kind, kind: str(file)} for kind, file in self.media]
        return [{"role": "user", "content": [*content, {"type": "text", "text": self.question}]}]


@dataclass(frozen=True)
class Answer:
    """text; speech float32 at 24 kHz; seconds from the request to the first text, the first sound and the end.

    transcript: what the model makes of its own speech, for answers that are numbers; else None.
    """

    text: str
    speech: np.ndarray
    speaker: str | None
    first_text_s: float | None
    first_sound_s: float | None
    total_s: float
    transcript: str | None = None


def find_miniature() -> Path:
    """The folder of the miniature checkpoint, in a clone of the repository or as installed.

    Raises `CheckpointError` when it is nowhere to be found.
    """
    for folder in _folders():
        if (folder / "config.json").is_file():
            return folder
    tried = " or ".join(map(str, _folders()))
    raise CheckpointError(
        f"the miniature checkpoint is not in {tried}; install ms_omni again, or name a checkpoint with --model"
    )


def find_samples(model: str | Path) -> Path:
    """The folder of sample files: those beside the checkpoint, else the miniature's.

    Raises `InputError` when there are none.
    """
    folders = [folder / "samples" for folder in (Path(model), *_folders())]
    for folder in folders:
        if (folder / INDEX).is_file():
            return folder
    raise InputError(f"there are no sample files in {' or '.join(map(str, folders))}; install ms_omni again")


def _folders():
    """Where the miniature may be: in the clone that this package runs from, beside it as setup.py puts it, or in the clone
    that we stand in.
    """
    package = Path(__file__).resolve().parents[1]
    return list(dict.fromkeys((package.parent / MINIATURE, package / "_miniature", Path.cwd() / MINIATURE)))


def load_samples(folder: str | Path) -> list[Sample]:
    """The `Sample`s of a folder, in order. Raises `InputError` for a folder without them or with files missing."""
    folder = Path(folder)
    try:
        entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / INDEX} cannot be read: {error}; git checkout restores it") from None
    samples = []
    for entry in entries:
        media = tuple((item["type"], folder / item["file"]) for item in entry["media"])
        known = {name: entry[name] for name in ("name", "question", "answer", "shown", "use_audio_in_video")}
        samples.append(Sample(media=media, **known))
    missing = sorted({file.name for sample in samples for _, file in sample.media if not file.is_file()})
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}; git checkout restores the sample files")
    return samples


def ask(model: Any, processor: Any, sample: Sample, speaker: str | None, seed: int) -> Answer:
    """The answer to one sample; a spoken number is played back to the model."""
    with_sound = sample.use_audio_in_video
    options = {
        "seed": seed,
        "tokenizer": processor.tokenizer,
        "max_new_tokens": MAX_TOKENS,
        "return_audio": model.has_talker,
    }
    if model.has_talker:
        options |= {"speaker": speaker, "talker_max_new_tokens": MAX_FRAMES}
    end: Any = None
    text, chunks = "", [np.zeros(0, np.float32)]
    inputs = _inputs(processor, sample.messages, with_sound)
    for event in model.stream(**inputs, use_audio_in_video=with_sound, **options):
        if isinstance(event, AudioChunk):
            chunks.append(np.asarray(event.pcm[0, : event.samples[0]]))
        elif isinstance(event, TextDelta):
            text += event.text[0] if event.text else ""
        elif isinstance(event, StreamEnd):
            end = event
    text, speech = text.strip(), np.concatenate(chunks)
    transcript = _transcribe(model, processor, speech) if text.isdigit() and len(speech) else None
    return Answer(text, speech, speaker, end.first_text_s, end.first_audio_s, end.total_s, transcript)


def _transcribe(model, processor, speech):
    from ..input.load import load_audio

    content = [{"type": "audio", "audio": load_audio((speech, SPEECH_RATE_HZ))}, {"type": "text", "text": TRANSCRIBE}]
    inputs = _inputs(processor, [{"role": "user", "content": content}], False)
    ids, _ = model.generate(**inputs, return_audio=False, max_new_tokens=MAX_TOKENS)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


def _inputs(processor, messages, use_audio_in_video):
    return processor.apply_chat_template(
        [messages], tokenize=True, return_dict=True, add_generation_prompt=True, use_audio_in_video=use_audio_in_video
    )


def table_head() -> str:
    """Names of the columns, underlined."""
    line = table_line("shown or said", "asked", "answered")
    return f"{line}\n{'-' * (sum(_widths()) + 2 * len(SHARES) - 2)}"


def table_row(sample: Sample, answer: Answer) -> str:
    """One question: what was shown, what was asked, what came, and whether it is right."""
    right = answer.text == sample.answer
    return table_line(sample.shown, sample.question, answer.text if right else f"{answer.text}  (expected: {sample.answer})")


def table_line(*cells: str) -> str:
    """Cells in their columns, on as many lines as they need."""
    widths = _widths()
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths)]
    height = max(map(len, wrapped))
    padded = [column + [""] * (height - len(column)) for column in wrapped]
    return "\n".join("  ".join(part.ljust(width) for part, width in zip(parts, widths)).rstrip() for parts in zip(*padded))


def _widths() -> Sequence[int]:
    whole = min(max(shutil.get_terminal_size().columns, LEAST), MOST) - 2 * (len(SHARES) - 1)
    return [int(whole * share) for share in SHARES]
