"""Where the supervisors of a job meet: the monitor gets reports of all of them and answers each with what is to be done.

Each connection begins with the challenge of `multiprocessing.connection` in both directions, over a secret of the job; what
cannot answer it is closed and costs nothing more. After that a supervisor says hello and reports once a second, as JSON, and
each time the monitor answers.
"""

import contextlib
import itertools
import json
import os
import secrets
import select
import socket
import tempfile
import threading
import time
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path

import psutil

from .members import FOLLOW_S, Member, Members
from .watch import FAILED

TICK_S = 0.25
SCAN_S = 2.0
HANDSHAKE_S = 5.0
HANDSHAKES = 64  # under way at once; each may be a stranger's that says nothing
LONGEST_BYTES = 1 << 20
REFUSING_S = 20.0  # how long those who come later are told why the job is over
LAST_ANSWERS_S = 3.0
GRACE_S = 2.0  # between SIGTERM and SIGKILL
SCHEDULER = "MS_SCHED"


class Process(psutil.Process):
    """`ended` is true from the moment at which it ends, whoever collects it and whatever becomes of its number."""

    def __init__(self, pid: int):
        self.descriptor = os.pidfd_open(pid)
        super().__init__(pid)

    def ended(self, seconds: float = 0) -> bool:
        """Whether it has ended, waiting up to `seconds` for it."""
        return bool(select.select([self.descriptor], [], [], seconds)[0])

    def end(self) -> None:
        """SIGTERM, and SIGKILL when it is still there after `GRACE_S`."""
        with contextlib.suppress(psutil.Error):
            self.terminate()
            if not self.ended(GRACE_S):
                self.kill()


def find(pid: int) -> Process | None:
    """The process with a number, or None for one that has gone."""
    with contextlib.suppress(OSError, psutil.Error):
        return Process(pid)
    return None


def msrun_of(process: Process) -> Process | None:
    """The msrun that has started a process and stays with it (--join=True)."""
    with contextlib.suppress(psutil.Error):
        words = psutil.Process(process.ppid()).cmdline()
        if any(Path(word).name == "msrun" or "mindspore.parallel.cluster" in word for word in words[:4]):
            options = {*words, *map("=".join, itertools.pairwise(words))}
            stays = "--join=True" in options and "--local_worker_num=0" not in options
            return find(process.ppid()) if stays else None
    return None


def job_here(host: str, port: int, role: str | None = None) -> list[psutil.Process]:
    """Processes on this host, newest first, that were started for the job whose scheduler is at (host, port); told by their
    environment, so whoever has started them. Supervisors are not among them.
    """
    network, found = os.stat("/proc/self/ns/net").st_ino, []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.uids().real != os.getuid() or os.stat(f"/proc/{process.pid}/ns/net").st_ino != network:
                continue
            variables = process.environ()
            ours = variables.get("MS_SCHED_PORT") == str(port) and variables.get("MS_SCHED_HOST", "127.0.0.1") == host
            ours = ours and variables.get("MS_ROLE") in ([role] if role else ["MS_SCHED", "MS_WORKER"])
            if ours and not any("ms_omni.parallel.supervisor" in word for word in process.cmdline()[:3]):
                found.append(process)
    return sorted(found, key=psutil.Process.create_time, reverse=True)


class NoSecret(Exception):
    """There is no secret yet, or no folder for one."""


