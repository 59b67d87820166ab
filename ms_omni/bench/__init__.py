"""Measurements: the same scenarios on this model and, turn by turn, on a reference in another environment.

    session   which scenarios run where, in which order            -> results
    side      one party that answers requests: a child process (`protocol` is its other end), or this process under msrun
    measures  what a request does here; speech: its spoken half; meter, kernels: what is counted instead of timed
    serving   many callers on one engine: callers come, listening says what they go through
    report    JSON, Markdown and a picture of the results

Nothing but `measures`, `text`, `speech`, `serving`, `meter` and `kernels` needs MindSpore.
"""
