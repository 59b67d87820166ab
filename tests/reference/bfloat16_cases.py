"""What bfloat16 is measured with, and how; shared by the recorder and the test. Needs neither PyTorch nor MindSpore."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .store import DATA

FILE = DATA / "bfloat16.json"
MAX_NEW_TOKENS = 16
ROWS, TOKENS, FRAMES = 150, 24, 60
"""Of random text, and of random codes for the vocoder: so many that a few changed choices of experts do not decide."""


@dataclass(frozen=True)
class RandomInputs:
    """text int64 `[ROWS, TOKENS]`; rows float32 `[ROWS, TOKENS, D]` as large as those that the talker reads; hidden float32
    `[ROWS, 1, D]`; codes int64 `[ROWS, Q]`; frames int64 `[1, Q, FRAMES]`.
    """

    text: np.ndarray
    rows: np.ndarray
    hidden: np.ndarray
    codes: np.ndarray
    frames: np.ndarray


def random_inputs(model: Path) -> RandomInputs:
    config, rng = json.loads((model / "config.json").read_text()), np.random.default_rng(0)
    thinker, talker = config["thinker_config"], config["talker_config"]
    media = min(thinker[f"{kind}_token_id"] for kind in ("audio", "image", "video"))
    width, predictor = talker["text_config"]["hidden_size"], talker["code_predictor_config"]
    groups, size = predictor["num_code_groups"], predictor["vocab_size"]
    return RandomInputs(
        rng.integers(0, media, (ROWS, TOKENS)),
        rng.standard_normal((ROWS, TOKENS, width), np.float32),
        rng.standard_normal((ROWS, 1, width), np.float32),
        rng.integers(0, size, (ROWS, groups)),
        rng.integers(0, size, (1, groups, FRAMES)),
    )


@dataclass(frozen=True)
class Question:
    """One of the miniature's samples as the model takes it: numpy arrays, floats in float32."""

    name: str
    inputs: dict[str, np.ndarray]
    use_audio_in_video: bool
    end_ids: list[int]

    @property
    def digest(self) -> str:
        """Of the ids, masks and grids: those that were recorded must be those that are compared. Pixels and sound may differ in
        their last bits between decoders and machines.
        """
        found = hashlib.sha256()
        for name, values in sorted(self.inputs.items()):
            if values.dtype.kind in "iub":
                found.update(name.encode() + np.ascontiguousarray(values.astype(np.int64)).tobytes())
        return found.hexdigest()[:16]


def questions(model: Path) -> list[Question]:
    """The samples that lie beside the miniature, through this package's processor."""
    from ms_omni.input.processor import Qwen3OmniMoeProcessor

    processor, samples = Qwen3OmniMoeProcessor.from_pretrained(model), model / "samples"
    ends = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    found = []
    for entry in json.loads((samples / "samples.json").read_text()):
        media = [{"type": item["type"], item["type"]: str(samples / item["file"])} for item in entry["media"]]
        content, woven = [*media, {"type": "text", "text": entry["question"]}], entry["use_audio_in_video"]
        inputs = processor.apply_chat_template(
            [[{"role": "user", "content": content}]],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            use_audio_in_video=woven,
        )
        found.append(Question(entry["name"], {key: np.asarray(value) for key, value in inputs.items()}, woven, ends))
    return found


def distance(exact: np.ndarray, rounded: np.ndarray) -> float:
    """Of rounded values `[..., n]` from exact ones: the root mean square over the last axis, relative to that of all exact
    values, and of that the median.

    The mean would be made by the few tokens for which a rounding has changed the choice of experts.
    """
    gaps = np.square(np.asarray(rounded, np.float64) - exact).mean(axis=-1)
    return float(np.sqrt(np.median(gaps) / np.square(exact, dtype=np.float64).mean()))
