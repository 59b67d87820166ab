"""Starts the processes of a job on this machine and stays with them: `ms-omni launch`.

The processes are those that msrun starts (a scheduler on the first machine and one worker per card, told by the same
environment variables who they are), so everything works under plain msrun too. What msrun 2.7.1 lacks: it waits in a busy
loop that costs a processor, writes its logs into the working directory, leaves with exit code 0 on ctrl-C, without --join
leaves at once, and prints a traceback for every failure.
"""

import contextlib
import ctypes
import fcntl
import ipaddress
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .watch import PORTS, problem_of, watch_port

LOCAL = "127.0.0.1"
OWN_PORTS = range(12_000, 30_000)
SCHEDULER = "from ms_omni.parallel import start; start()"
GATHER_S = 300  # for all processes of all machines to come
FOLLOW_S = 8.0  # for the others to end once one has failed; the watch ends them sooner
FINISH_S = 5.0  # for the scheduler to end after its workers; it waits for those that never joined
INTERRUPT_S = 10.0  # for rank 0 to close its files after ctrl-C
TICK_S = 0.1
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Job:
    """What to start here. command: after `python`; cards: on this machine; machines, machine: how many, and which one.

    address, port: of the scheduler, which runs on machine 0. Raises `InputError` for what cannot be.
    """

    command: tuple[str, ...]
    cards: int
    machines: int = 1
    machine: int = 0
    address: str = LOCAL
    port: int | None = None
    log_dir: Path | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("cards", self.cards, 1), ("machines", self.machines, 1), ("machine", self.machine, 0)):
            if value < least:
                raise InputError(f"the number of {name} is {value}, expected at least {least}")
        if self.machine >= self.machines:
            raise InputError(f"--node-rank is {self.machine}, but there are {self.machines} machines: they count from 0")
        if self.port is None and self.machines > 1:
            raise InputError("several machines need --master-port: the same free port on all of them")
        if self.port is not None and self.port not in PORTS:
            raise InputError(f"--master-port is {self.port}, expected {PORTS.start} to {PORTS.stop - 1}")
        if self.machines > 1 and _ip(self.address).is_loopback:
            raise InputError(
                f"--master-addr is {self.address}, which other machines cannot reach; give an address of "
                "machine 0 in their network"
            )

    @property
    def size(self) -> int:
        """Processes on all machines, without the scheduler."""
        return self.cards * self.machines


