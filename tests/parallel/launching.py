"""Real jobs of several processes: a free port, folders of their own, a time limit, nothing left running."""

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ms_omni.parallel.watch import watch_port

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 420
STRATEGIES = ["ep"] + ["zero3"] * (importlib.util.find_spec("mindone") is not None)
MARK = "MS_OMNI_TEST_JOB"


@dataclass
class Job:
    """What a finished job left: exit code, output of msrun, log text of each rank."""

    code: int
    output: str
    logs: list

    def explain(self):
        """The ends of all logs, for a failed assertion."""
        return "\n".join([self.output[-2000:], *(f"-- rank {rank} --\n{log[-4000:]}" for rank, log in enumerate(self.logs))])


def free_port():
    """A TCP port that nobody listens on, nor on the one of the job's watch that goes with it; not one of those that the system
    hands out to whoever connects somewhere."""
    while True:
        port = random.SystemRandom().randrange(12_000, 30_000)
        with socket.socket() as probe, socket.socket() as watch, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            watch.bind(("127.0.0.1", watch_port(port)))
            return port


def msrun_command(workers, logs, *command):
    """msrun for `python COMMAND` in `workers` processes."""
    beside = Path(sys.executable).parent / "msrun"
    program = str(beside) if beside.exists() else shutil.which("msrun")
    return [
        program,
        f"--worker_num={workers}",
        f"--local_worker_num={workers}",
        f"--master_port={free_port()}",
        f"--log_dir={logs}",
        "--join=True",
        "--bind_core=False",
        *map(str, command),
    ]


def launch_command(workers, logs, *command):
    """`ms-omni launch` for the same."""
    return [
        sys.executable,
        "-m",
        "ms_omni.cli",
        "launch",
        "--cards",
        str(workers),
        "--log-dir",
        str(logs),
        *map(str, command),
    ]


class Started:
    """A job that runs; mark: what tells its processes from all others, wherever they went."""

    def __init__(self, process, mark):
        self.process, self.mark = process, mark

    def processes(self):
        """Numbers of all processes of the job that are alive."""
        needle, found = f"{MARK}={self.mark}".encode(), []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdecimal() and needle in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def left_behind(self, seconds):
        """Those that are still there `seconds` later; fewer when all go sooner."""
        deadline = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found


@contextmanager
def started(program, folder, output, environment=None):
    """A job in a session of its own, with `folder` as its working directory; in the end nothing of it is left."""
    mark = uuid.uuid4().hex
    beside = Path(sys.executable).parent
    variables = {
        **os.environ,
        "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        MARK: mark,
        "PYTHONPATH": str(ROOT),
        "PYTHONFAULTHANDLER": "1",
        "GLOG_v": "3",
        **(environment or {}),
    }
    process = subprocess.Popen(
        program,
        cwd=folder,
        env=variables,
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGHUP, signal.SIG_DFL
        ),  # which nohup around the tests would have handed down
    )
    job = Started(process, mark)
    try:
        yield job
    finally:
        for pid in job.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def msrun(workers, folder, *command, limit_s=LIMIT_S, environment=None):
    """Runs `python COMMAND` in `workers` processes; `folder` (made) is the working directory and takes the logs."""
    return _run(msrun_command, "worker_{}.log", workers, folder, command, limit_s, environment)


def launch(workers, folder, *command, limit_s=LIMIT_S, environment=None):
    """The same with `ms-omni launch`."""
    return _run(launch_command, "rank_{}.log", workers, folder, command, limit_s, environment)


def _run(command_of, log, workers, folder, command, limit_s, environment):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "output.txt", "w+", encoding="utf-8") as output:
        with started(command_of(workers, folder / "logs", *command), folder, output, environment) as job:
            try:
                code = job.process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = -1
        output.seek(0)
        logs = [folder / "logs" / log.format(rank) for rank in range(workers)]
        return Job(code, output.read(), [log.read_text(errors="replace") if log.exists() else "" for log in logs])
