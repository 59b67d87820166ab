"""The watch at work on real processes that do nothing but sleep: no MindSpore, a second or two each."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ms_omni.errors import InputError
from ms_omni.parallel import watch
from ms_omni.parallel.watch.stamps import BUSY, LEAVING, LEFT, STEPS, Stamps
from tests.parallel.launching import ROOT, free_port

FACTS = {"MindSpore": "2.7.1"}


class Watched:
    """Sleeping processes that are watched as a job's are."""

    def __init__(self, size, folder, hang_s=1.0, busy_port=None):
        self.size, self.folder = size, folder
        self.settings = {
            "host": "127.0.0.1",
            "port": free_port(),
            "scheduler_port": busy_port or free_port(),
            "size": size,
            "timeout_s": 20.0,
            "hang_s": hang_s,
            "launcher": 0,
        }
        self.everyone, self.workers, self.stamps, self.companions = [], [], [], []
        self.scheduler = self.sleeper()
        self.hub = self.begin("hub", {"scheduler": self.scheduler.pid})

    def sleeper(self):
        process = subprocess.Popen(["sleep", "60"])
        self.everyone.append(process)
        return process

    def begin(self, module, settings, *descriptors):
        with open(self.folder / f"{module}{len(self.everyone)}.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"ms_omni.parallel.watch.{module}", json.dumps(self.settings | settings)],
                stderr=log,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=descriptors,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.everyone.append(process)
        return process

    def join(self, rank, facts=FACTS):
        worker, stamps = self.sleeper(), Stamps.create()
        self.workers.append(worker)
        self.stamps.append(stamps)
        self.companions.append(
            self.begin(
                "companion",
                {"worker": worker.pid, "stamps": stamps.descriptor, "rank": rank, "facts": facts},
                stamps.descriptor,
            )
        )

    def begins(self):
        """All come; every companion says that the job begins."""
        for rank in range(self.size):
            self.join(rank)
        return [self.answer(companion) for companion in self.companions] == [{"ok": 1}] * self.size

    def answer(self, process):
        return json.loads(process.stdout.readline())

    def ends(self, seconds=15):
        """How each worker ended; the scheduler, the hub and the companions must have gone, too."""
        deadline = time.monotonic() + seconds
        for process in self.everyone:
            process.wait(max(deadline - time.monotonic(), 0.1))
        return [worker.returncode for worker in self.workers]

    def said(self):
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def watched(tmp_path):
    jobs = []

    def make(size=2, **options):
        jobs.append(Watched(size, tmp_path, **options))
        return jobs[-1]

    yield make
    for job in jobs:
        for process in job.everyone:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def test_a_death_ends_everything_and_is_named(watched):
    job = watched(3)
    assert job.begins()
    job.workers[1].kill()
    job.workers[1].wait()
    assert job.ends() == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGTERM]  # nothing is written about their threads
    assert f"rank 1 (process {job.workers[1].pid} on " in job.said() and "has died" in job.said()


def test_a_hang_is_noticed_by_those_who_wait(watched):
    job = watched()
    assert job.begins()
    for rank, stamps in enumerate(job.stamps):
        stamps[BUSY], stamps[STEPS] = 1, 5 - rank
    assert job.ends() == [-signal.SIGUSR2] * 2  # MindSpore's workers write their threads then
    assert f"the job ends: rank 1 (process {job.workers[1].pid} on " in job.said() and "did nothing for 1 s" in job.said()


def test_a_job_that_is_left_in_order_ends_without_a_word(watched):
    job = watched()
    assert job.begins()
    for stamps in job.stamps:
        stamps[LEFT] = LEAVING
    time.sleep(1)
    for worker in job.workers:
        worker.kill()
        worker.wait()
    job.scheduler.kill()
    job.scheduler.wait()
    job.ends()
    assert job.said().strip() == "" and job.hub.returncode == 0


def test_the_end_of_the_scheduler_ends_the_job(watched):
    job = watched()
    assert job.begins()
    job.scheduler.kill()
    job.scheduler.wait()
    assert job.ends() == [-signal.SIGUSR2] * 2
    assert "the scheduler's process has gone" in job.said()


def test_different_versions_do_not_begin(watched):
    job = watched()
    job.join(0)
    job.join(1, {"MindSpore": "2.10.0"})
    said = {job.answer(companion)["error"] for companion in job.companions}
    assert said == {
        f"the processes of this job are not alike: MindSpore is 2.7.1 on {name(job, 0)} but 2.10.0 on {name(job, 1)}"
    }


def name(job, rank):
    return f"rank {rank} (process {job.workers[rank].pid} on {os.uname().nodename})"


def test_a_second_job_on_the_same_port_is_refused(watched):
    job = watched()
    assert job.begins()
    job.join(0)
    assert "another job uses this port" in job.answer(job.companions[-1])["error"]
    assert job.workers[0].poll() is None and job.workers[1].poll() is None


def test_a_busy_port_is_said_by_all(watched):
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import socket; s = socket.create_server(('127.0.0.1', 0));print(s.getsockname()[1], flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        port = int(other.stdout.readline())
        job = watched(busy_port=port)
        job.join(0)
        expected = f"port {port} of 127.0.0.1 cannot be used (Address already in use); choose another master port"
        assert job.answer(job.hub)["error"] == job.answer(job.companions[0])["error"] == expected
        other.communicate("\n")


def test_those_who_do_not_come_are_named(watched):
    job = watched()
    job.settings["timeout_s"] = 2.0
    job.join(0)
    assert job.answer(job.companions[0])["error"] == "rank 1 did not come in time"


def test_ports_and_numbers_from_the_environment(monkeypatch):
    assert watch.watch_port(8118) == 8118 + watch.PORT_OFFSET
    assert watch.watch_port(65000) == 65000 - watch.PORT_OFFSET
    monkeypatch.setenv("MS_OMNI_WATCH_PORT", "70000")
    with pytest.raises(InputError, match="MS_OMNI_WATCH_PORT is 70000, expected a port from 1024 to 65535"):
        watch.watch_port(8118)
    monkeypatch.setenv("MS_OMNI_HANG_S", "soon")
    with pytest.raises(InputError, match="MS_OMNI_HANG_S is 'soon', expected a number"):
        watch.number("MS_OMNI_HANG_S", float, 20.0)


def test_the_processes_of_the_watch_are_light(python=sys.executable):
    code = "import sys, ms_omni.parallel.watch.hub, ms_omni.parallel.watch.companion; print('mindspore' in sys.modules, "
    code += "'numpy' in sys.modules)"
    run = subprocess.run([python, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.stdout.split() == ["False", "False"], run.stderr
