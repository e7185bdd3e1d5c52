"""Folders that hold one benchmark run of one method: written once, checked when read.

config.json is written first and makes a folder a run; summary.json is written last and
marks the run complete. Accuracies are fractions, NaN (null in JSON) where not known.
"""

from experiments.run_folder.layout import (
    ANYTIME_METRICS,
    CHECKPOINTS,
    FORMAT_VERSION,
    GRADIENT_EVALUATIONS,
    LINEAR_PROBE,
    MEMORY_BYTES,
    METRICS,
    NothingToReportError,
    RunFolderError,
)
from experiments.run_folder.locking import clear, held
from experiments.run_folder.reading import (
    Progress,
    Run,
    find,
    has_result,
    progress,
    read,
)
from experiments.run_folder.writing import (
    append_evaluation,
    check_free,
    check_usable,
    create,
    finish,
    make_folder,
    reopen,
    write_file,
)

__all__ = [
    "ANYTIME_METRICS",
    "CHECKPOINTS",
    "FORMAT_VERSION",
    "GRADIENT_EVALUATIONS",
    "LINEAR_PROBE",
    "MEMORY_BYTES",
    "METRICS",
    "NothingToReportError",
    "Progress",
    "Run",
    "RunFolderError",
    "append_evaluation",
    "check_free",
    "check_usable",
    "clear",
    "create",
    "find",
    "finish",
    "has_result",
    "held",
    "make_folder",
    "progress",
    "read",
    "reopen",
    "write_file",
]
