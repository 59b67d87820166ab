"""A whole benchmark: weights, inputs, the sides, which of them runs when, and what was measured where.

Both sides stay alive and take turns, so that the machine's drift hits both:

load, in fresh processes:     A B A B ...
then for each scenario:       warm-up of A, warm-up of B, then A B A B ...
"""

import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import psutil

from ..checkpoint import inspect_checkpoint
from ..config import Qwen3OmniMoeConfig, named_configurations
from ..errors import InputError, OmniError
from .report import OURS, Outcome, combine, publish
from .scenarios import SMALL, WARM_UPS, Scenario, chosen, scenarios, serving, sizes_of, write_inputs

ROOT = Path(__file__).resolve().parents[2]
REFERENCE_SCRIPT = ROOT / "tests" / "reference" / "benchmark.py"
WORKER = [sys.executable, "-m", "ms_omni.bench.worker"]
REQUEST_LIMIT_S, IMPORT_LIMIT_S = 1800, 120
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def show_progress(text: str) -> None:
    """A line on standard error: rewritten on a terminal, plain elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


class SideError(OmniError):
    """A side could not do what it should; the message says which, what, and where its log is."""


@dataclass
class LocalSide:
    """This process as a side; needed where other processes take part in every step (msrun). The model stays loaded."""

    load: Callable[..., dict[str, Any]]
    run: Callable[[str, dict[str, Any]], dict[str, Any]]
    name: str = OURS

    def close(self) -> None:
        """Nothing to end."""


@dataclass
class ChildSide:
    """A process that answers as `worker.serve` does; its standard error goes to the file `log`.

    threads: number of processors that it may use, None for all; root: the checkout whose ms_omni it imports, else this one.
    """

    name: str
    command: Sequence[str]
    log: Path
    threads: int | None = None
    limit_s: float = REQUEST_LIMIT_S
    root: Path | None = None

    def __post_init__(self) -> None:
        paths = [str(self.root or ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        cores = sorted(os.sched_getaffinity(0))[: self.threads]
        if self.threads is not None:
            variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        with open(self.log, "ab") as errors:
            try:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=variables,
                    cwd=self.root,  # where `python -m` looks first
                    preexec_fn=None if self.threads is None else lambda: os.sched_setaffinity(0, cores),
                )
            except OSError as error:
                raise SideError(f"{self.name}: cannot start {self.command[0]}: {error.strerror or error}") from None

    def load(self, **settings: Any) -> dict[str, Any]:
        """Loads the model; returns numbers, and in words what it runs on. Raises `SideError`."""
        return self._request({"load": settings}, "loading")

    def run(self, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Runs one repetition; returns {metric: number}. Raises `SideError`."""
        return self._request({"run": kind, "settings": settings}, kind)

    def close(self) -> None:
        """Ends the child, by force if it does not go by itself."""
        for stream in (self.process.stdin, self.process.stdout):
            try:
                cast(IO[bytes], stream).close()
            except OSError:  # it has gone already, with a request unread
                pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _request(self, request, what):
        stdin, stdout = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            if not select.select([stdout], [], [], self.limit_s)[0]:
                self.process.kill()
                raise SideError(f"{self.name}: {what} took more than {self.limit_s} s and was stopped (log: {self.log})")
            line = stdout.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            code = self.process.wait()
            why = ", as one that the system stops for want of memory" if code == -9 else ""
            raise SideError(f"{self.name}: the process ended with code {code} while {what}{why} (log: {self.log})")
        answer = json.loads(line)
        if "error" in answer:
            raise SideError(f"{self.name}: {what} failed: {answer['error']} (log: {self.log})")
        return answer["done"]


Side = ChildSide | LocalSide


def check_other(root: Path) -> Path:
    """The folder of a checkout of this project. Raises `InputError` if it is none."""
    root = root.resolve()
    if not (root / "ms_omni" / "bench" / "worker.py").is_file():
        raise InputError(f"--beside {root}: there is no ms_omni/bench/worker.py; name a checkout of another version")
    if root == ROOT:
        raise InputError(f"--beside {root}: that is the version which runs; name a checkout of another one")
    return root


def check_reference(python: Path | None) -> None:
    """Raises `InputError` unless `python` can run the reference."""
    if python is None:
        raise InputError("--reference needs --reference-python PATH, an interpreter with tests/reference/requirements.txt")
    if not REFERENCE_SCRIPT.is_file():
        raise InputError(f"--reference needs {REFERENCE_SCRIPT}, which comes with a checkout of the repository")
    code = "import torch, importlib.metadata as m; print(m.version('transformers'))"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=IMPORT_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"--reference-python {python} cannot be run: {error}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"--reference-python {python} cannot run the reference: {reason}; install tests/reference/requirements.txt there"
        )


