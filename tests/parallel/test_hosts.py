"""Two hosts, simulated by two network namespaces with a cable between them: one answer, the same as one process gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel.launching import ROOT, free_port, started

ADDRESSES = ("10.211.7.1", "10.211.7.2")
LIMIT_S = 300


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Names of two connected namespaces; skips with the reason where they cannot be had."""
    names = [f"ms-omni-{os.getpid()}-{number}" for number in range(2)]
    cables = [f"mso{os.getpid() % 100_000}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        for name, cable, address in zip(names, cables, ADDRESSES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be had here: {(getattr(error, 'stderr', None) or str(error)).strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_two_hosts_give_the_answer_of_one(hosts, tiny_checkpoint, tmp_path):
    asked = [
        "generate",
        "--model",
        str(tiny_checkpoint),
        "--image",
        str(ROOT / "examples/picture.jpg"),
        "--max-new-tokens",
        "12",
        "What is this?",
    ]
    alone = subprocess.run(
        [sys.executable, "-m", "ms_omni.cli", *asked],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    port = free_port()  # of nobody here either: the hosts share a home folder, where a job's secret has its port's name
    with open(tmp_path / "0.txt", "wb") as first, open(tmp_path / "1.txt", "wb") as second:
        commands = [
            [
                "ip",
                "netns",
                "exec",
                host,
                sys.executable,
                "-m",
                "ms_omni.cli",
                "launch",
                "--nodes",
                "2",
                "--node-rank",
                str(rank),
                "--master-addr",
                ADDRESSES[0],
                "--master-port",
                str(port),
                "--cards",
                "1",
                "--log-dir",
                str(tmp_path / f"logs{rank}"),
                *asked,
            ]
            for rank, host in enumerate(hosts)
        ]
        with started(commands[0], tmp_path, first) as one, started(commands[1], tmp_path, second) as other:
            codes = [job.process.wait(LIMIT_S) for job in (one, other)]
    texts = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert codes == [0, 0], texts
    assert alone.stdout.strip() and alone.stdout.strip() in texts[0]
    assert alone.stdout.strip() not in texts[1]
    assert all(Path(tmp_path / f"logs{rank}").is_dir() for rank in range(2))
