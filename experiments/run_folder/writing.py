"""Writes a run: whole files or nothing."""

import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from experiments.run_folder import layout
from experiments.run_folder.layout import RunFolderError


def write_file(path: Path, data: bytes) -> None:
    """Writes a whole file or nothing: a reader never sees half of it.

    Raises:
        RunFolderError: it cannot be written; an earlier file of that name is kept.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> RunFolderError:
    """Words the case of a file that cannot be written."""
    return RunFolderError(
        f"{path.parent}: {path.name} cannot be written "
        f"({error.strerror or error}); free space there or give another --out"
    )


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, if need be.

    Raises:
        RunFolderError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def _plain(value: Any) -> Any:
    """Turns a value into what strict JSON can hold; null for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _write_json(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    text = json.dumps(_plain(value), indent=2, allow_nan=False)
    write_file(folder / name, f"{text}\n".encode())


def check_free(folder: Path) -> None:
    """Checks, without touching it, that a folder is new, empty or of a run.

    Raises:
        RunFolderError: it holds something that is no run.
    """
    folder = Path(folder)
    try:
        if not folder.exists() or (folder / layout.CONFIG).is_file():
            return
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    except OSError as error:
        raise unwritable(folder, error) from error
    if names - layout.BEFORE_A_RUN:
        raise RunFolderError(
            f"{folder}: holds something that is no run; give another --out"
        )


def check_usable(folder: Path) -> None:
    """Makes ``folder`` if need be, and checks by writing that a run can go there.

    Raises:
        RunFolderError: it holds something that is no run, or cannot be written to.
    """
    folder = Path(folder)
    check_free(folder)
    probe = folder / layout.PROBE
    try:
        make_folder(folder)
        write_file(probe, b"written")
        probe.unlink()
    except OSError as error:
        raise unwritable(probe, error) from error


def create(
    folder: Path, config: Mapping[str, Any], environment: Mapping[str, Any]
) -> None:
    """Starts a run folder.

    Args:
        folder: a new or empty folder.
        config: resolved configuration; ``format_version``, ``benchmark``, ``method``,
            ``seeds`` and ``num_tasks`` at least.
        environment: versions, device, command line, commit, starting time.

    Raises:
        RunFolderError: the folder is used or cannot be written to.
    """
    folder = Path(folder)
    check_usable(folder)
    if (folder / layout.CONFIG).is_file():
        raise RunFolderError(f"{folder}: holds a run; give another --out")
    _write_json(folder, layout.CONFIG, config)
    _write_json(folder, layout.ENVIRONMENT, environment)
    write_file(folder / layout.EVALUATIONS, b"")


def reopen(folder: Path, environment: Mapping[str, Any], num_tasks: int) -> None:
    """Goes on with a run folder that was interrupted.

    Args:
        folder: made by ``create``.
        environment: as in ``create``, of this start; listed under ``resumed``.
        num_tasks: tasks that are done; lines of later ones are dropped.

    Raises:
        RunFolderError: the folder cannot be written to.
    """
    folder = Path(folder)
    try:
        stored = json.loads((folder / layout.ENVIRONMENT).read_bytes())
        stored["resumed"] = [*stored.get("resumed", []), environment]
    except (OSError, ValueError):  # killed before it was written
        stored = environment
    _write_json(folder, layout.ENVIRONMENT, stored)
    path = folder / layout.EVALUATIONS
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    kept = [line for line in whole if json.loads(line)["task"] < num_tasks]
    write_file(path, b"".join(kept))


def append_evaluation(folder: Path, record: Mapping[str, Any]) -> None:
    """Adds one line to evaluations.jsonl, first dropping a line that was cut short.

    Args:
        folder: made by ``create``.
        record: ``seed``, ``task`` and ``accuracy`` ([T] fractions or NaN) at least.

    Raises:
        RunFolderError: the file cannot be written.
    """
    path = Path(folder) / layout.EVALUATIONS
    line = json.dumps(_plain(record), allow_nan=False) + "\n"
    try:
        with open(path, "a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode())
    except OSError as error:
        raise unwritable(path, error) from error


def finish(
    folder: Path, arrays: Mapping[str, np.ndarray], summary: Mapping[str, Any]
) -> None:
    """Writes the arrays and then the summary, which completes the run.

    Its checkpoints are removed then.

    Args:
        folder: made by ``create``.
        arrays: ``accuracy`` [S, T, T], ``initial_accuracy`` [S, T], ``seeds`` [S] and
            any others.
        summary: the lists named in ``METRICS``, ``timing``, ``diverged_seeds``.

    Raises:
        RunFolderError: a file cannot be written.
        TypeError: an array holds Python objects.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"arrays[{name!r}]: dtype {array.dtype} is not plain data")
    buffer = io.BytesIO()
    np.savez(buffer, **cast(Any, arrays))
    write_file(Path(folder) / layout.ARRAYS, buffer.getvalue())
    _write_json(Path(folder), layout.SUMMARY, summary)
    shutil.rmtree(Path(folder) / layout.CHECKPOINTS, ignore_errors=True)
