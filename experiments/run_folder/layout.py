"""Names of the files of a run, and its errors."""

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


# What a configuration means where an earlier program did not write it.
DEFAULTS = {
    "setting": "aware",
    "passes": "single",
    "epochs": 1,
    "initializer": "kaiming",
    "classes_per_task": None,
    "channels": [],
    "augment": [],
    "mean": [],
    "std": [],
    "probes": False,
    "alignment": False,
    "precision": "float32",
    "evaluate_on": "test",
    "network": "published",
    "presets_from": None,
    "is_online": False,
    "anytime_every": None,
    "anytime_rows": None,
    "blur": 0.0,
    "raw_memory": False,
    "loss": "cross_entropy",
    "metric": "accuracy",
}
