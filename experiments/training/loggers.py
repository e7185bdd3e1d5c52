"""Where evaluations go besides the run folder: TensorBoard, or any function."""

import atexit
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from experiments.support.errors import UserError

Logger = Callable[[Path, Mapping[str, Any]], None]
"""``logger(folder, record)``: a run's folder and a new line of its evaluations.jsonl,
with ``seed``, ``task``, ``accuracy`` [T], ``retained_accuracy`` and ``train``, the
means of what the learner reported over the task."""


def load(text: str) -> Logger:
    """Imports a logger.

    Args:
        text: MODULE:FUNCTION.

    Returns:
        The function.

    Raises:
        UserError: there is no such function.
    """
    name, colon, function = text.partition(":")
    try:
        found = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--logger {text}: {error}") from error
    if not colon or not callable(found):
        raise UserError(f"--logger: expected MODULE:FUNCTION, received {text!r}")
    return cast(Logger, found)


def tensorboard() -> Logger:
    """Builds a logger that writes event files to ``tensorboard/seed-N`` in each folder.

    Steps are tasks, from 1. A run that goes on does so in the same curves.

    Raises:
        UserError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard needs a package: pip install tensorboardX"
        ) from error
    writers: dict[tuple[Path, int], SummaryWriter] = {}

    def log(folder: Path, record: Mapping[str, Any]) -> None:
        step = record["task"] + 1
        key = folder, record["seed"]
        if key not in writers:
            place = folder / "tensorboard" / f"seed-{record['seed']}"
            writer = SummaryWriter(str(place), purge_step=step, flush_secs=1)
            atexit.register(writer.close)  # its thread may not have written all yet
            writers[key] = writer
        writer = writers[key]
        writer.add_scalar("retained_accuracy", record["retained_accuracy"], step)
        for task, value in enumerate(record["accuracy"]):
            if value == value:  # not every task is evaluated every time
                writer.add_scalar(f"accuracy/task-{task:03}", value, step)
        for name, value in record["train"].items():
            writer.add_scalar(f"train/{name}", value, step)

    return log