@dataclass
class Session:
    """start: functions that start a side, ours first, then perhaps the reference; settings: of `load`, per side."""

    start: Sequence[Callable[[], Side]]
    settings: Sequence[dict[str, Any]]
    repetitions: int
    show: Callable[[str], object] = show_progress
    outcome: Outcome = field(default_factory=Outcome)

    def run(self, scenarios: Sequence[Scenario], measure_load: bool = True) -> Outcome:
        """Runs everything and returns the `Outcome`. What fails is noted there and the rest goes on."""
        if measure_load:
            self._load_repeatedly()
        sides = [start() for start in self.start]
        try:
            sides = [side for side, settings in zip(sides, self.settings) if self._load(side, settings)]
            if sides and sides[0].name == OURS:
                for scenario in scenarios:
                    self._measure(scenario, sides[:1] if scenario.counted or scenario.alone else sides)
        except KeyboardInterrupt:  # what has been measured is kept
            self.outcome.failures.append("interrupted; what is missing was not measured")
        finally:
            for side in sides:
                side.close()
        return self.outcome

    def _load(self, side, settings):
        self.show(f"{side.name}: loading")
        try:
            done = side.load(**settings)
        except SideError as error:
            self.outcome.failures.append(str(error))
            side.close()
            return False
        if isinstance(side, LocalSide):
            self.outcome.results += combine("load", "load", [done])
        self.outcome.about[side.name] = {key: value for key, value in done.items() if isinstance(value, str)}
        return True

    def _load_repeatedly(self):
        runs = [[] for _ in self.start]
        for turn in range(self.repetitions + 1):  # the first brings the files into the system's cache
            self.show(f"load: {'warm-up' if turn == 0 else f'{turn}/{self.repetitions}'}")
            for start, settings, loads in zip(self.start, self.settings, runs):
                side = start()
                try:
                    done = side.load(**settings)
                    loads += [done] if turn else []
                except SideError as error:
                    self.outcome.failures.append(str(error))
                    return
                finally:
                    side.close()
        self.outcome.results += combine("load", "load", *runs)

    def _measure(self, scenario, sides):
        runs = [[] for _ in sides]
        try:
            for side in sides:
                self.show(f"{scenario.name}: warm-up of {side.name}")
                self._warm_up(side, scenario)
            for turn in range(1 if scenario.counted else self.repetitions):
                self.show(f"{scenario.name}: {turn + 1}/{self.repetitions}")
                for side, numbers in zip(sides, runs):
                    numbers.append(side.run(scenario.kind, scenario.settings))
        except SideError as error:
            self.outcome.failures.append(f"{scenario.name}: {error}")
            return
        if scenario.counted:
            self.outcome.counts[scenario.name] = runs[0][0]
        else:
            self.outcome.recompiled += sum(run.get("compiled", 0) for run in runs[0])
            self.outcome.results += combine(scenario.name, scenario.part, *runs)

    def _warm_up(self, side, scenario):
        """Until nothing is compiled any more, unless a scenario warms itself."""
        for _ in range(0 if scenario.counted or scenario.alone else WARM_UPS):
            if not side.run(scenario.kind, scenario.settings).get("compiled"):
                return


