"""The watch at work on real processes that do nothing but sleep: no MindSpore, a second or two each."""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import pytest

from ms_omni.errors import InputError
from ms_omni.parallel import watch
from ms_omni.parallel.monitor import NoSecret, forget, job_secret
from ms_omni.parallel.watch import BUSY, LEAVING, LEFT, STEPS
from tests.parallel.launching import ROOT, free_port

FACTS = {"MindSpore": "2.7.1"}


class Watched:
    """Sleeping processes that are watched as a job's are."""

    def __init__(self, size, folder, hang_s=1.0, refusal=None, launcher=0):
        self.size, self.folder, self.port = size, folder, free_port()
        self.settings = {
            "host": "127.0.0.1",
            "port": self.port + watch.PORT_OFFSET,
            "scheduler_port": self.port,
            "size": size,
            "timeout_s": 60.0,
            "hang_s": hang_s,
            "launcher": launcher,
        }
        self.everyone, self.workers, self.marks, self.supervisors = [], [], [], []
        self.scheduler = self.sleeper("MS_SCHED")
        self.scheduler_supervisor = self.supervise(self.scheduler, {"refusal": refusal})

    def environment(self, role):
        told = {"MS_ROLE": role, "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(self.port)}
        return {**os.environ, "XDG_CACHE_HOME": str(self.folder), **told}

    def sleeper(self, role):
        process = subprocess.Popen(["sleep", "90"], env=self.environment(role))
        process.role = role
        self.everyone.append(process)
        return process

    def supervise(self, process, settings, *descriptors):
        with open(self.folder / f"{len(self.everyone)}.log", "wb") as log:
            supervisor = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    watch.BEGIN,
                    json.dumps(self.settings | {"process": process.pid, "role": process.role} | settings),
                ],
                stderr=log,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=descriptors,
                env=self.environment(process.role),
            )
        self.everyone.append(supervisor)
        return supervisor

    def join(self, rank, facts=FACTS):
        worker, (descriptor, marks) = self.sleeper("MS_WORKER"), watch.shared_marks()
        self.workers.append(worker)
        self.marks.append(marks)
        self.supervisors.append(self.supervise(worker, {"marks": descriptor, "rank": rank, "facts": facts}, descriptor))
        os.close(descriptor)

    def begins(self):
        """All come; every supervisor says that the job begins."""
        for rank in range(self.size):
            self.join(rank)
        everyone = [self.scheduler_supervisor, *self.supervisors]
        return [self.answer(supervisor) for supervisor in everyone] == [{"ok": 1}] * (self.size + 1)

    def answer(self, process):
        return json.loads(process.stdout.readline())

    def ends(self, seconds=45):
        """How each worker ended; the scheduler and the supervisors must have gone, too."""
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
    for rank, marks in enumerate(job.marks):
        marks[BUSY], marks[STEPS] = 1, 5 - rank
    assert job.ends() == [-signal.SIGUSR2] * 2  # MindSpore's workers write their threads then
    assert f"the job ends: rank 1 (process {job.workers[1].pid} on " in job.said() and "did nothing for 1 s" in job.said()


def test_a_job_that_is_left_in_order_ends_without_a_word(watched):
    job = watched()
    assert job.begins()
    for marks in job.marks:
        marks[LEFT] = LEAVING
    time.sleep(1)
    for worker in job.workers:
        worker.kill()
        worker.wait()
    job.scheduler.kill()
    job.scheduler.wait()
    job.ends()
    assert job.said().strip() == "" and job.scheduler_supervisor.returncode == 0


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
    said = {job.answer(supervisor)["error"] for supervisor in job.supervisors}
    assert said == {
        f"the processes of this job are not alike: MindSpore is 2.7.1 on {name(job, 0)} but 2.10.0 on {name(job, 1)}"
    }


def name(job, rank):
    return f"rank {rank} (process {job.workers[rank].pid} on {os.uname().nodename})"


def test_a_second_job_on_the_same_port_is_refused(watched):
    job = watched()
    assert job.begins()
    job.join(0)
    assert "another job uses this port" in job.answer(job.supervisors[-1])["error"]
    assert job.workers[0].poll() is None and job.workers[1].poll() is None


def test_a_busy_port_is_said_by_all(watched):
    """The scheduler finds it."""
    expected = "port 8118 of 127.0.0.1 cannot be used (Address already in use); choose another master port"
    job = watched(refusal=expected)
    job.join(0)
    assert job.answer(job.scheduler_supervisor)["error"] == job.answer(job.supervisors[0])["error"] == expected


def test_those_who_do_not_come_are_named(watched):
    job = watched()
    job.settings["timeout_s"] = 2.0
    job.join(0)
    assert job.answer(job.supervisors[0])["error"] == "rank 1 did not come in time"