def run(job: Job) -> int:
    """Starts the job's processes here and returns the exit code when all have ended.

    0 when all have succeeded; else that of the first one that failed (128 + number for a signal); 130 after ctrl-C.
    """
    address, port = str(_ip(job.address)), job.port or _free_port()
    if job.machine == 0:
        _check_ports(address, port)
    folder = Path(job.log_dir or tempfile.mkdtemp(prefix="ms-omni-logs-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{job.size} processes, logs in {folder}", file=sys.stderr, flush=True)
    with Processes(folder) as processes:
        variables = _variables(job, address, port)
        if job.machine == 0:
            processes.start(
                "scheduler", [sys.executable, "-c", SCHEDULER], variables | {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
            )
        for card in range(job.cards):
            rank = job.machine * job.cards + card
            processes.start(
                rank,
                [sys.executable, *job.command],
                variables | {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank), "RANK_ID": str(rank), "DEVICE_ID": str(card)},
            )
        processes.listen()
        return processes.attend()


class Processes:
    """The processes that were started, by rank or "scheduler"; leaving the context ends all that are left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[int, subprocess.Popen] = {}
        self.scheduler: subprocess.Popen | None = None
        self.output: RankOutput | None = None  # rank 0's
        self.interrupted: int | None = None  # the number of the signal

    def start(self, name: int | str, command: list[str], variables: dict[str, str]) -> None:
        """One process with a session of its own, which ctrl-C in a terminal does not reach; it dies with this one."""
        log = self.folder / (f"rank_{name}.log" if isinstance(name, int) else f"{name}.log")
        options: dict[str, Any] = {
            "env": variables,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
            "preexec_fn": lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        }
        if isinstance(name, int) and name == 0:
            self.output = RankOutput(log)
            self.running[name] = subprocess.Popen(command, stderr=self.output.target, **options)
            return
        with open(log, "wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, **options)
        if isinstance(name, int):
            self.running[name] = process
        else:
            self.scheduler = process

    def listen(self) -> None:
        """Once all have been started, as a process with threads should start no others this way."""
        if self.output is not None:
            self.output.begin()

    def __enter__(self) -> "Processes":
        self._before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.running.values(), self.scheduler):
            if process is not None:
                _kill(process, signal.SIGKILL)
                process.wait()
        if self.output is not None:
            self.output.end()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, _: Any) -> None:
        if self.interrupted is not None:  # the second time
            for process in self.running.values():
                _kill(process, signal.SIGKILL)
        self.interrupted = self.interrupted or number

    def attend(self) -> int:
        """Waits for the end; returns the exit code."""
        failed: list[int] = []
        deadline = None
        while True:
            alive = [rank for rank, process in self.running.items() if process.poll() is None]
            failed += [rank for rank, process in self.running.items() if process.returncode and rank not in failed]
            if not alive:
                break
            if self.interrupted is not None:
                return self._pass_on(self.interrupted)
            if failed and deadline is None:
                deadline = time.monotonic() + FOLLOW_S
            if deadline is not None and time.monotonic() > deadline:
                self._end()
            time.sleep(TICK_S)
        if failed:  # one that the watch has ended (SIGTERM) did not fail first, even if it was the first to go
            return self._failed(min(failed, key=lambda rank: self.running[rank].returncode == -signal.SIGTERM))
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.scheduler is not None:
                self.scheduler.wait(FINISH_S)
        return 0

    def _pass_on(self, signal_number: int) -> int:
        """Rank 0 has files to close and tells the others, so it is told first."""
        told = [self.running[0]] if 0 in self.running else list(self.running.values())
        for process in told:
            _kill(process, signal.SIGINT)
        deadline = time.monotonic() + INTERRUPT_S
        while any(process.poll() is None for process in told) and time.monotonic() < deadline:
            time.sleep(TICK_S)
        self._end()
        return 128 + signal_number

    def _end(self) -> None:
        for process in self.running.values():
            _kill(process, signal.SIGTERM)
        deadline = time.monotonic() + 2
        while any(process.poll() is None for process in self.running.values()) and time.monotonic() < deadline:
            time.sleep(TICK_S)
        for process in self.running.values():
            _kill(process, signal.SIGKILL)

    def _failed(self, rank: int) -> int:
        code = self.running[rank].returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if self.output is not None:
            self.output.end()
        if rank:
            log = self.folder / f"rank_{rank}.log"
            print(f"the end of {log}:\n{last_lines(log)}", file=sys.stderr)
        print(f"ms-omni launch: rank {rank} {how}", file=sys.stderr, flush=True)
        return 128 - code if code < 0 else code


def _variables(job: Job, address: str, port: int) -> dict[str, str]:
    """What all processes of the job here have in their environment."""
    root = str(Path(__file__).resolve().parents[2])
    cores = max((os.cpu_count() or 1) // job.cards, 1)
    return {
        "OMP_NUM_THREADS": str(cores),
        "GLOG_v": "4",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "MS_WORKER_NUM": str(job.size),
        "RANK_SIZE": str(job.size),
        "MS_SCHED_HOST": address,
        "MS_SCHED_PORT": str(port),
        "MS_TOPO_TIMEOUT": os.environ.get("MS_TOPO_TIMEOUT", str(GATHER_S)),
        "MS_NODE_RANK": str(job.machine),
        "MS_OMNI_LAUNCHER": str(os.getpid()),
        **({} if job.machines > 1 else {"MS_OMNI_SECRET": secrets.token_hex()}),
    }


def _check_ports(address: str, port: int) -> None:
    for number in (port, watch_port(port)):
        problem = problem_of((address, number))
        if problem:
            raise InputError(
                f"port {number} of {address} cannot be used: {problem}. Give another --master-port, or on machine 0 "
                "an address of this machine as --master-addr"
            )


def _free_port() -> int:
    """A port that is free now and whose watch port is, too; none that the system hands out to whoever connects somewhere."""
    for _ in range(100):
        port = random.SystemRandom().choice(OWN_PORTS)
        if problem_of((LOCAL, port)) is None and problem_of((LOCAL, watch_port(port))) is None:
            return port
    raise InputError("there is no free port; give one as --master-port")


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(socket.gethostbyname(address))
    except OSError as error:
        raise InputError(
            f"--master-addr is {address!r}, which is no address that this machine knows ({error.strerror})"
        ) from None


def _kill(process: subprocess.Popen, number: int) -> None:
    """Sends a signal to a process that runs, and with SIGKILL to what it has started in its session."""
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.send_signal(number)


SHOWN_LINES = 12
CHATTER = re.compile(rb"\[INFO\] DISTRIBUTED\([^\n]*\n")  # MindSpore says so at its end, whatever its log level


class RankOutput:
    """Rank 0's standard error: on the launcher's own, as it comes, and in a log file. `target` is the descriptor to give to the process; on a terminal it is one, so that progress can be shown."""

    def __init__(self, log: Path) -> None:
        self.file = open(log, "wb")
        if sys.stderr.isatty():
            self.source, self.target = os.openpty()
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(sys.stderr, termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(self.target, termios.TIOCSWINSZ, size)
        else:
            self.source, self.target = os.pipe()
        self.thread = threading.Thread(target=self._copy, daemon=True)

    def begin(self) -> None:
        """Once the process has its copy of `target`."""
        os.close(self.target)
        self.thread.start()

    def end(self) -> None:
        """Waits for the last output; a process that lives on somewhere is not waited for."""
        self.thread.join(2)

    def _copy(self) -> None:
        with contextlib.suppress(OSError):  # how a terminal says that its other side is closed
            while data := os.read(self.source, 1 << 16):
                self.file.write(data)
                with contextlib.suppress(BrokenPipeError):
                    sys.stderr.buffer.write(CHATTER.sub(b"", data))
                    sys.stderr.buffer.flush()
        os.close(self.source)
        self.file.close()


def last_lines(log: Path) -> str:
    """The last lines of a log, where the reason of a failure is."""
    return "\n".join(Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LINES:])
