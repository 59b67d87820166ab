"""What the matrices of a model read while it answers questions of the user's: for `ms-omni convert --calibrate`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint.matching import file_root
from .checkpoint.open import as_published, open_checkpoint
from .checkpoint.quantise import Inputs, Observed
from .errors import InputError
from .files import read_text
from .input.load import checked
from .input.messages import media_type, read_values
from .modeling.layers import Linear
from .modeling.moe import Experts
from .parallel.layers import become

TEXTS, CONVERSATIONS = (".txt", ".md"), (".jsonl", ".json")
PIECE = 2000  # characters of a text that are one question
QUESTION = "Describe what you see and hear."  # beside a picture, sound or video
MAX_TOKENS, MAX_FRAMES = 64, 32  # of an answer, in text and in speech


def questions(files: list[str | Path]) -> list[list[dict]]:
    """Conversations in the files: texts, pieces of which are questions; JSON values, a line each or longer, that are conversations, lists
    of those, `{"messages": ...}`, or requests that hold one in `"body"`; pictures, sounds and videos. Raises `InputError` for anything
    else.
    """
    found = [conversation for file in files for conversation in _read(Path(file))]
    if not found:
        raise InputError("there is nothing to calibrate with in " + ", ".join(map(str, files)))
    return found


def _read(path: Path) -> Iterator[list[dict]]:
    suffix = path.suffix.lower()
    if suffix in TEXTS:
        text = _text(path)
        yield from (_turn(piece) for at in range(0, len(text), PIECE) if (piece := text[at : at + PIECE].strip()))
    elif suffix in CONVERSATIONS:
        yield from (_conversation(value, where) for where, value in read_values(path))
    else:
        kind = media_type(path.name).split("/")[0]
        if kind not in ("image", "audio", "video"):
            raise InputError(
                f"{path}: expected a text ({', '.join(TEXTS)}), conversations ({', '.join(CONVERSATIONS)}), or a picture, sound or video"
            )
        medium = {"role": "user", "content": [{"type": kind, kind: str(path)}, {"type": "text", "text": QUESTION}]}
        yield checked([medium], "--calibrate")


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def _turn(text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def _conversation(value: Any, where: str) -> list[dict]:
    for key in ("body", "messages"):
        value = value.get(key, value) if isinstance(value, dict) else value
    if isinstance(value, str) and value.strip():
        return _turn(value)
    if not isinstance(value, list) or not value:
        raise InputError(f'{where}: expected {{"messages": [...]}}, or a request with such a "body"')
    return checked(value, where)


def needed_gb(folder: str | Path) -> float:
    """GB of memory that running the model of a folder takes, about: its weights as they are computed with here, and 2 more."""
    from .modeling.ops import keeps_bfloat16
    from .runtime import setup

    runtime = setup()
    reader = open_checkpoint(folder)
    itemsize = 2 if keeps_bfloat16() or "16" in str(runtime.dtype) else 4
    return sum(entry.size for entry in reader.entries.values()) * itemsize / 1e9 + 2


def observe(folder: str | Path, files: list[str | Path], progress: Callable[[str], Any] = lambda text: None) -> Observed:
    """What the matrices of thinker and talker get to see, from what the model of `folder` computes while it answers.

    The model is held in memory as a whole. Raises `InputError` where that is too small, before anything is loaded, and for files that
    cannot be read.
    """
    from .runtime import free_memory_gb

    asked = questions(files)
    needed, (free, why) = needed_gb(folder), free_memory_gb()
    if needed > free:
        raise InputError(
            f"calibration runs the model of {folder} in memory: that takes {needed:.1f} GB, and {free:.1f} GB are free ({why}). "
            "Leave --calibrate out, or calibrate on a machine with more memory."
        )
    from .input.processor import Qwen3OmniMoeProcessor
    from .model import Qwen3OmniMoeForConditionalGeneration

    processor = Qwen3OmniMoeProcessor.from_pretrained(folder)
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, compile_steps=False, parallel=None)
    speaks = getattr(model, "talker", None) is not None
    with observe_inputs(model, folder) as inputs:
        for number, messages in enumerate(asked, 1):
            progress(f"calibrating: conversation {number} of {len(asked)} ...")
            encoded = processor.apply_chat_template([messages], tokenize=True, return_dict=True, add_generation_prompt=True)
            options = {"talker_max_new_tokens": MAX_FRAMES, "seed": number} if speaks else {}
            model.generate(**encoded, return_audio=speaks, max_new_tokens=MAX_TOKENS, **options)
    return Observed(inputs, {"files": [Path(file).name for file in files], "conversations": len(asked)})


def unfused(x: Any) -> Any:
    """x; a layer whose parameters are read through anything but `identity` is run as it is, and not as a part of a fused operator."""
    return x


class ObservedLinear(Linear):
    """A `Linear` that hands its inputs to `observe`."""

    observe: Callable[..., None]

    def construct(self, x: Any) -> Any:
        self.observe(x)
        return super().construct(x)


class ObservedExperts(Experts):
    """`Experts` that hand their inputs to `observe`."""

    observe: Callable[..., None]

    def construct(self, x: Any, weights: Any, indices: Any) -> Any:
        self.observe(x, indices)
        return super().construct(x, weights, indices)


@contextmanager
def observe_inputs(model: Any, folder: str | Path) -> Iterator[dict[str, Inputs]]:
    """Inside, `{published name: Inputs}` of the linear layers and experts in the decoders of thinker and talker grows."""
    reader = as_published(open_checkpoint(folder))
    root = file_root(reader.entries)
    inputs: dict[str, Inputs] = {}

    def note(name, rows):
        stored = f"{name}.weight".removeprefix(root)
        if stored in inputs:
            inputs[stored].add(Inputs.of(rows))
        else:
            inputs[stored] = Inputs.of(rows)

    def experts(stem):
        def observe(x, indices):
            rows, chosen = x.asnumpy().astype(np.float32), indices.asnumpy()
            for expert in np.unique(chosen):
                own = rows[(chosen == expert).any(axis=1)]
                gate, up = (
                    _matrix(reader, f"{stem}.{expert}.{part}_proj.weight".removeprefix(root)) for part in ("gate", "up")
                )
                note(f"{stem}.{expert}.gate_proj", own)
                note(f"{stem}.{expert}.up_proj", own)
                opened = own @ gate.T
                note(f"{stem}.{expert}.down_proj", opened / (1 + np.exp(-opened)) * (own @ up.T))

        return observe

    def linear(name):
        return lambda x: note(name, x.asnumpy().astype(np.float32).reshape(-1, x.shape[-1]))

    observed = []
    for name, cell in model.cells_and_names():
        if ".model.layers." not in f".{name}" or "code_predictor" in name or not name.startswith(("thinker.", "talker.")):
            continue
        kind, observer = (ObservedLinear, linear) if isinstance(cell, Linear) else (ObservedExperts, experts)
        if isinstance(cell, (Linear, Experts)):
            observed.append((cell, type(cell), cell.source))
            become(cell, kind, observe=observer(name), source=unfused)
    try:
        yield inputs
    finally:
        for cell, kind, source in observed:
            object.__setattr__(cell, "__class__", kind)
            cell.source = source


def _matrix(reader, name) -> np.ndarray:
    return np.array(reader.array(name), np.float32)
