"""A job whose worker dies, or whose user has enough, is gone soon, with an exit code that says so, and leaves nothing."""

import os
import signal
import time

import psutil
import pytest

from tests.parallel.launching import ROOT, launch_command, msrun_command, started

WORKERS = 2
GONE_S = 60  # 30 on an idle machine
START_S = 200
SLOW = pytest.mark.slow


def wait_for(paths, job):
    deadline = time.monotonic() + START_S
    while not all(path.is_file() and path.read_text() for path in paths):
        assert job.process.poll() is None and time.monotonic() < deadline, "the job did not begin"
        time.sleep(0.1)
    return [int(path.read_text()) for path in paths]


@pytest.fixture
def running(tiny_checkpoint, tmp_path):
    """`running(command_of)`: a job in the middle of an answer, and the numbers of its workers."""
    here = tmp_path / "here"
    here.mkdir()
    contexts = []

    def begin(command_of):
        output = open(tmp_path / "output.txt", "wb")
        command = command_of(
            WORKERS, tmp_path / "logs", ROOT / "tests/parallel/endless_worker.py", tiny_checkpoint, tmp_path
        )
        contexts.extend([output, started(command, here, output)])
        job = contexts[-1].__enter__()
        return job, wait_for([tmp_path / f"pid{rank}" for rank in range(WORKERS)], job)

    yield begin
    output, context = contexts
    context.__exit__(None, None, None)
    output.close()
    assert list(here.iterdir()) == []  # nothing is written where the user happens to be


def said(folder):
    return "\n".join(
        path.read_text(errors="replace") for path in [folder / "output.txt", *sorted((folder / "logs").iterdir())]
    )


@pytest.mark.parametrize(
    "command_of, victim",
    [(msrun_command, 1), pytest.param(msrun_command, 0, marks=SLOW), pytest.param(launch_command, 1, marks=SLOW)],
)
def test_a_worker_that_is_killed_ends_the_job(command_of, victim, running, tmp_path):
    job, pids = running(command_of)
    killed = time.monotonic()
    os.kill(pids[victim], signal.SIGKILL)
    code = job.process.wait(GONE_S)
    assert job.left_behind(GONE_S - (time.monotonic() - killed)) == []
    assert code not in (0, None), said(tmp_path)
    assert f"rank {victim} (process {pids[victim]} on " in said(tmp_path) and "has died" in said(tmp_path)


@pytest.mark.parametrize("command_of", [launch_command, pytest.param(msrun_command, marks=SLOW)])
def test_ctrl_c_ends_the_job(command_of, running, tmp_path):
    """A terminal sends SIGINT to all processes of the foreground group, which is the session here."""
    job, _ = running(command_of)
    told = time.monotonic()
    os.killpg(job.process.pid, signal.SIGINT)
    code = job.process.wait(GONE_S)
    assert job.left_behind(GONE_S - (time.monotonic() - told)) == []
    if command_of is launch_command:  # msrun itself leaves with 0, see ms_omni/parallel/launch.py
        assert code == 128 + signal.SIGINT, said(tmp_path)


def role_of(job, role):
    """The number of the job's process that has this role, which is no supervisor."""
    found = [
        process.pid
        for process in map(psutil.Process, job.processes())
        if process.environ().get("MS_ROLE") == role and "supervisor" not in " ".join(process.cmdline())
    ]
    return found[0]


def supervisor_of(pid):
    (found,) = (child.pid for child in psutil.Process(pid).children() if "supervisor" in " ".join(child.cmdline()))
    return found


VICTIMS = {
    "launcher": lambda job, pids: job.process.pid,
    "scheduler": lambda job, pids: role_of(job, "MS_SCHED"),
    "rank 0": lambda job, pids: pids[0],
    "a supervisor": lambda job, pids: supervisor_of(pids[1]),
    "the scheduler's supervisor": lambda job, pids: supervisor_of(role_of(job, "MS_SCHED")),
}
QUICK = [(msrun_command, "launcher", signal.SIGKILL), (launch_command, "launcher", signal.SIGKILL)]


@pytest.mark.parametrize(
    "command_of, victim, number",
    [
        pytest.param(*case, marks=() if case in QUICK else SLOW, id=f"{case[0].__name__}-{case[1]}-{case[2].name}")
        for case in [
            *((command_of, victim, signal.SIGKILL) for victim in VICTIMS for command_of in (msrun_command, launch_command)),
            *((command_of, "launcher", signal.SIGTERM) for command_of in (msrun_command, launch_command)),
            *((command_of, "rank 0", signal.SIGSTOP) for command_of in (msrun_command, launch_command)),
            (launch_command, "launcher", signal.SIGHUP),
        ]
    ],
)
def test_nothing_is_left_whoever_is_killed(command_of, victim, number, running, tmp_path):
    job, pids = running(command_of)
    killed = time.monotonic()
    os.kill(VICTIMS[victim](job, pids), number)
    code = job.process.wait(GONE_S)
    assert job.left_behind(GONE_S - (time.monotonic() - killed)) == [], said(tmp_path)
    assert code != 0, said(tmp_path)
    if number == signal.SIGSTOP:
        assert f"rank 0 (process {pids[0]} on " in said(tmp_path) and "has been stopped" in said(tmp_path)
