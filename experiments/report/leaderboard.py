"""Ranks the points of a sweep."""

import functools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import run_folder
from experiments.report import columns, terminal
from experiments.report.entries import Entry, make_entries
from experiments.support import naming


def leaderboard(
    folders: Sequence[Path],
    out: Path,
    console: Console,
    plugins: Sequence[str] = (),
) -> None:
    """Writes and prints the points of each benchmark by RA, best first.

    ``leaderboard.md`` and ``leaderboard.csv`` hold all; ``best.json`` in the folder of
    a method is its best point, for ``run --config``.

    Args:
        folders: of the runs.
        out: folder of the sweep.
        console: where the tables are printed.
        plugins: what the next command needs, too.

    Raises:
        RunFolderError: no run has a result, or a file cannot be written.
    """
    runs, skipped = [], []
    for folder in folders:
        try:
            runs.append(run_folder.read(folder))
        except run_folder.RunFolderError as error:
            skipped.append(str(error))
    if not runs:
        raise run_folder.RunFolderError("no run to compare: " + "; ".join(skipped))
    entries = make_entries(runs)
    text = columns.markdown(entries, skipped)
    run_folder.write_file(out / "leaderboard.md", text.encode())
    values = columns.comma_separated(entries)
    run_folder.write_file(out / "leaderboard.csv", values.encode())
    terminal.show(entries, skipped, console)
    say = functools.partial(console.print, soft_wrap=True, markup=False)
    say(f"all points are ranked in {out / 'leaderboard.md'} and .csv")
    seen = set()
    for entry in entries:  # the best first
        parent = entry.run.folder.parent
        if parent not in seen:
            seen.add(parent)
            best = json.dumps(_best(entry), indent=2)
            path = parent / "best.json"
            run_folder.write_file(path, f"{best}\n".encode())
            say(f"the best of {entry.run.config['method']}, on test tasks:")
            command = [*naming.command(), "run", "--config", str(path)]
            command += [word for each in plugins for word in ("--plugin", each)]
            say(f"  {shlex.join(command)}")


def _best(entry: Entry) -> dict[str, Any]:
    """Everything that decides a run's numbers, but that it is for validation."""
    config = dict(entry.run.config)
    del config["evaluate_on"]
    return config
