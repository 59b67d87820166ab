"""Can this machine run the model? Checks that each stand alone, in a process of their own and with a time limit.

    finding     what a check says: level, what was found, what to do
    runner      runs the checks, in order; one that hangs or dies is a finding like others
    software, machine, ascend, mindspore_check, operators, communication, selfcheck      the checks

A check takes `Options` and returns findings; it may raise, since its process is its own.
"""
