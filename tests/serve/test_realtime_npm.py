"""The official realtime client of Node.js, unmodified. `npm install openai ws` in a folder, and its name in MS_OMNI_NPM."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.serve.conftest import KEY, START_S
from tests.serve.talking import said, sample

FOLDER = os.environ.get("MS_OMNI_NPM", "")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("node") and shutil.which("openssl")), reason="there is no node or openssl here")
@pytest.mark.skipif(
    not Path(FOLDER, "node_modules/ws").is_dir(), reason="MS_OMNI_NPM names no folder with npm's openai and ws"
)
def test_it_speaks_and_is_answered(make_server, tmp_path):
    """It knows wss alone."""
    sound, certificate, key = (tmp_path / name for name in ("question.pcm", "certificate.pem", "key.pem"))
    sound.write_bytes(said(sample()).tobytes())
    request = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*request.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    server = make_server("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    ends = time.monotonic() + START_S
    while "serve: ready" not in server.said():
        assert server.process.poll() is None and time.monotonic() < ends, server.said()
        time.sleep(0.2)
    script, url = Path(__file__).with_name("openai_realtime.mjs"), f"https://127.0.0.1:{server.port}/v1"
    trusting = {**os.environ, "NODE_EXTRA_CA_CERTS": str(certificate)}
    command = ["node", script, FOLDER, url, KEY, sound]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=trusting)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["text"], found["status"]) == ("374", "completed") and found["bytes"] > 48_000
