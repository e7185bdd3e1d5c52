"""Folders that hold one benchmark run of one method: written once, checked when read.

config.json is written first and makes a folder a run; summary.json is written last and
marks the run complete. Accuracies are fractions, NaN (null in JSON) where not known.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import UserError

FORMAT_VERSION = 1
METRICS = (
    "retained_accuracy",
    "backward_transfer_interference",
    "learning_accuracy",
    "forward_transfer",
)
_CONFIG, _ENVIRONMENT, _SUMMARY = "config.json", "environment.json", "summary.json"
_EVALUATIONS, _ARRAYS = "evaluations.jsonl", "arrays.npz"
_AGAIN = "restore it from a copy, or run again with --overwrite"
# Stored and recomputed figures are means of at most a few hundred float32 fractions.
_TOLERANCE = 1e-5


class RunFolderError(UserError):
    """A run folder cannot be written or read; names folder, file and remedy."""


class NothingToReportError(RunFolderError):
    """The run is sound as far as it goes, but has no result: unfinished or diverged."""


class Run(NamedTuple):
    """A complete run."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    accuracy: np.ndarray
    """[S, T, T] fractions: on task j after training on task i."""
    initial_accuracy: np.ndarray
    """[S, T] fractions, before any training."""
    seeds: np.ndarray
    """[S] integers."""
    summary: dict[str, Any]
    """As stored, except that the lists named in ``METRICS`` are arrays [S]."""
    arrays: dict[str, np.ndarray]
    """Everything in arrays.npz, the three above included."""


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
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> RunFolderError:
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
        raise _unwritable(folder, error) from error


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


def check_new(folder: Path) -> None:
    """Makes ``folder`` if need be, and checks by writing that a run can go there.

    Raises:
        RunFolderError: it holds something already, or cannot be written to.
    """
    folder = Path(folder)
    probe = folder / ".probe"
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunFolderError(
                f"{folder}: already used; give another --out, or --overwrite to "
                "replace the run in it"
            )
        make_folder(folder)
        write_file(probe, b"written")
        probe.unlink()
    except OSError as error:
        raise _unwritable(probe, error) from error


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
    check_new(folder)
    _write_json(folder, _CONFIG, config)
    _write_json(folder, _ENVIRONMENT, environment)
    write_file(folder / _EVALUATIONS, b"")


def append_evaluation(folder: Path, record: Mapping[str, Any]) -> None:
    """Adds one line to evaluations.jsonl, first dropping a line that was cut short.

    Args:
        folder: made by ``create``.
        record: ``seed``, ``task`` and ``accuracy`` ([T] fractions or NaN) at least.

    Raises:
        RunFolderError: the file cannot be written.
    """
    path = Path(folder) / _EVALUATIONS
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
        raise _unwritable(path, error) from error


def finish(
    folder: Path, arrays: Mapping[str, np.ndarray], summary: Mapping[str, Any]
) -> None:
    """Writes the arrays and then the summary, which completes the run.

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
    np.savez(buffer, **arrays)
    write_file(Path(folder) / _ARRAYS, buffer.getvalue())
    _write_json(Path(folder), _SUMMARY, summary)


def find(paths: Iterable[Path]) -> list[Path]:
    """Returns the run folders among and below ``paths``, each once, in their order.

    Raises:
        RunFolderError: a path does not exist or has no run folder at or below it.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise RunFolderError(f"{path}: no such folder; check the path")
        here = (path / _CONFIG).is_file()
        inside = [path] if here else sorted(p.parent for p in path.rglob(_CONFIG))
        if not inside:
            raise RunFolderError(
                f"{path}: no run folder here or below, none has a {_CONFIG}; give "
                "the folder that `experiments run` wrote"
            )
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _bad(folder: Path, name: str, problem: str, remedy: str = _AGAIN) -> RunFolderError:
    return RunFolderError(f"{folder}: {name} {problem}; {remedy}")


