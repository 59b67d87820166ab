"""How fast this machine is, beside the constants that `ms-omni plan` reckons with: memory, products, launches, and the links between
processes, which have to find each other first.

A few seconds each; what is measured is what the model will do it with, our own operators. msrun runs this file in each process of a job.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.doctor import ascend
from ms_omni.doctor.runner import Findings, error, note, ok, one_line, run_session, warning
from ms_omni.parallel.hardware import TO_MEASURE, Hardware, load_hardware

LEAST_S = 0.2  # of repetitions
CHAIN = 200  # small kernels, one after another
POOR = 0.7  # of what `plan` reckons with
SIZES = {"CPU": (1 << 22, 512), "Ascend": (1 << 27, 8192)}  # elements that are read and written; rows of a product
NO_PLAN = "'ms-omni plan' has no figures for this device"
LOCAL = "127.0.0.1"
SOCKET_LIMIT_S, JOB_LIMIT_S = 5, 150
MSRUN_PORT = 8118
TOKEN_ELEMENTS = 1024  # of a token's row
LARGE_ELEMENTS = {"CPU": 1 << 20, "Ascend": 1 << 26}
UNITS = {
    "memory_gb_per_s": ("memory", "GB/s"),
    "bf16_tflops": ("matrix product", "TFLOP/s"),
    "eager": ("a launch one by one", "us"),
    "graph": ("a launch in a graph", "us"),
    "all_reduce_gb_per_s": ("large sums", "GB/s"),
    "all_gather_gb_per_s": ("large gathers", "GB/s"),
    "collective_us": ("a small sum", "us"),
}


def rates(_: Any) -> Findings:
    """Findings on memory bandwidth, matrix products and the cost of a launch."""
    from ms_omni.modeling import ops
    from ms_omni.runtime import card, setup

    runtime = setup()
    ops.settle(runtime.dtype)
    yield from compared(measure(ops, runtime), card()[0], str(runtime.dtype).lower())
    if runtime.device == "Ascend":
        yield from to_confirm()


def to_confirm() -> Findings:
    """What a user measures to confirm what `ms-omni plan` computes."""
    yield note(
        "the times of 'ms-omni plan' are computed; to confirm them, run, and put figures into a copy of its --hardware file:"
    )
    yield from (note(f"{command}: {what}") for command, what in TO_MEASURE)


def measure(ops: Any, runtime: Any) -> dict[str, float]:
    """{constant of a hardware file: what was measured}, launch_us as "eager" and "graph"."""
    import mindspore

    def chain(x):
        for _ in range(CHAIN):
            x = ops.silu(x)
        return x

    class Graph(mindspore.nn.Cell):
        @mindspore.jit
        def construct(self, x: Any) -> Any:
            for _ in range(CHAIN):
                x = ops.silu(x)
            return x

    elements, rows = SIZES[runtime.device]
    big, small = (mindspore.Tensor(np.zeros(shape, np.float32)).astype(runtime.dtype) for shape in (elements, (1, 64)))
    square = mindspore.Tensor(np.ones((rows, rows), np.float32)).astype(runtime.dtype)
    graph, wait = Graph(auto_prefix=False), waiter(runtime.device)
    return {
        "memory_gb_per_s": 2 * big.nbytes / seconds(lambda: ops.relu(big), wait) / 1e9,
        "bf16_tflops": 2 * rows**3 / seconds(lambda: ops.linear(square, square), wait) / 1e12,
        "eager": 1e6 / CHAIN * seconds(lambda: chain(small), wait),
        "graph": 1e6 / CHAIN * seconds(lambda: graph(small), wait),
    }


def seconds(run: Callable[[], object], wait: Callable[[], object]) -> float:
    """Seconds of a call of `run`, repeated until it takes long enough. wait: until the device is done."""
    times = 1
    while times * repeated(run, wait, times) < LEAST_S:
        times *= 4
    return repeated(run, wait, times)


def repeated(run: Callable[[], object], wait: Callable[[], object], times: int) -> float:
    """Seconds of a call of `run`, the mean of `times` after one that warms up."""
    run()
    wait()
    started = time.perf_counter()
    for _ in range(times):
        run()
    wait()
    return (time.perf_counter() - started) / times


def waiter(device: str) -> Callable[[], object]:
    """A function that waits for the device: CPU computes at once (see `runtime.py`), and MindSpore refuses to wait for it."""
    import mindspore

    return mindspore.runtime.synchronize if device == "Ascend" else (lambda: None)


def compared(found: Mapping[str, float], card: str | None, what: str, cards: int = 1) -> Findings:
    """Findings on measured constants, a warning for those that are far worse than what `plan` reckons with.

    card: a hardware file's name or None; what: in which precision, or over which links; cards: processes that took part.
    """
    planned = constants(load_hardware(card), cards) if card else {}
    good, poor = [], []
    for name, value in found.items():
        label, unit = UNITS[name]
        text = f"{label} {value:.3g} {unit}"
        share = 1.0
        if name in planned:
            text += f" (plan: {planned[name]:g})"
            share = planned[name] / value if unit == "us" else value / planned[name]
        (poor if share < POOR else good).append(text)
    if good:
        yield ok(f"{what}: {', '.join(good)}")
    if poor:
        yield warning(
            f"slower than 'ms-omni plan' reckons with, {what}: {', '.join(poor)}",
            f"end other work on this machine and try again; else put the figures into a copy of configs/hardware/{card}.json "
            "and give it to 'ms-omni plan --hardware'",
        )
    if not card:
        yield note(NO_PLAN)


def constants(hardware: Hardware, cards: int) -> dict[str, float]:
    """The constants of a hardware file by the names of `UNITS`."""
    links = {f"{kind}_gb_per_s": hardware.bandwidth(kind, cards) / 1e9 for kind in ("all_reduce", "all_gather")}
    plain = {name: getattr(hardware, name) for name in ("memory_gb_per_s", "bf16_tflops", "collective_us")}
    return {**links, **plain, **hardware.launch_us}


# -- links between processes ----------------------------------------------------------------------------------------------


def _level() -> Callable[[str, str], Any]:
    """Several processes are needed on several NPUs; elsewhere the model runs without them."""
    return error if len(ascend.device_files()) > 1 else warning


def loopback(_: Any) -> Findings:
    """Findings on a connection of this process with itself, and on msrun's usual port."""
    try:
        echo()
    except OSError as reason:
        yield _level()(
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


def echo() -> None:
    """One byte from a socket of this process to another one. Raises OSError."""
    with socket.create_server((LOCAL, 0), backlog=1) as server:
        server.settimeout(SOCKET_LIMIT_S)
        with socket.create_connection(server.getsockname(), SOCKET_LIMIT_S) as client, server.accept()[0] as accepted:
            accepted.settimeout(SOCKET_LIMIT_S)
            client.sendall(b"x")
            if accepted.recv(1) != b"x":
                raise OSError("what arrived is not what was sent")


def launcher() -> str | None:
    """Path of msrun, or None."""
    beside = Path(sys.executable).with_name("msrun")
    return str(beside) if beside.exists() else shutil.which("msrun")


def msrun(_: Any) -> Findings:
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
        yield _level()(
            "msrun is not found, so the model runs in one process only",
            "pip install --force-reinstall mindspore, and put its bin folder on PATH",
        )
        return
    cards = len(ascend.device_files())
    backend = "HCCL" if cards > 1 else "MindSpore's CPU collectives"
    do = (
        "check 'hccn_tool -i 0 -net_health -g' and the links of the NPUs; see the plog files in ~/ascend/log; "
        "HCCL_OP_EXPANSION_MODE=HOST (Atlas A3: AI_CPU) takes CANN's own way instead of ours"
        if cards > 1
        else "unset http_proxy and MS_* variables of an earlier job, and look at the worker logs of a job of yours"
    )
    for workers in sorted({2, max(2, cards)}):
        with tempfile.TemporaryDirectory(prefix="ms_omni-msrun-") as folder:
            code, log = run_job(program, Path(folder), workers)
        lines = log.splitlines()
        if code is None:
            yield _level()(f"{workers} processes under msrun did not finish in {JOB_LIMIT_S} s", do)
        elif code or log.count("sum is right") < workers:
            reasons = [line for line in lines if "rror" in line or "ERROR" in line] or lines or ["it said nothing"]
            yield _level()(f"{workers} processes under msrun failed: {one_line(reasons[-1], 200)}", do)
        else:
            yield ok(f"{workers} processes under msrun sum over {backend}")
            for line in [line for line in lines if "measured {" in line][:1]:
                measured = json.loads(line.partition("measured ")[2])
                if workers == 2:  # which is tried on every machine, and all are set alike
                    yield from hccl_settings(measured)
                yield from compared(measured["found"], measured["card"], f"between {workers} processes", workers)


def hccl_settings(measured: Mapping[str, Any]) -> Findings:
    """Notes on what HCCL was told, and who told it; on CPU there is none."""
    if measured["card"] is None and measured["name"] != "CPU":
        yield note(f"HCCL is left as it is: for {measured['name']} no settings are known")
    yield from map(note, measured["hccl"])


def run_job(program: str, folder: Path, workers: int) -> tuple[int | None, str]:
    """(exit code or None when it was stopped, text of all logs) of `main` in so many processes."""
    with socket.create_server((LOCAL, 0)) as probe:
        port = probe.getsockname()[1]
    command = [program, f"--worker_num={workers}", f"--local_worker_num={workers}", f"--master_addr={LOCAL}"]
    command += [f"--master_port={port}", f"--log_dir={folder / 'logs'}", "--join=True", str(Path(__file__).resolve())]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # msrun starts `python`
    with open(folder / "msrun.txt", "wb") as output:
        streams = {"stdout": output, "stderr": subprocess.STDOUT}
        code, _ = run_session(command, JOB_LIMIT_S, cwd=folder, env={**os.environ, "PATH": path}, **streams)
    files = [folder / "msrun.txt", *sorted(folder.glob("logs/worker_*.log"))]
    return code, "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files if file.exists())


def main() -> None:
    """What each process of the job does: sums over all of them, checked and timed. Prints "sum is right", and rank 0 also what it
    measured as JSON; or raises.
    """
    from mindspore import Tensor

    from ms_omni.parallel import hccl, start
    from ms_omni.parallel.collectives import Collectives
    from ms_omni.runtime import card, setup

    runtime, mesh = setup(), start()
    comm = Collectives(mesh)
    total = comm.all_reduce(Tensor(np.full(4, mesh.rank + 1, np.float32))).asnumpy()
    expected = np.full(4, mesh.size * (mesh.size + 1) / 2, np.float32)
    if mesh.size < 2 or not np.array_equal(total, expected):
        raise SystemExit(f"the sum over {mesh.size} processes is {total.tolist()}, expected {expected.tolist()}")
    print("sum is right", flush=True)
    small, large = (Tensor(np.zeros(size, np.float32)) for size in (TOKEN_ELEMENTS, LARGE_ELEMENTS[runtime.device]))
    wait = waiter(runtime.device)
    # A fixed number of times: all processes must call the same.
    sums, gathers, calls = (
        repeated(lambda x=x, run=run: run(x), wait, times)
        for x, run, times in ((large, comm.all_reduce, 5), (large, comm.all_gather, 5), (small, comm.all_reduce, 50))
    )
    found = {
        "all_reduce_gb_per_s": large.nbytes / sums / 1e9,
        "all_gather_gb_per_s": mesh.size * large.nbytes / gathers / 1e9,
        "collective_us": 1e6 * calls,
    }
    if mesh.speaks:
        known, name = card()
        settings = list(hccl.in_force(known))
        print("measured " + json.dumps({"card": known, "name": name, "found": found, "hccl": settings}), flush=True)


if __name__ == "__main__":
    main()
