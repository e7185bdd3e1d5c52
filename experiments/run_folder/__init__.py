"""Folders that hold one benchmark run of one method: written once, checked when read.

config.json is written first and makes a folder a run; summary.json is written last and
marks the run complete. Accuracies are fractions, NaN (null in JSON) where not known.
"""

from experiments.run_folder.layout import (
    FORMAT_VERSION,
    METRICS,
    NothingToReportError,
    RunFolderError,
)
from experiments.run_folder.reading import Run, find, has_result, read
from experiments.run_folder.writing import (
    append_evaluation,
    check_new,
    create,
    finish,
    make_folder,
    write_file,
)

__all__ = [
    "FORMAT_VERSION",
    "METRICS",
    "NothingToReportError",
    "Run",
    "RunFolderError",
    "append_evaluation",
    "check_new",
    "create",
    "find",
    "finish",
    "has_result",
    "make_folder",
    "read",
    "write_file",
]
