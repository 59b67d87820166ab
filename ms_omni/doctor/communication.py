"""Can processes on this machine talk to each other, do they sum with MindSpore's collectives, and how fast are the links?"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from . import ascend, speed
from .finding import error, note, ok, one_line, warning

LOCAL = "127.0.0.1"
SOCKET_LIMIT_S = 5
MSRUN_PORT = 8118
JOB_LIMIT_S = 150
TASK = Path(__file__).with_name("link_task.py")


def level():
    """Several processes are needed on several NPUs; elsewhere the model runs without them."""
    return error if len(ascend.device_files()) > 1 else warning


def loopback(_):
    """Findings on a connection of this process with itself, and on msrun's usual port."""
    try:
        echo()
    except OSError as reason:
        yield level()(
            f"processes cannot connect over {LOCAL}: {one_line(reason)}",
            "bring the loopback interface up ('ip link set lo up') and let the firewall pass it",
        )
        return
    yield ok(f"connections over {LOCAL} work")
    with socket.socket() as probe:
        try:
            probe.bind((LOCAL, MSRUN_PORT))
        except OSError as reason:
            yield warning(
                f"port {MSRUN_PORT}, which msrun takes by default, is not free: {reason.strerror or reason}",
                "give msrun another one with --master_port",
            )


def echo():
    """One byte from a socket of this process to another one. Raises OSError."""
    with socket.socket() as server, socket.socket() as client:
        for end in (server, client):
            end.settimeout(SOCKET_LIMIT_S)
        server.bind((LOCAL, 0))
        server.listen(1)
        client.connect(server.getsockname())
        with server.accept()[0] as accepted:
            accepted.settimeout(SOCKET_LIMIT_S)
            client.sendall(b"x")
            if accepted.recv(1) != b"x":
                raise OSError("what arrived is not what was sent")


def launcher():
    """Path of msrun, or None."""
    beside = Path(sys.executable).with_name("msrun")
    return str(beside) if beside.exists() else shutil.which("msrun")


def msrun(_):
    """Findings on processes that msrun starts, two and as many as there are NPUs: they sum over HCCL or MindSpore's CPU
    collectives, and what the links between them give stands beside what `ms-omni plan` reckons with.
    """
    try:
        echo()
    except OSError:
        yield note("not tried, because of what is said under ports and loopback")
        return
    program = launcher()
    if program is None:
        yield level()(
            "msrun is not found, so the model runs in one process only",
            "pip install --force-reinstall mindspore, and put its bin folder on PATH",
        )
        return
    backend = "HCCL" if len(ascend.device_files()) > 1 else "MindSpore's CPU collectives"
    for workers in sorted({2, max(2, len(ascend.device_files()))}):
        with tempfile.TemporaryDirectory(prefix="ms_omni-msrun-") as folder:
            code, log = run_job(program, Path(folder), workers)
        if code is None:
            yield level()(f"{workers} processes under msrun did not finish in {JOB_LIMIT_S} s", _advice())
        elif code or log.count("sum is right") < workers:
            yield level()(f"{workers} processes under msrun failed: {_reason(log)}", _advice())
        else:
            yield ok(f"{workers} processes under msrun sum over {backend}")
            yield from _links(log, workers)


def _links(log, workers):
    line = next((line for line in log.splitlines() if "measured {" in line), None)
    if line is not None:
        measured = json.loads(line.partition("measured ")[2])
        if workers == 2:  # which is tried on every machine, and all are set alike
            yield from settings(measured)
        yield from speed.beside(measured["found"], measured["card"], f"between {workers} processes", workers)


def settings(measured):
    """Notes on what HCCL was told, and who told it; on CPU there is none."""
    if measured["card"] is None and measured["name"] != "CPU":
        yield note(f"HCCL is left as it is: for {measured['name']} no settings are known")
    yield from map(note, measured["hccl"])


def run_job(program, folder, workers):
    """(exit code or None when it was stopped, text of all logs) of the sum in so many processes."""
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        port = probe.getsockname()[1]
    options = [
        f"--worker_num={workers}",
        f"--local_worker_num={workers}",
        f"--master_addr={LOCAL}",
        f"--master_port={port}",
        f"--log_dir={folder / 'logs'}",
        "--join=True",
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # msrun starts `python`
    with open(folder / "msrun.txt", "wb") as output:
        process = subprocess.Popen(
            [program, *options, str(TASK)],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(JOB_LIMIT_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    files = [folder / "msrun.txt", *sorted(folder.glob("logs/worker_*.log"))]
    return code, "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files if file.exists())


def _reason(log):
    lines = [line for line in log.splitlines() if "Error" in line or "ERROR" in line or "error" in line]
    return one_line((lines or log.splitlines() or ["it said nothing"])[-1], 200)


def _advice():
    if len(ascend.device_files()) > 1:
        return (
            "check 'hccn_tool -i 0 -net_health -g' and the links of the NPUs; see the plog files in ~/ascend/log; "
            "HCCL_OP_EXPANSION_MODE=HOST (Atlas A3: AI_CPU) takes CANN's own way instead of ours"
        )
    return "unset http_proxy and MS_* variables of an earlier job, and look at the worker logs of a job of yours"
