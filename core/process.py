"""Whose process this is: a proxy's, which is ours to arrange and to end, or an application's that runs one inside."""

import os

IN_PROCESS = "LLM_ORCHESTRATION_IN_PROCESS"
"""Set while the Python API runs the proxy inside the application."""


def is_a_proxys() -> bool:
    return os.environ.get(IN_PROCESS) is None
