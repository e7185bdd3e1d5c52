"""What a run's numbers depend on besides its configuration; imports jax."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import lamaml_jax as lm
from experiments.support import naming
from experiments.support.cores import usable_cores

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


def environment(command: str | None = None) -> dict[str, Any]:
    """Describes what a run's numbers depend on besides its configuration.

    Args:
        command: what started it; the one of this process if None.
    """
    commit = ""
    if (_ROOT / ".git").exists():  # else a copy, inside of whatever other repository
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        commit = done.stdout.strip()
    return {
        "versions": {name: metadata.version(name) for name in _PACKAGES}
        | {"lamaml_jax": lm.__version__, "python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "usable_cpu_count": usable_cores(),  # fewer where the process is bound to some
        "command": command or shlex.join([*naming.command(), *sys.argv[1:]]),
        "git_commit": os.environ.get("LAMAML_COMMIT") or commit or None,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
