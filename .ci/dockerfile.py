"""Does what a Dockerfile says without docker: each stage in a folder and a virtual environment of its own.

    python .ci/dockerfile.py FOLDER

FOLDER must not exist. Commands of RUN, HEALTHCHECK, ENTRYPOINT and CMD are run as they are, but for folders at the root of the
image, which are in that of their stage, and the port, which is a free one; what installs Debian's packages is left out, for
that is the base image's system. The image's command is run until its HEALTHCHECK succeeds, and ended. The stages stay: the
last one's environment is FOLDER/last/venv.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READY_S = 240


def instructions(text: str) -> list[tuple[str, str]]:
    """[(word, rest), ...] of a Dockerfile."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in lines) if word]


class Stage:
    """One FROM: a folder that stands for the root of the image, with a fresh environment."""

    def __init__(self, folder: Path, values: dict[str, str], python: str):
        self.folder, self.values, self.work, self.venv = folder, dict(values), folder, folder / "venv"
        folder.mkdir(parents=True)
        subprocess.run([python, "-m", "venv", str(self.venv)], check=True)

    def inside(self, text: str) -> str:
        """Folders at the root that this project names are in the stage's."""
        return re.sub(r"(?<![\w./])/(source|wheels|model)\b", rf"{self.folder}/\1", text)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.venv / 'bin'}:{os.environ['PATH']}"
        return {**os.environ, **self.values, "PATH": path, "VIRTUAL_ENV": str(self.venv)}

    def run(self, command: str) -> None:
        if command.startswith("apt-get"):
            print(f"left out: RUN {command}", flush=True)
            return
        print(f"RUN {command}", flush=True)
        subprocess.run(["bash", "-ec", self.inside(command)], cwd=self.work, env=self.environment, check=True)

    def copy(self, sources: list[str], target: str, source: Path) -> None:
        for name in sources:
            found, to = source / name.lstrip("/"), self.work / self.inside(target)
            if found.resolve() == ROOT:  # what git knows of, as a fresh clone would have it
                listed = subprocess.run(
                    ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
                ).stdout
                for file in filter(None, listed.split("\0")):
                    (to / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / file, to / file)
            else:
                shutil.copytree(found, to)


def build(text: str, folder: Path) -> tuple[Stage, dict[str, list[str]]]:
    """The last stage, and the commands that stay for its image: {"CMD": [...], ...}."""
    values: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage, commands = None, {}
    for word, rest in instructions(text):
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            image = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], image)
            version = re.match(r"python:([\d.]+)-", image)
            assert version, f"FROM {image} is no image of Python"
            name = name or "last"
            stage = stages[name] = Stage(folder / name, {}, python_of(version[1]))
        elif word == "ARG" and "=" in rest:
            key, _, value = rest.partition("=")
            (values if stage is None else stage.values)[key] = shlex.split(value)[0]
        elif word == "ENV":
            key, _, value = rest.partition("=")
            stage.values[key] = value
        elif word == "WORKDIR":
            stage.work = Path(stage.inside(rest))
            stage.work.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            *sources, target = shlex.split(rest)
            source = ROOT
            if sources[0].startswith("--from="):
                source = stages[sources.pop(0).partition("=")[2]].folder
            stage.copy(sources, target, source)
        elif word == "RUN":
            stage.run(rest)
        elif word in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
            commands[word] = [stage.inside(part) for part in json.loads(rest[rest.index("[") :])]
        else:
            assert word in ("USER", "EXPOSE"), f"{word} is not known here"
    return stage, commands


def python_of(version: str) -> str:
    """An interpreter of this version, on the path or among pyenv's; this one if there is none."""
    found = shutil.which(f"python{version}")
    folders = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob(f"{version}.*/bin/python"))
    for python in (*map(str, folders), found):
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return python
    print(f"there is no Python {version} here; {sys.version.split()[0]} is taken", flush=True)
    return sys.executable


def serve(stage: Stage, commands: dict[str, list[str]]) -> None:
    """The command of the image until it is healthy; then it is asked to end, and must."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    both = commands["ENTRYPOINT"] + commands["CMD"], commands["HEALTHCHECK"]
    command, check = ([re.sub(r"\b8000\b", port, part) for part in parts] for parts in both)
    print("CMD", shlex.join(command), flush=True)
    environment = {**stage.environment, "HOME": str(stage.folder)}  # nothing of this user's is known in a container
    with subprocess.Popen(command, cwd=stage.folder, env=environment) as server:
        try:
            until = time.monotonic() + READY_S
            while subprocess.run(check, env=environment, capture_output=True).returncode:
                assert server.poll() is None, f"the server ended with {server.returncode}"
                assert time.monotonic() < until, f"the server was not ready within {READY_S} s"
                time.sleep(1)
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            if server.poll() is None:
                server.kill()


if __name__ == "__main__":
    serve(*build((ROOT / "Dockerfile").read_text(encoding="utf-8"), Path(sys.argv[1]).resolve()))