def job_secret(host: str, port: int, create: bool = False) -> bytes:
    """MS_OMNI_SECRET, else what a file says that only this user can read; hosts that share the home folder share it.

    create: write a new one. Raises `NoSecret`.
    """
    given = os.environ.get("MS_OMNI_SECRET")
    if given:
        return given.encode()
    path = _secret_file(host, port)
    if create:
        handle, name = tempfile.mkstemp(dir=path.parent)  # for this user alone
        with open(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex())
        os.replace(name, path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise NoSecret(f"{path}: {error.strerror}") from None


def forget(host: str, port: int) -> None:
    """Removes the file that `job_secret` has written, if it has."""
    with contextlib.suppress(OSError, NoSecret):
        _secret_file(host, port).unlink()


def _secret_file(host: str, port: int) -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for folder in (Path(caches, "ms_omni", "jobs"), Path(tempfile.gettempdir(), f"ms_omni-jobs-{os.getuid()}")):
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = os.lstat(folder)
            if status.st_uid == os.getuid() and not status.st_mode & 0o077 and os.access(folder, os.W_OK):
                return folder / f"{host}-{port}".replace(os.sep, "_")
    raise NoSecret("there is no folder for it that belongs to this user alone")


def handshake(peer: socket.socket, secret: bytes, serving: bool) -> Connection:
    """A connection whose other end knows the secret and has seen that this one does; within HANDSHAKE_S.

    Raises whatever a stranger's bytes lead to.
    """
    peer.settimeout(None)
    connection = Connection(os.dup(peer.fileno()))
    limit = threading.Timer(HANDSHAKE_S, _hang_up, [peer])
    limit.daemon = True
    limit.start()
    try:
        for step in (deliver_challenge, answer_challenge) if serving else (answer_challenge, deliver_challenge):
            step(connection, secret)
        return connection
    except BaseException:
        connection.close()
        raise
    finally:
        limit.cancel()
        peer.close()


def _hang_up(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has been closed meanwhile
        peer.shutdown(socket.SHUT_RDWR)


def send(connection: Connection, message: dict) -> None:
    """One JSON object; see `receive`."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> dict:
    """Raises `OSError` or `EOFError` when the other end has gone."""
    return json.loads(connection.recv_bytes(LONGEST_BYTES))


class Monitor(threading.Thread):
    """A thread of one of the supervisors on the scheduler's host, the first that gets the port. settings: `watch.start`'s.

    Raises `OSError` when the port is taken or this is another host, and `NoSecret`.
    """

    def __init__(self, settings: dict) -> None:
        super().__init__(daemon=True)
        self.job, self.address = (settings["host"], settings["scheduler_port"]), (settings["host"], settings["port"])
        self.timeout_s = settings["timeout_s"]
        self.listener = socket.create_server(self.address, backlog=HANDSHAKES)
        self.secret = job_secret(*self.address, create=True)
        self.members = Members(settings["size"], settings["hang_s"])
        self.lock = threading.Lock()
        self.handshakes = threading.BoundedSemaphore(HANDSHAKES)
        self.connected, self.deserted = 0, False  # connections; whether the scheduler's supervisor has gone
        self.scheduler: Process | None = None
        self.ended: str | None = None  # why
        self.stuck = False
        self.started = self.served = self.scan = time.monotonic()
        threading.Thread(target=self._accept, daemon=True).start()
        self.start()

    def run(self) -> None:
        """Decides until the job is over and everybody has been told."""
        while not self.ended and not self._all_left():
            time.sleep(TICK_S)
            with self.lock:
                try:
                    self._decide(time.monotonic())
                except Exception as error:  # nobody would be told anything any more
                    self._end(f"its supervision failed: {type(error).__name__}: {error}")
        over = time.monotonic()
        while time.monotonic() - over < (LAST_ANSWERS_S if self.members.complete else REFUSING_S):
            time.sleep(TICK_S)
            if not self.connected and (self.members.complete or not job_here(*self.job)):
                break
        forget(*self.address)

    def _decide(self, now: float) -> None:
        if self.scheduler is None and now >= self.scan:
            self.scan = now + SCAN_S
            self.scheduler = next(map(find, (process.pid for process in job_here(*self.job, SCHEDULER))), None)
        gone = self.scheduler is not None and self.scheduler.ended()
        if not gone and not self.deserted:
            self.served = now
        if self.members.present and now - self.served > FOLLOW_S:
            self._end(f"the scheduler's {'process' if gone else 'supervisor'} has gone")
        elif not self.members.complete and now - self.started > self.timeout_s:
            self._end(f"{self.members.missing()} did not come within {self.timeout_s:.0f} s")
        elif reason := self.members.verdict(now):
            self._end(reason if self.members.complete else f"{reason}, before the job had started")

    def _end(self, reason: str | None) -> None:
        if reason and not self.ended:
            self.ended = reason
            self.stuck = not any(member.failed or member.gone is not None for member in self.members.members)

    def _all_left(self) -> bool:
        return self.members.complete and not self.members.present

    def _accept(self) -> None:
        while True:
            try:
                peer = self.listener.accept()[0]
            except OSError:  # too many files are open, by strangers perhaps
                time.sleep(TICK_S)
                continue
            if self.handshakes.acquire(blocking=False):
                threading.Thread(target=self._serve, args=[peer], daemon=True).start()
            else:
                peer.close()

    def _serve(self, peer: socket.socket) -> None:
        try:
            connection = handshake(peer, self.secret, serving=True)
        except Exception:  # whatever a stranger sends ends its own connection and nothing else
            return
        finally:
            self.handshakes.release()
        member, hello = None, {}
        with self.lock:
            self.connected += 1
        try:
            hello = receive(connection)
            with self.lock:
                member = self._welcome(hello)
            while True:
                with self.lock:
                    orders = self._orders()
                send(connection, orders)
                report = receive(connection)
                with self.lock:
                    self._take(member, report)
        except ValueError as refusal:
            with contextlib.suppress(OSError):
                send(connection, {"end": str(refusal)})
        except (OSError, EOFError):  # has gone
            pass
        finally:
            connection.close()
            with self.lock:
                self.connected -= 1
                self.deserted |= hello.get("role") == SCHEDULER
                if member is not None:
                    member.leave(time.monotonic(), gone=time.time())

    def _welcome(self, hello: dict) -> Member | None:
        """The `Member` that has come, None for the scheduler's supervisor. Raises ValueError for one that is none of ours."""
        if hello["scheduler_port"] != self.job[1]:
            raise ValueError("another job uses this port already")
        if hello["role"] == SCHEDULER:
            self._end(hello["refusal"])
            return None
        member = self.members.join(time.monotonic(), hello["host"], hello["process"], hello["rank"], hello["facts"])
        differs = self.members.complete and self.members.disagreement()
        if differs:
            self._end(f"the processes of this job are not alike: {differs}")
        return member

    def _orders(self) -> dict:
        """end, stuck: why the job ends, and whether threads are worth a look; waiting: for whom; over: all have left."""
        return {
            "end": self.ended,
            "stuck": self.stuck,
            "waiting": None if self.members.complete else self.members.missing(),
            "over": self._all_left(),
        }

    def _take(self, member: Member | None, report: dict) -> None:
        now = time.monotonic()
        self._end(report.get("end"))
        if member is not None:
            member.update(now, report)
            if report.get("left"):
                member.leave(now, failed=report["left"] == FAILED)
            elif report.get("gone"):
                member.leave(now, gone=report["gone"])
