"""A whole benchmark: weights, inputs, the session, the reports."""

import time

from .inputs import write_inputs
from .machine import describe_machine, other_load
from .parties import our_party, reference_party
from .report import as_markdown, write_reports
from .session import Session, show_progress
from .weights import parameters_of, weights_of


def weights_for(arguments, out):
    """Folder of the weights that the arguments name."""
    return weights_of(arguments.geometry, out / "weights", arguments.seed, show_progress)


def benchmark(arguments, out, folder, sizes, listed, measure_load, repetitions):
    """Runs the scenarios `listed`, prints the report and writes it to `out`. Returns the exit code: 1 if any failed."""
    busy = other_load()
    show_progress("preparing inputs")
    inputs = out / "inputs.npz"
    write_inputs(folder, sizes, arguments.seed, inputs)
    start, settings = [our_party(out, arguments.threads)], {"model": str(folder), "inputs": str(inputs)}
    if arguments.reference or arguments.reference_python:
        start.append(reference_party(arguments.reference_python, out, arguments.threads))
    own = {**settings, "compile_steps": not arguments.no_compile}
    session = Session(start, [own, settings][: len(start)], repetitions, show_progress)
    outcome = session.run(listed, measure_load)
    head = {**head_of(arguments, folder, repetitions), "busy": busy}
    show_progress("")
    print(as_markdown(head, outcome))
    for path in write_reports(out, head, outcome):
        print(f"wrote {path}")
    return 1 if outcome.failures else 0


def head_of(arguments, folder, repetitions):
    """What was measured, where and when."""
    machine = describe_machine()
    return {
        "model": f"{arguments.geometry} geometry" if folder.name.endswith(f"-seed{arguments.seed}") else folder.name,
        "weights": str(folder),
        "parameters": parameters_of(folder),
        "seed": arguments.seed,
        "repetitions": repetitions,
        "cards": 1,
        "threads": str(arguments.threads or machine["cores"]),
        "machine": machine,
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }
