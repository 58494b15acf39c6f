"""`python -m custom_router.trial`: a simulation in a process of its own, so that the proxy that asks for it goes on.

A pickled `Job` comes on standard input, since the store's URL may hold a password; JSON goes to standard output:
`custom_router.comparison.compared`, or `{"error": ...}`.
"""

import gc
import os
import pickle
import sys

import orjson

from core.errors import OrchestrationError
from custom_router.comparison import compared
from custom_router.recordings import Job, run

_NICENESS = 10
"""Requests come first."""


def main() -> None:
    os.nice(_NICENESS)
    gc.disable()
    job = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    assert isinstance(job, Job)
    try:
        found = compared(run(job), job.proposal.settings, job.spans, job.sample)
    except OrchestrationError as error:
        found = {"error": str(error)}
    sys.stdout.buffer.write(orjson.dumps(found))


if __name__ == "__main__":
    main()
