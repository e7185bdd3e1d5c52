"""Names of the files of a run, and its errors."""

import dataclasses
from typing import Any

from experiments.schema.benchmark import Benchmark
from experiments.schema.hyperparameters import Hyperparameters
from experiments.schema.run import RunConfig
from experiments.support.errors import UserError

FORMAT_VERSION = 1
METRICS = (
    "retained_accuracy",
    "backward_transfer_interference",
    "learning_accuracy",
    "forward_transfer",
)
ANYTIME_METRICS = ("average_anytime_accuracy", "worst_case_accuracy")
"""Of runs that were evaluated within tasks."""
LINEAR_PROBE = "linear_probe_accuracy"
"""Of runs with a linear probe at their end: an array [S, T], and its means [S]."""
GRADIENT_EVALUATIONS, MEMORY_BYTES = "gradient_evaluations_per_row", "memory_bytes"
"""What a run cost, under "cost" of its summary."""
CONFIG, ENVIRONMENT, SUMMARY = "config.json", "environment.json", "summary.json"
EVALUATIONS, ARRAYS = "evaluations.jsonl", "arrays.npz"
CHECKPOINTS = "checkpoints"
LOCK, HOLDER, PROBE = ".lock", ".holder.json", ".probe"
# What a process that was killed before its run began may leave in an empty folder.
BEFORE_A_RUN = {LOCK, HOLDER, PROBE} | {
    f".{name}.part" for name in (CONFIG, HOLDER, PROBE)
}


class RunFolderError(UserError):
    """A run folder cannot be written or read; names folder, file and remedy."""


class NothingToReportError(RunFolderError):
    """The run is sound as far as it goes, but has no result: unfinished or diverged."""


def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in (RunConfig, Benchmark, Hyperparameters):
        for field in dataclasses.fields(kind):
            value = field.default
            is_written = kind is not Hyperparameters or value is not None
            if value is not dataclasses.MISSING and is_written:
                found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


DEFAULTS = _defaults()
"""What a configuration means where an earlier program did not write it: all runs were
what the default of a field says before there was such a field."""