def benchmark(arguments: Any, out: Path, mesh: Any) -> int:
    """Runs the scenarios that are wanted, prints the report and writes it to `out`. Returns the exit code: 1 if any failed.

    arguments: of the command line; mesh: who is who among the processes of msrun; all of them measure, rank 0 reports.
    """
    show, alone = show_progress if mesh.speaks else lambda text: None, mesh.size == 1
    folder, sizes = (
        weights_of(arguments.geometry, out / "weights", arguments.seed, show, alone),
        sizes_of(arguments.geometry),
    )
    speaks = Qwen3OmniMoeConfig.from_pretrained(folder).enable_audio_output
    if arguments.what:
        settings = {name: getattr(arguments, name) for name in ("seed", "speech", "kv_cache_dtype", "rate")}
        settings |= {"count": arguments.callers, "spoken": arguments.spoken if speaks else 0.0}
        listed = serving(sizes, arguments.rows, settings, speaks)
    else:
        listed = scenarios(sizes, speaks)
    listed, measure_load = chosen(listed, arguments.only)
    repetitions = arguments.repetitions or (1 if arguments.what else 3 if sizes is SMALL else 5)
    busy = other_load()
    show("preparing inputs")
    inputs = out / f"inputs{mesh.rank or ''}.npz"
    write_inputs(folder, sizes, arguments.seed, inputs, clip=any(scenario.kind == "again" for scenario in listed))
    sides, loads = _sides(arguments, out, {"model": str(folder.resolve()), "inputs": str(inputs.resolve())}, alone)
    main = threading.current_thread() is threading.main_thread()
    before = (
        signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    )  # what has been measured is reported
    try:
        outcome = Session(sides, loads, repetitions, show).run(listed, measure_load and alone and not arguments.what)
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
    if not mesh.speaks:
        return 1 if outcome.failures else 0
    elements, seeded = inspect_checkpoint(folder).elements, folder.name.endswith(f"-seed{arguments.seed}")
    head = {
        "model": f"{Path(arguments.geometry).name} geometry" if seeded else folder.name,
        "weights": str(folder),
        "parameters": f"{elements / 1e9:.2f} billion" if elements >= 1e8 else f"{elements / 1e6:.1f} million",
        "seed": arguments.seed,
        "asked": _wanted(arguments),
        "repetitions": repetitions,
        "threads": str(arguments.threads or len(os.sched_getaffinity(0))),
        "machine": machine(),
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "cards": mesh.size,
        "busy": busy,
    }
    show("")
    return publish(out, head, outcome, arguments.what or "benchmark")


def _sides(arguments, out, settings, alone):
    """(functions that start the sides, what each loads)."""
    from . import worker

    def child(name, command, root=None):
        return lambda: ChildSide(name, command, out / f"{name}.log", arguments.threads, root=root)

    compiled = {**settings, "compile_steps": not arguments.no_compile}
    quantised = {"quantize": arguments.quantize, "quantize_group": arguments.group} if arguments.quantize else {}
    sides = [child(OURS, WORKER) if alone else lambda: LocalSide(worker.load, worker.run)]
    loads = [{**compiled, **quantised}]
    if arguments.reference or arguments.reference_python:
        sides.append(child("reference", [str(arguments.reference_python), str(REFERENCE_SCRIPT)]))
        loads.append(settings)
    elif arguments.beside:
        sides.append(child(arguments.beside.name, WORKER, arguments.beside))
        loads.append(compiled)
    return sides, loads


def _wanted(arguments):
    """What the callers of `serve` want, in words."""
    when = "all at once" if arguments.rate is None else f"{arguments.rate:g} per second"
    where = " in a process of its own" if arguments.speech else ""
    cache = "" if arguments.kv_cache_dtype == "auto" else f", keys and values in {arguments.kv_cache_dtype}"
    return (
        f"{arguments.callers} callers, {when}, {100 * arguments.spoken:.0f} % of them to be answered in speech{where}{cache}"
    )


def weights_of(
    geometry: str, folder: Path, seed: int, show: Callable[[str], object] = lambda text: None, may_write: bool = True
) -> Path:
    """Folder of the weights of `geometry` (see `--geometry`): a checkpoint that is there, or seeded ones, written below `folder` once.

    Raises `InputError` for a name that is neither a geometry nor a folder, and for weights that are not there when
    `may_write` is False.
    """
    if geometry not in named_configurations():
        path = Path(geometry)
        if not (path / "config.json").is_file():
            raise InputError(
                f"--geometry {geometry}: this is neither a folder with a config.json nor one of "
                f"{', '.join(named_configurations())}"
            )
        if any((path / name).is_file() for name in WEIGHTS):
            return path
    target = folder / f"{Path(geometry).name}-seed{seed}"
    if not (target / "config.json").is_file():
        if not may_write:
            raise InputError(
                f"several processes do not write weights: run 'ms-omni tiny DIR --geometry {geometry}' first and "
                "pass that folder as --geometry DIR"
            )
        from ..tiny import write_tiny_checkpoint

        show(f"writing weights to {target}")
        write_tiny_checkpoint(target, geometry=geometry, seed=seed)
    return target


def machine() -> dict[str, str]:
    """{what: words} of processor, number of cores this process may use, memory and system."""
    file = Path("/proc/cpuinfo")
    known = re.search(r"^model name\s*:\s*(.+)", file.read_text(errors="replace") if file.exists() else "", re.M)
    return {
        "processor": known[1].strip() if known else platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    }


def other_load() -> str | None:
    """A line of warning when other programs want the processors too, else None: timings then say little."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load < max(cores / 2, 1):
        return None
    return f"The machine was busy when this began (load {load:.1f} on {cores} cores): times are longer and scatter."
