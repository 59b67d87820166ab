"""Record what transformers' own processor makes of `processor_cases`. Needs PyTorch, torchvision and transformers 5.x.

python tests/reference/record_processor.py    writes tests/reference/data/processor/
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
OUT = HERE / "data" / "processor"
KEPT_VALUES = 1500  # per array of pixels or features


def load_torchvision() -> None:
    """Import torchvision even if its compiled operators do not fit this PyTorch.

    The two that it looks up at import are declared instead; resizing does not use them.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        load_torchvision.library = library  # keep the declaration alive
        import torchvision  # noqa: F401


def load_file(path: Path):
    """A module by its file: importing ms_omni as a package is not needed here."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array.astype(np.int64)).tobytes()).hexdigest()


def kept_places(size: int) -> np.ndarray:
    """Places of the values that are stored, spread over the whole array."""
    return np.unique(np.linspace(0, size - 1, min(size, KEPT_VALUES)).astype(np.int64))


def reference_arguments(case: dict) -> dict:
    """The case in the reference's words."""
    arguments = {
        key: value for key, value in case.items() if key not in ("sound_of_video", "fps", "min_pixels", "max_pixels")
    }
    arguments["text"] = list(case["text"])
    if "videos" in case:
        arguments["videos"] = [torch.from_numpy(video) for video in case["videos"]]
        arguments["videos_kwargs"] = {"fps": case["fps"], "do_sample_frames": False, "cap_pixels_per_frame": False}
    if "sound_of_video" in case:
        arguments |= {"audio_from_video_indices": case["sound_of_video"], "load_audio_from_video": True}
    if "max_pixels" in case:
        arguments["images_kwargs"] = {"size": {"shortest_edge": case["min_pixels"], "longest_edge": case["max_pixels"]}}
    return arguments


def main() -> None:
    load_torchvision()
    import transformers
    from transformers import Qwen3OmniMoeProcessor

    tiny = load_file(HERE.parent.parent / "ms_omni" / "processing" / "tiny_processor.py")
    cases = load_file(HERE / "processor_cases.py").cases()
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tiny.write_tiny_processor(folder)
        processor = Qwen3OmniMoeProcessor.from_pretrained(folder)
        exact, sampled = {}, {}
        for name, case in cases.items():
            outputs = processor(**reference_arguments(case), padding=True, return_tensors="np")
            exact[name] = {}
            for key, value in outputs.items():
                value = np.asarray(value)
                entry = {"shape": list(value.shape)}
                if key in ("pixel_values", "pixel_values_videos", "input_features"):
                    sampled[f"{name}.{key}"] = value.reshape(-1)[kept_places(value.size)].astype(np.float32)
                elif value.dtype.kind == "f" or value.size <= 12:
                    entry["values"] = value.tolist()
                else:
                    entry["sha256"] = digest(value)
                exact[name][key] = entry
            print(name, {key: entry["shape"] for key, entry in exact[name].items()})
    exact["recorded_with"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    (OUT / "exact.json").write_text(json.dumps(exact, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(OUT / "sampled.npz", **sampled)


if __name__ == "__main__":
    main()
