"""A whole benchmark: weights, inputs, the session, the reports."""

import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from .inputs import write_inputs
from .machine import describe_machine, other_load
from .parties import here, other_party, our_party, reference_party
from .report import as_markdown, write_reports
from .session import Session, show_progress
from .weights import parameters_of, weights_of


def weights_for(arguments, out, mesh):
    """Folder of the weights that the arguments name. Raises `InputError` for ones that several processes would write."""
    return weights_of(arguments.geometry, out / "weights", arguments.seed, show_progress, may_write=mesh.size == 1)


def benchmark(arguments, out, folder, sizes, listed, measure_load, repetitions, mesh):
    """Runs the scenarios `listed`, prints the report and writes it to `out`. Returns the exit code: 1 if any failed.

    mesh: who is who among the processes of msrun; all of them measure, rank 0 reports.
    """
    say = show_progress if mesh.speaks else lambda text: None
    busy = other_load()
    say("preparing inputs")
    inputs = out / f"inputs{mesh.rank or ''}.npz"
    clip = any(scenario.kind == "again" for scenario in listed)
    write_inputs(folder, sizes, arguments.seed, inputs, clip)
    settings = {"model": str(folder.resolve()), "inputs": str(inputs.resolve())}
    own = other = {**settings, "compile_steps": not arguments.no_compile}
    if arguments.quantize:
        own = {**own, "quantize": arguments.quantize, "quantize_group": arguments.group}
    alone, others = mesh.size == 1, []
    start = [our_party(out, arguments.threads) if alone else here()]
    if arguments.reference or arguments.reference_python:
        start.append(reference_party(arguments.reference_python, out, arguments.threads))
        others = [settings]
    elif arguments.beside:
        start.append(other_party(arguments.beside, out, arguments.threads))
        others = [other]
    session = Session(start, [own, *others], repetitions, say)
    with stopped_like_interrupted():
        outcome = session.run(listed, measure_load and alone)
    if not mesh.speaks:
        return 1 if outcome.failures else 0
    head = {**head_of(arguments, folder, repetitions), "cards": mesh.size, "busy": busy}
    say("")
    print(as_markdown(head, outcome))
    for path in write_reports(out, head, outcome, arguments.what or "benchmark"):
        print(f"wrote {path}")
    return 1 if outcome.failures else 0


@contextmanager
def stopped_like_interrupted():
    """A request to end (SIGTERM) is taken as Ctrl-C, so that what has been measured is reported."""

    def interrupt(*_):
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def head_of(arguments, folder, repetitions):
    """What was measured, where and when."""
    machine = describe_machine()
    return {
        "model": f"{Path(arguments.geometry).name} geometry"
        if folder.name.endswith(f"-seed{arguments.seed}")
        else folder.name,
        "weights": str(folder),
        "parameters": parameters_of(folder),
        "seed": arguments.seed,
        "asked": asked(arguments),
        "repetitions": repetitions,
        "threads": str(arguments.threads or machine["cores"]),
        "machine": machine,
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }


def asked(arguments):
    """What the callers of `serve` want, in words."""
    when = "all at once" if arguments.rate is None else f"{arguments.rate:g} per second"
    where = " in a process of its own" if arguments.speech else ""
    kept = "" if arguments.kv_cache_dtype == "auto" else f", keys and values in {arguments.kv_cache_dtype}"
    return (
        f"{arguments.callers} callers, {when}, {100 * arguments.spoken:.0f} % of them to be answered in speech{where}{kept}"
    )