def _read_bytes(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise _bad(folder, name, "is missing") from error
    except OSError as error:
        raise _bad(folder, name, f"cannot be read ({error.strerror})") from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(_read_bytes(folder, name).decode())
    except (ValueError, RecursionError) as error:
        raise _bad(folder, name, f"is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise _bad(folder, name, "is not a JSON object")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_config(folder: Path) -> dict[str, Any]:
    config = _read_json(folder, _CONFIG)
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise _bad(
            folder,
            _CONFIG,
            f"has format_version {version!r}, this program reads {FORMAT_VERSION}",
            "use the program that wrote it, or run again",
        )
    for key in ("benchmark", "method"):
        if not re.fullmatch(r"\w[\w.-]*", str(config.get(key))):
            raise _bad(folder, _CONFIG, f"has no valid {key}: {config.get(key)!r}")
    seeds, num_tasks = config.get("seeds"), config.get("num_tasks")
    if not (isinstance(seeds, list) and seeds and all(map(_whole, seeds))):
        raise _bad(folder, _CONFIG, f"has no list of seeds: {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise _bad(folder, _CONFIG, f"names a seed twice: {seeds}")
    if not (_whole(num_tasks) and num_tasks >= 1):
        raise _bad(folder, _CONFIG, f"has no valid num_tasks: {num_tasks!r}")
    return config


def _read_arrays(folder: Path, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    data = io.BytesIO(_read_bytes(folder, _ARRAYS))
    try:
        with zipfile.ZipFile(data) as file:
            damaged = file.testzip()  # numpy stops before a checksum it need not reach
        if damaged:
            raise zipfile.BadZipFile(f"checksum of {damaged}")
        data.seek(0)
        with np.load(data, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # damaged bytes end in errors of a dozen types
        raise _bad(folder, _ARRAYS, f"is damaged ({error})") from error
    count, tasks = len(config["seeds"]), config["num_tasks"]
    shapes = {
        "accuracy": (count, tasks, tasks),
        "initial_accuracy": (count, tasks),
        "seeds": (count,),
    }
    for name, shape in shapes.items():
        if name not in arrays:
            raise _bad(folder, _ARRAYS, f"has no array {name}")
        array = arrays[name]
        if array.shape != shape:
            problem = f"{array.shape}, expected {shape} from {_CONFIG}"
            raise _bad(folder, _ARRAYS, f"has {name} of shape {problem}")
        kind = "iu" if name == "seeds" else "f"
        if array.dtype.kind not in kind:
            raise _bad(folder, _ARRAYS, f"has {name} of dtype {array.dtype}")
        if kind == "f" and not (np.isnan(array) | ((array >= 0) & (array <= 1))).all():
            raise _bad(folder, _ARRAYS, f"has {name} outside 0 to 1")
    if arrays["seeds"].tolist() != config["seeds"]:
        raise _bad(folder, _ARRAYS, f"has other seeds than {_CONFIG}")
    return arrays


def _recomputed(accuracy: np.ndarray, initial: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the figures named in ``METRICS`` from the matrices, [S] each."""
    accuracy = accuracy.astype(np.float64)
    last, learnt = accuracy[:, -1], np.diagonal(accuracy, axis1=1, axis2=2)
    before = np.diagonal(accuracy, offset=1, axis1=1, axis2=2)
    gain = (before - initial[:, 1:]).sum(axis=1) / max(before.shape[1], 1)
    figures = (last.mean(axis=1), (last - learnt).mean(axis=1), learnt.mean(axis=1))
    return dict(zip(METRICS, (*figures, gain), strict=True))


def _read_summary(
    folder: Path, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    summary = _read_json(folder, _SUMMARY)
    expected = _recomputed(arrays["accuracy"], arrays["initial_accuracy"])
    for name, values in expected.items():
        try:
            stored = np.array(summary.get(name), np.float64)  # None becomes NaN
        except (TypeError, ValueError) as error:
            raise _bad(folder, _SUMMARY, f"has no list {name}") from error
        if stored.shape != values.shape:
            raise _bad(folder, _SUMMARY, f"has no {name} for each seed")
        if not np.allclose(stored, values, rtol=0, atol=_TOLERANCE, equal_nan=True):
            problem = f"gives {name} {stored}, but {_ARRAYS} gives {values}"
            raise _bad(folder, _SUMMARY, problem)
        summary[name] = stored
    diverged, timing = summary.get("diverged_seeds"), summary.get("timing")
    if not isinstance(diverged, list) or not all(
        s in config["seeds"] for s in diverged
    ):
        raise _bad(folder, _SUMMARY, f"has no valid diverged_seeds: {diverged!r}")
    if not isinstance(timing, dict):
        raise _bad(folder, _SUMMARY, f"has no valid timing: {timing!r}")
    return summary


def _check_evaluations(
    folder: Path, config: Mapping[str, Any], accuracy: np.ndarray
) -> None:
    """Holds the lines written along the way against the matrix written at the end."""
    logged = np.full_like(accuracy, -1)
    lines = _read_bytes(folder, _EVALUATIONS).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            index = config["seeds"].index(record["seed"]), record["task"]
            logged[index] = record["accuracy"]
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            problem = f"has no evaluation in line {number} ({error})"
            raise _bad(folder, _EVALUATIONS, problem) from error
    if not np.allclose(logged, accuracy, rtol=0, atol=_TOLERANCE, equal_nan=True):
        raise _bad(folder, _EVALUATIONS, f"lacks lines, or differs from {_ARRAYS}")


def read(folder: Path) -> Run:
    """Reads a complete run and checks that its files are sound and agree.

    Args:
        folder: one of ``find``.

    Returns:
        The run; entries of seeds that diverged are NaN.

    Raises:
        NothingToReportError: no summary.json yet, or no seed that has all accuracies.
        RunFolderError: a file is missing, damaged, of another version or in conflict.
    """
    folder = Path(folder)
    config = _read_config(folder)
    if not (folder / _SUMMARY).exists():
        raise NothingToReportError(
            f"{folder}: incomplete, there is no {_SUMMARY}; let the run finish, or "
            "run again with --overwrite"
        )
    environment = _read_json(folder, _ENVIRONMENT)
    arrays = _read_arrays(folder, config)
    summary = _read_summary(folder, config, arrays)
    _check_evaluations(folder, config, arrays["accuracy"])
    run = Run(
        folder,
        config,
        environment,
        arrays["accuracy"],
        arrays["initial_accuracy"],
        arrays["seeds"],
        summary,
        arrays,
    )
    if not has_result(run).any():
        raise NothingToReportError(
            f"{folder}: {_ARRAYS} has no seed with all accuracies, every one diverged; "
            "run again with smaller learning rates or step sizes"
        )
    return run


def has_result(run: Run) -> np.ndarray:
    """Tells which seeds count, [S] booleans: not diverged and all figures known."""
    diverged = np.isin(run.seeds, run.summary["diverged_seeds"])
    known = [np.isfinite(run.summary[name]) for name in METRICS[:3]]
    return ~diverged & np.logical_and.reduce(known)
