"""Measurements: the same scenarios on this model and, turn by turn, on a reference in another environment.

    scenarios   what is measured, and on which inputs
    callers     who calls when for what, and the figures of those calls: of an engine (`serving`) or of a server (`remote`)
    session     sides, each a process of its own (`worker`) or this one, and which of them runs when
    measures    what a scenario does here; serving: many callers on one engine; counts: what is counted instead of timed
    report      JSON and Markdown of the results; pictures: bars and curves

Nothing but `measures`, `serving` and `counts` needs MindSpore.
"""