def test_the_end_of_the_launcher_ends_the_job(watched):
    with subprocess.Popen(["sleep", "90"]) as launcher:
        job = watched(launcher=launcher.pid)
        assert job.begins()
        launcher.kill()
    assert job.ends() == [-signal.SIGTERM] * 2 or job.ends() == [-signal.SIGUSR2] * 2
    assert "the launcher on " in job.said()


def test_workers_that_go_before_they_come_end_the_scheduler(watched):
    """msrun waits for the scheduler, and MindSpore's scheduler for them."""
    with subprocess.Popen(["sleep", "90"]) as launcher:
        job = watched(launcher=launcher.pid)
        job.ends()
        assert "no worker is left" in job.said()
        launcher.kill()


def test_what_is_left_of_a_job_is_ended_too(watched):
    """What msrun has started beside the workers, and a scheduler that nobody watches."""
    job = watched()
    assert job.begins()
    job.sleeper("MS_WORKER")
    job.scheduler_supervisor.kill()
    job.workers[0].kill()
    job.ends()


STRANGERS = [
    b"",
    b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    b"[" * 200_000 + b"\n",
    b'{"rank": 0, "gone": 1}\n',
    bytes(range(256)) * 40,
    struct.pack("!iq", -1, 1 << 40),  # a message of a terabyte
    struct.pack("!i", 20) + b"#CHALLENGE#" + b"x" * 9,
    struct.pack("!i", 9) + b"#WELCOME#",
]


@pytest.fixture
def stranger():
    """`stranger(port, data)`: connects and sends, and stays."""
    connections = []

    def connect(port, data=b""):
        connections.append(socket.create_connection(("127.0.0.1", port)))
        with contextlib.suppress(OSError):  # it has hung up already
            connections[-1].sendall(data)

    yield connect
    for connection in connections:
        connection.close()


def test_strangers_at_the_port_are_not_heard(watched, stranger):
    job = watched()
    assert job.answer(job.scheduler_supervisor) == {"ok": 1}
    for data in STRANGERS:
        stranger(job.settings["port"], data)
    for _ in range(100):  # more than are listened to at once
        stranger(job.settings["port"])
    for rank in range(2):
        job.join(rank)
    assert [job.answer(supervisor) for supervisor in job.supervisors] == [{"ok": 1}] * 2
    for data in STRANGERS:
        stranger(job.settings["port"], data)
    with pytest.raises(multiprocessing.AuthenticationError):
        multiprocessing.connection.Client(("127.0.0.1", job.settings["port"]), authkey=b"a guess")
    time.sleep(3)
    assert all(process.poll() is None for process in job.everyone) and job.said().strip() == ""
    job.workers[0].kill()
    job.ends()
    assert "rank 0" in job.said() and "has died" in job.said()


def test_a_process_with_another_secret_is_not_taken_in(watched, monkeypatch):
    job = watched()
    assert job.answer(job.scheduler_supervisor) == {"ok": 1}
    monkeypatch.setenv("MS_OMNI_SECRET", "another one")
    job.join(1)
    assert "set MS_OMNI_SECRET to the same text for all processes" in job.answer(job.supervisors[0])["error"]


def test_the_secret_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.delenv("MS_OMNI_SECRET", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NoSecret):
        job_secret("10.0.0.1", 9127)
    secret = job_secret("10.0.0.1", 9127, create=True)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert len(secret) >= 32 and file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert job_secret("10.0.0.1", 9127) == secret != job_secret("10.0.0.1", 9127, create=True)
    forget("10.0.0.1", 9127)
    assert not file.exists()
    file.parent.chmod(0o777)  # others could put one there
    (tmp_path / "no folder").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no folder"))
    with pytest.raises(NoSecret):
        job_secret("10.0.0.1", 9127, create=True)
    monkeypatch.setenv("MS_OMNI_SECRET", "told")
    assert job_secret("10.0.0.1", 9127) == b"told"


def test_what_is_busy_before_the_watch_begins(monkeypatch):
    """`from_pretrained` is, and joins the others inside."""
    monkeypatch.setattr(watch, "_marks", watch.shared_marks()[1])
    seen = []
    monkeypatch.setattr(watch, "supervise", lambda settings, descriptor: seen.append(watch.marks_at(descriptor)))
    monkeypatch.setattr(watch, "_supervised", None)
    monkeypatch.setattr(watch, "_facts", lambda size: {})
    monkeypatch.setattr(watch.atexit, "register", lambda function: None)
    monkeypatch.setattr(watch.faulthandler, "register", lambda *_, **__: None)
    for name, value in {"MS_ROLE": "MS_WORKER", "MS_SCHED_PORT": "8118", "MS_WORKER_NUM": "2"}.items():
        monkeypatch.setenv(name, value)
    with watch.busy():
        watch.start()
        assert seen[0][BUSY] == 1
    assert seen[0][BUSY] == 0


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
    code = "import sys, ms_omni.parallel.supervisor; print('mindspore' in sys.modules, "
    code += "'numpy' in sys.modules)"
    run = subprocess.run([python, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.stdout.split() == ["False", "False"], run.stderr
