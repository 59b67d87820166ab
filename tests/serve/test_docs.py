"""The page about serving does what it says."""

import argparse
import re
import subprocess
import sys

import soundfile

from ms_omni.cli import build_parser

from .conftest import KEY, ROOT


def test_python_of_the_page(server, tmp_path):
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    source = source.replace("http://127.0.0.1:8000", server.url).replace('api_key="any"', f"api_key={KEY!r}")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "an orange star\n"
    assert soundfile.info(tmp_path / "answer.wav").samplerate == 24000


def test_options_of_the_page():
    """Every option that is named is one."""
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    known = {option for parser in commands.choices.values() for option in parser._option_string_actions}
    assert set(re.findall(r"(?<!\w)--[a-z][a-z-]+", page)) <= known
