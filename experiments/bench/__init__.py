"""Speed and memory, as ratios measured in one process; see ``BENCHES``."""

import importlib
from collections.abc import Sequence
from typing import Any

from experiments.run_folder.measurements import Record, Result, lines, read, show, write

__all__ = ["BENCHES", "Record", "Result", "lines", "measure", "read", "show", "write"]

BENCHES = {
    "update": "update",
    "meta-gradient": "meta_gradient",
    "cost": "cost",
    "convolution": "convolution",
    "reservoir": "reservoir",
    "stream": "stream",
    "compile": "compilation",
    "scaling": "scaling",
    "accelerator": "accelerator",
    "peers": "peers",
}
"""Modules by the name on the command line, imported (and jax with them) when used."""
OPTIONAL = ("peers",)
"""Those that ask for more than the extra ``experiments``; not part of "all"."""
WITHOUT_DATA = ("meta-gradient", "cost", "convolution", "reservoir")
"""Those that make their own rows."""


def measure(name: str, settings: Any) -> Sequence[Result]:
    """Measures one of ``BENCHES``.

    Args:
        name: its key.
        settings: a ``bench.settings.Settings``.

    Raises:
        UserError: the benchmark or its data do not fit.
    """
    module = importlib.import_module(f"experiments.bench.{BENCHES[name]}")
    return module.measure(settings)
