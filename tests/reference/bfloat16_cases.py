"""What bfloat16 is measured with, and how; shared by the recorder and the test. Needs neither PyTorch nor MindSpore."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.miniature.held_out import checksum as checksum

MAX_NEW_TOKENS = 16
MAX_FRAMES = 24
SPEAKER = "ethan"
SPOKEN = ("speech_wav", "repeat", "outside")
"""The questions whose answers are spoken, of the miniature's samples."""
SAMPLE = 4096
"""At most so many elements of an array are kept."""


@dataclass(frozen=True)
class Question:
    """One of the miniature's samples as the model takes it: numpy arrays, floats in float32."""

    name: str
    inputs: dict[str, np.ndarray]
    use_audio_in_video: bool
    end_ids: list[int]

    @property
    def digest(self) -> str:
        """Of all inputs; those that were recorded must be those that are compared."""
        found = hashlib.sha256()
        for name in sorted(self.inputs):
            found.update(name.encode() + np.ascontiguousarray(self.inputs[name]).tobytes())
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


def distance(exact: np.ndarray, rounded: np.ndarray) -> dict[str, float]:
    """Of rounded values from exact ones, relative to the root mean square of these: root mean square and largest."""
    gap = np.abs(np.asarray(rounded, np.float64) - exact)
    scale = float(np.sqrt(np.mean(np.square(exact, dtype=np.float64))))
    return {"rms": float(np.sqrt(np.mean(np.square(gap)))) / scale, "largest": float(gap.max()) / scale}


def agreement(exact: np.ndarray, rounded: np.ndarray) -> float:
    """Share of codes [groups, frames] that are equal, up to the end of the longer one."""
    frames = min(exact.shape[1], rounded.shape[1])
    return float((exact[:, :frames] == rounded[:, :frames]).sum() / (len(exact) * max(exact.shape[1], rounded.shape[1])))
