"""Continual-learning experiments with lamaml_jax, from one command line or Python.

``run`` trains, ``benchmarks.register``, ``networks.register`` and ``methods.register``
add what is a person's own, and ``report.make_report`` draws. Nothing is imported before
it is used.
"""

import importlib
import sys
from typing import Any

from .support.naming import share

_MODULES = {
    "benchmarks": "config.benchmarks",
    "data": "data",
    "hyperparameters": "methods.hyperparameters",
    "methods": "methods",
    "networks": "networks",
    "report": "report",
    "run_folder": "run_folder",
    "styles": "support.styles",
    "targets": "data.targets",
}
_NAMES = {
    "run": "api",
    "from_arrays": "data.own",
    "from_folder": "data.own",
    "from_npz": "data.own",
    "from_tfds": "data.own",
    "Stream": "data.streams",
}


share(sys.modules[__name__])


def __getattr__(name: str) -> Any:
    """Imports a module, or what is in one, when it is first asked for."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names what can be asked for."""
    return sorted({*globals(), *_MODULES, *_NAMES})
