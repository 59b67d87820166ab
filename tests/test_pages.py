"""The commands and the Python of README.md and docs/ do what they say, in a copy of the repository."""

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import soundfile

from ms_omni.cli import main

from .hub.server import Hub
from .parallel.launching import free_port

ROOT = Path(__file__).resolve().parents[1]


def blocks(page):
    """[(kind, text), ...] of the blocks of a page that can be run."""
    return re.findall(r"```(bash|python)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def lines(page):
    """The commands of a page, one by one; `ms-omni doctor` is cut to the checks that take no minutes, and msrun gets a port that
    nobody else has, for other tests may be running."""
    commands = [line for kind, block in blocks(page) if kind == "bash" for line in block.splitlines()]
    shorter = [re.sub("^ms-omni doctor", "ms-omni doctor --only python,packages,disk", line) for line in commands]
    return [re.sub("^msrun", f"msrun --master_port={free_port()}", line) for line in shorter]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The files that a clone would have, and an environment in which ms_omni is this copy."""
    target = tmp_path_factory.mktemp("clone")
    for name in ("configs", "examples", "launch", "ms_omni", "README.md", "setup.py", "pyproject.toml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target / name)
    return target


@pytest.fixture(scope="module")
def environment(clone, tmp_path_factory):
    """Variables under which launch/ scripts find an environment that is ready: this interpreter's, with this copy."""
    venv = tmp_path_factory.mktemp("venv")
    (venv / "bin").mkdir()
    for extras in ("", "[dev,parallel]"):
        (venv / f".ms_omni-installed{extras}").touch()
    for name, arguments in (("python", ""), ("ms-omni", " -m ms_omni.cli")):
        script = venv / "bin" / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH="{clone}" exec "{sys.executable}"{arguments} "$@"\n')
        script.chmod(0o755)
    return {**os.environ, "MS_OMNI_VENV": str(venv), "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}


def run(command, clone, environment):
    """Standard output of a command that ends well."""
    options = {"cwd": clone, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    result = subprocess.run(["bash", "-c", command], **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result.stdout


@pytest.mark.slow
def test_commands(clone, environment):
    commands = lines("README.md") + lines("docs/guide.md")
    assert commands[0] == "bash launch/quickstart.sh"
    commands[commands.index("bash launch/test.sh")] += " --version"  # the tests themselves are running now
    shorter = {"ms-omni bench serve": "--only serve --rows 2 --callers 2", "ms-omni bench": "--only image --repetitions 1"}
    for part, options in shorter.items():
        commands = [f"{line} {options}" if line.startswith(part) and "--only" not in line else line for line in commands]
    for command in commands:
        run(command, clone, environment)
    assert soundfile.info(clone / "build/demo/picture.wav").samplerate == 24000
    assert (clone / "build/demo/demo.png").is_file()
    assert soundfile.info(clone / "build/hello.wav").duration > 0.5
    assert soundfile.info(clone / "build/two.wav").samplerate == 24000


@pytest.mark.slow
def test_commands_of_quantisation(clone, environment):
    for command in lines("docs/quantisation.md"):
        run(command, clone, environment)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_folders_are_what_plan_prints(quantize, capsys):
    assert main(["plan", "--config", "instruct", "--quantize", quantize]) == 0
    (table,) = (part for part in capsys.readouterr().out.split("\n\n") if "a token reads" in part)
    assert table.split("\ncallers:")[0] in (ROOT / "docs/quantisation.md").read_text(encoding="utf-8")


def test_python(clone, environment):
    pages = blocks("README.md") + blocks("docs/guide.md")
    source = "\n".join(block for kind, block in pages if kind == "python")  # one goes on from the other
    (clone / "readme_example.py").write_text(source, encoding="utf-8")
    answer, *events = run("python readme_example.py", clone, environment).splitlines()
    assert answer == "an orange star"
    names = [[name for number, name in map(str.split, events) if number == id] for id in ("0", "1")]
    assert [own[-1] for own in names] == ["StreamEnd"] * 2 and ["AudioChunk" in own for own in names] == [True, False]


def check_server(command, folder, environment):
    """It becomes ready, and ends when it is asked to."""
    port = free_port()
    arguments = ["bash", "-c", f"exec {command} --port {port}"]
    with subprocess.Popen(arguments, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = []
        try:
            for line in server.stderr:
                said.append(line)
                if "ready" in line and "/ready" not in line:
                    break
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=30) as answer:
                assert answer.status == 200
            server.send_signal(signal.SIGTERM)
            said += server.communicate(timeout=60)[1:]
            assert server.returncode in (0, 128 + signal.SIGTERM), "".join(said)  # the launcher says what ended it
        finally:
            server.kill()


@pytest.mark.slow
def test_the_first_hour_on_ascend(clone, environment, tmp_path):
    """On CPU: the hub is one on loopback, and the miniature is what it knows by the name of the published model."""
    (published := tmp_path / "published").mkdir()
    for file in (clone / "examples/miniature").iterdir():
        if file.suffix in (".json", ".safetensors", ".txt"):
            (published / file.name).symlink_to(file)
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy(clone / "examples/miniature/samples/star.jpg", here / "photo.jpg")
    page = (ROOT / "docs/ascend.md").read_text(encoding="utf-8")
    (source,) = [block for kind, block in blocks("docs/ascend.md") if kind == "python"]
    (here / "answer.py").write_text(source, encoding="utf-8")
    hub = Hub({"Qwen/Qwen3-Omni-30B-A3B-Instruct": published})
    places = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    environment = {**environment, **places, "PATH": f"{environment['PATH']}:{Path(sys.executable).parent}"}  # msrun's
    try:
        said = {command: run(command, here, environment) for command in lines("docs/ascend.md")}
        for command in re.findall(r"^(?:ms-omni launch --cards 2|ms-omni) serve .*", page, re.MULTILINE):
            check_server(command, here, environment)
    finally:
        hub.close()
    answers = [text for command, text in said.items() if command.startswith(("ms-omni launch", "ms-omni generate"))]
    answers.append((here / "logs/worker_0.log").read_text())
    assert len(answers) == 6 and all("an orange star" in text for text in answers), answers
    assert all(soundfile.info(here / name).samplerate == 24000 for name in ("answer.wav", "one.wav"))
    assert "python" in (here / "report.txt").read_text().lower()


@pytest.mark.slow
def test_commands_for_contributors(environment):
    for command in lines("CONTRIBUTING.md"):
        run(command, ROOT, environment)


PAGES = ("CONTRIBUTING.md", "README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", sorted(PAGES))
def test_files_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`(?:python |bash )?((?:ms_omni|tests|launch|configs|examples|\.ci)/[\w./-]*\w/?)`", text)
    assert not [path for path in named if "NAME" not in path and not (ROOT / path).exists()]


def test_steps_for_contributors_name_what_is_in_the_files():
    """A name in a step is in one of the files that the step names."""
    seen = 0
    for step in re.split(r"\n(?=\d\. |#)|\n\n", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        files = [ROOT / path for path in re.findall(r"`((?:ms_omni|tests)/[\w/]+\.(?:py|h))`", step)]
        texts = "".join(file.read_text(encoding="utf-8") for file in files)
        names = re.findall(r"`([A-Z_]{4,}|_[a-z_]+|[A-Z][a-z]+[A-Z]?\w+|check_\w+|@operator)`", step) if files else ()
        assert not [name for name in names if name not in texts], step
        seen += len(names)
    assert seen >= 15


def test_pins_are_the_same_everywhere():
    pins = [
        re.findall(r"([\w-]+)==([\d.]+)", (ROOT / file).read_text())
        for file in ("pyproject.toml", ".pre-commit-config.yaml")
    ]
    known = dict(pins[0])
    assert {name: known.get(name, version) for name, version in pins[1]} == dict(pins[1]) and {"ruff", "pyright"} <= set(
        known
    )


def test_the_image_for_ascend_takes_versions_that_go_together():
    text = (ROOT / "Dockerfile.ascend").read_text(encoding="utf-8")
    given = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    rows = [[cell.strip() for cell in line.split("|")] for line in (ROOT / "docs/ascend.md").read_text().splitlines()]
    assert any(row[1:3] == [given["MINDSPORE"], given["CANN"].upper()] for row in rows if len(row) > 3)


def test_tree_names_what_is_there():
    (tree,) = re.findall(r"```\n(ms_omni/.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    folder = Path()
    for line in tree.splitlines():
        name = line.split()[0]
        path = folder / name if line.startswith("  ") else Path(name)
        if not line.startswith("  "):
            folder = path
        assert (ROOT / path).exists(), f"README names {path}"


@pytest.mark.parametrize("strategy", ["ep", "zero3"])
def test_tables_are_what_plan_prints(strategy, capsys):
    assert main(["plan", "--config", "instruct", "--cards", "1,2,4,8", "--strategy", strategy]) == 0
    assert capsys.readouterr().out in (ROOT / "docs/ascend.md").read_text(encoding="utf-8")
