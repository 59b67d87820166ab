"""The checkpoint and the repository stay small."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_BYTES, FILES_BYTES = 20_000_000, 33_000_000


def test_the_checkpoint(miniature):
    files = [
        path
        for path in miniature.iterdir()
        if path.suffix in (".safetensors", ".json", ".txt") and not path.name.startswith("held_out")
    ]
    assert sum(path.stat().st_size for path in files) <= CHECKPOINT_BYTES
    assert json.loads((miniature / "config.json").read_text())["architectures"] == ["Qwen3OmniMoeForConditionalGeneration"]


def test_all_files_of_the_repository():
    """A clone holds them once as files and once packed: less than 60 MB."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in paths if path.is_file()) <= FILES_BYTES
