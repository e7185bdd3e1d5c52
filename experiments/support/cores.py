"""The processor cores that a process may use."""

import os


def usable_cores() -> int:
    """Returns how many cores this process may run on.

    ``taskset``, a job scheduler or a container may allow fewer than the machine has. On
    one core, two devices of a CPU take turns and wait for each other.
    """
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
