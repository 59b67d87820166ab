"""Seeing what enters and leaves the cells of a model while it runs."""

from contextlib import contextmanager


@contextmanager
def watching(**cells):
    """For each named cell, the lists of first inputs (`name.in`) and outputs (`name`) of its calls, as numpy arrays."""
    seen, handles = {}, []

    def hook(name):
        def keep(_, inputs, output):
            seen.setdefault(f"{name}.in", []).append(inputs[0].asnumpy().copy())
            output = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, []).append(output.asnumpy().copy())

        return keep

    for name, cell in cells.items():
        handles.append(cell.register_forward_hook(hook(name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watching_states(encoder):
    """The list of an encoder's states, whether its layers are called or one operator does their work: what the first layer gets, and
    what each of them makes of it.
    """
    seen, states = [], encoder.states

    def watched(x, segments, rope=None, wanted=None):
        for number, state in enumerate(states(x, segments, rope)):
            seen.append(state.asnumpy().copy())
            if wanted is None or number in wanted:
                yield state

    object.__setattr__(encoder, "states", watched)
    try:
        yield seen
    finally:
        object.__delattr__(encoder, "states")
