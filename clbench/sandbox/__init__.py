"""Runs generated code inside a boundary it cannot widen; refuses where there is none.

Backends: bubblewrap, then plain namespaces (user, mount, pid, net, ipc); "none" is the accepted
risk. Left out: a rootless container, whose start costs more than the program, and nsjail, which
offers nothing these two lack. Each program gets a fresh process in a fresh boundary. Memory is
bounded per process by its address space, not by cgroup, which ordinary users rarely may create;
the kinds of memory that an address space does not count are refused by a filter of system calls.
"""

from clbench.sandbox.probe import Attempt, Search, find_isolation, search_isolation
from clbench.sandbox.runner import Isolation, Row, run_cases, run_many, run_program
from clbench.sandbox.verdict import Case, Job, Limits, Outcome, Verdict

__all__ = [
    "Attempt",
    "Case",
    "Isolation",
    "Job",
    "Limits",
    "Outcome",
    "Row",
    "Search",
    "Verdict",
    "find_isolation",
    "run_cases",
    "run_many",
    "run_program",
    "search_isolation",
]
