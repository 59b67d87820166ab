"""Measurements: the same scenarios on this model and, turn by turn, on a reference in another environment.

    session   which scenarios run where, in which order            -> results
    side      one party that answers requests: a child process (`serve` is its other end), or this process under msrun
    measures  what a request does here; speech: its spoken half; meter, kernels: what is counted instead of timed
    report    JSON, Markdown and a picture of the results

Nothing but `measures`, `speech`, `meter` and `kernels` needs MindSpore.
"""
