"""Can this machine run the model? Checks that each stand alone, in a process of their own and with a time limit.

    runner      what a check says, the list of checks, and a child process for each; one that hangs or dies is a finding like others
    machine     Python, packages, media libraries, memory, disk
    ascend      driver, firmware, CANN, NPUs, and whether MindSpore starts
    selfcheck   operators, every stage and whole answers, against formulas and recorded values
    speed       memory, products, launches, and links between processes, beside what `ms-omni plan` reckons with
    report      a text file for a bug report, without marks of the machine

A check takes `Options` and yields findings; it may raise, since its process is its own.
"""
