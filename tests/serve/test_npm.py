"""The official client of Node.js, unmodified. `npm install openai` in a folder, and its name in MS_OMNI_NPM."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import KEY
from .test_chat import SAMPLES

FOLDER = os.environ.get("MS_OMNI_NPM", "")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")
@pytest.mark.skipif(not Path(FOLDER, "node_modules/openai").is_dir(), reason="MS_OMNI_NPM names no folder with npm's openai")
def test_it_chats_streams_and_speaks(server):
    script = Path(__file__).with_name("openai_client.mjs")
    command = ["node", script, FOLDER, f"{server.url}/v1", KEY, SAMPLES / "star.jpg", SAMPLES / "digits.wav"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "chat": "star",
        "stream": "star",
        "transcript": "374",
        "same": True,
        "later": "star",
        "refused": ["BadRequestError", 400, "messages"],
    }
