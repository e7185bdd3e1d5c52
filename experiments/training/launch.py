"""What the command line and Python share of a run: folders, locks, and what is told."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments import run_folder
from experiments.config import request
from experiments.config.run_config import RunConfig, config_record
from experiments.data import sources
from experiments.training import placement
from experiments.training.storing import Part


def take_folders(
    stack: contextlib.ExitStack,
    folders: Sequence[Path],
    fresh: bool,
    locked: Sequence[Path],
    tell: Callable[[str], None],
) -> None:
    """Locks folders until a stack is closed, refuses unusable ones, empties if asked.

    Nothing is changed before all are known to be free and locked.

    Args:
        stack: holds the locks.
        folders: of the runs.
        fresh: whether earlier runs in them are removed.
        locked: ``folders``, or folders that hold them.
        tell: given sentences about processes that died.
    """
    for folder in folders:
        run_folder.check_free(folder)
    stack.enter_context(run_folder.held(locked, tell))
    for folder in folders:
        if fresh and folder.exists():
            run_folder.clear(folder)
        run_folder.check_usable(folder)


def load(
    asked: request.Request, folders: Sequence[Path], data_dir: Path | None
) -> tuple[sources.Source, list[list[Part]]]:
    """Loads a data set, and says what is trained on it where.

    Args:
        asked: what to run.
        folders: of its methods, in their order.
        data_dir: folder of the prepared data sets.

    Returns:
        The data set, and a group of one run for each method.

    Raises:
        UserError: it cannot be read, or does not have what was asked for.
    """
    source = sources.load_source(asked.benchmark.source, data_dir)
    made = request.configs(asked, source.num_classes)
    return source, [[Part(*each)] for each in zip(made, folders, strict=True)]


def incomplete(groups: Sequence[list[Part]], console: Console) -> list[list[Part]]:
    """Returns the groups that are not done yet, the same in every process."""
    todo = np.zeros(len(groups), bool)
    if placement.is_first_process():
        for n, parts in enumerate(groups):
            for config, folder in parts:
                progress = run_folder.progress(folder, config_record(config))
                if progress != run_folder.Progress.COMPLETE:
                    todo[n] = True
                else:
                    console.print(f"{folder} is complete", soft_wrap=True)
    todo = placement.from_first_process(todo)
    return [parts for parts, is_todo in zip(groups, todo, strict=True) if is_todo]


def tell_presets(configs: Sequence[RunConfig], tell: Callable[[str], None]) -> None:
    """Says whose hyper-parameters methods take on a benchmark without presets."""
    taken: dict[tuple[str, str], list[str]] = {}
    for config in configs:
        if config.presets_from is not None:
            key = config.benchmark.name, config.presets_from
            methods = taken.setdefault(key, [])
            if config.method not in methods:
                methods.append(config.method)
    for (benchmark, other), methods in taken.items():
        tell(
            f"{benchmark} has no presets for {', '.join(methods)}: those of {other}, "
            "the nearest stream, are taken"
        )
