"""Checkpoints of a run, by orbax: the learner's state and what was measured so far."""

import contextlib
import functools
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from experiments.run_folder import RunFolderError
from experiments.training import recording
from experiments.training.recording import History

_KEPT = 2


class Checkpoint(NamedTuple):
    """Where a run can go on."""

    state: Any
    """Of the learner, numpy arrays with a leading axis of S seeds."""
    history: History


class Checkpoints:
    """The checkpoints of one run folder, the latest two of them.

    Writing goes on beside the training. orbax writes elsewhere and renames, so that a
    checkpoint is whole or not there.
    """

    def __init__(self, folder: Path, interval_s: float) -> None:
        """Opens a folder.

        Args:
            folder: made with the first checkpoint.
            interval_s: seconds between two checkpoints at least.
        """
        self._folder = folder.absolute()
        self._interval_s = interval_s
        self._saved = time.monotonic()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Errors are raised besides, and told by us.
        logging.set_verbosity(logging.FATAL)
        several: dict[str, Any] = {}
        if jax.process_count() > 1:  # the first one writes alone
            self._folder.mkdir(parents=True, exist_ok=True)
            several = {
                "create": False,
                "multiprocessing_options": ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}, barrier_sync_key_prefix="0"
                ),
            }
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, cleanup_tmp_directories=not several, **several
        )
        return ocp.CheckpointManager(self._folder, options=options)

    def is_due(self) -> bool:
        """Tells whether the latest checkpoint is old enough for another."""
        return time.monotonic() - self._saved >= self._interval_s

    @contextlib.contextmanager
    def _told(self) -> Generator[None]:
        """Turns what writing raises, errors of many types, into one of ours."""
        try:
            yield
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunFolderError(
                f"{self._folder}: a checkpoint cannot be written ({reason}); free "
                "space there, and the same command goes on from the one before"
            ) from error

    def save(self, checkpoint: Checkpoint) -> None:
        """Starts to write a checkpoint, named after the tasks that are done.

        Raises:
            RunFolderError: it, or the one before it, cannot be written.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(checkpoint.state),
            history=ocp.args.StandardSave(checkpoint.history),
        )
        num_tasks = recording.num_tasks(checkpoint.history)
        with self._told():
            self._manager.save(num_tasks, args=items)
        self._saved = time.monotonic()

    def latest(self, like: Any, warn: Callable[[str], None]) -> Checkpoint | None:
        """Reads the latest checkpoint that is sound.

        Args:
            like: a state's shapes and dtypes, [S, ...].
            warn: told of checkpoints that cannot be read.

        Returns:
            It, or None if there is none.
        """
        template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(template),
            history=ocp.args.StandardRestore(),
        )
        for num_tasks in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(num_tasks, args=items)
            except Exception as error:  # damaged files end in errors of many types
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                warn(f"the checkpoint after task {num_tasks} is damaged ({reason})")
                continue
            return Checkpoint(found["state"], found["history"])
        return None

    def close(self) -> None:
        """Waits until all is written.

        Raises:
            RunFolderError: it cannot be.
        """
        if "_manager" in vars(self):
            with self._told():
                self._manager.close()
