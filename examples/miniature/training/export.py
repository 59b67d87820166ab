"""The trained parts as one checkpoint in the published format, in bfloat16."""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

from .models import build
from .settings import PIXEL_SCALE, write_settings

PARTS = {"thinker": "thinker.3.pt", "talker": "talker.digits.pt", "code2wav": "vocoder.pt"}
PATCHES = "visual.patch_embed.proj.weight"  # how its name ends
MAX_BYTES = 20_000_000


def coarser_patches(weight: torch.Tensor, scale: int) -> torch.Tensor:
    """Patch weights `[D, C, t, p, p]` for pictures `scale` times as large: each value is spread over scale x scale pixels.

    A video's frames always come with at least 128 x 1024 pixels, whatever the file's size, which would make long prompts
    of patches of 16. Trained on pictures a third as large, and used with patches of 48 that first average 3 x 3 pixels,
    the miniature needs 16 tokens for a picture.
    """
    return weight.repeat_interleave(scale, -1).repeat_interleave(scale, -2) / scale**2


def export(folder: Path, target: Path) -> int:
    """Write the checkpoint of the training in `folder` to `target`; parts not yet trained are random. Returns its bytes.

    Raises:
        RuntimeError: it is larger than it may be.
    """
    target.mkdir(parents=True, exist_ok=True)
    config = write_settings(target, patch_size=16 * PIXEL_SCALE)
    model = build(config, seed=0)
    for part, name in PARTS.items():
        if not (folder / name).exists():
            print(f"{name} is not there: {part} stays random")
            continue
        weights = torch.load(folder / name)
        for key in [key for key in weights if key.endswith(PATCHES)]:
            weights[key] = coarser_patches(weights[key], PIXEL_SCALE)
        getattr(model, part).load_state_dict(weights)
    with tempfile.TemporaryDirectory() as temporary:
        model.to(torch.bfloat16).save_pretrained(temporary, max_shard_size="1GB")
        shutil.copyfile(Path(temporary) / "model.safetensors", target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    size = sum(path.stat().st_size for path in target.iterdir() if path.suffix in (".safetensors", ".json", ".txt"))
    if size > MAX_BYTES:
        raise RuntimeError(f"the checkpoint has {size} bytes; at most {MAX_BYTES} are allowed")
    return size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of the training")
    parser.add_argument("--target", type=Path, default=Path(__file__).resolve().parents[1], help="checkpoint to write")
    arguments = parser.parse_args()
    print(export(arguments.folder, arguments.target), "bytes")
