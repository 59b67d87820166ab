"""Real msrun jobs: a free port, folders of their own, a time limit, nothing left running."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ms_omni.parallel.watch import watch_port

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 420
STRATEGIES = ["ep"] + ["zero3"] * (importlib.util.find_spec("mindone") is not None)


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
    """A TCP port that nobody listens on, nor on the one of the job's watch that goes with it."""
    while True:
        with socket.socket() as probe, socket.socket() as watch:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            try:
                watch.bind(("127.0.0.1", watch_port(port)))
                return port
            except OSError:
                continue


def msrun(workers, folder, *command, limit_s=LIMIT_S, environment=None):
    """Runs `python COMMAND` in `workers` processes; `folder` (made) is the working directory and takes the logs."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    launcher = Path(sys.executable).parent / "msrun"
    options = [f"--worker_num={workers}", f"--local_worker_num={workers}", f"--master_port={free_port()}",
               f"--log_dir={folder / 'logs'}", "--join=True", "--bind_core=False"]  # fmt: skip
    variables = {**os.environ, "PATH": f"{launcher.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                 "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1", "GLOG_v": "3", **(environment or {})}  # fmt: skip
    program = str(launcher) if launcher.exists() else shutil.which("msrun")
    with open(folder / "msrun.txt", "w+", encoding="utf-8") as output:
        process = subprocess.Popen([program, *options, *map(str, command)], cwd=folder, env=variables, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            stop(process)
        output.seek(0)
        logs = [(folder / "logs" / f"worker_{rank}.log") for rank in range(workers)]
        return Job(code, output.read(), [log.read_text(errors="replace") if log.exists() else "" for log in logs])


def stop(process):
    """Ends what is left of the job's session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
