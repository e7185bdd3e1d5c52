"""The arrays of a run: what they are, whether they are sound, and what follows."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.run_folder import layout
from experiments.run_folder.layout import ANYTIME_METRICS, METRICS, RunFolderError

_AGAIN = "restore it from a copy, or run again with --fresh"
# Optional arrays that come together, and their axes.
MEASURES = (
    {
        "probe_updates": ("P",),
        "probe_tasks": ("P",),
        "probe_slow": ("S", "P"),
        "probe_fast": ("S", "P"),
    },
    {"step_size_quantiles": ("S", "T+1", "L", "5")},
    {"alignment_after": ("E",), "task_alignment": ("S", "E", "T", "T")},
    {"anytime_after": ("G",), "anytime_accuracy": ("S", "T", "G", "T")},
    {layout.LINEAR_PROBE: ("S", "T")},
)


def bad(folder: Path, name: str, problem: str, remedy: str = _AGAIN) -> RunFolderError:
    """Makes the error of a file that is not as it should be."""
    return RunFolderError(f"{folder}: {name} {problem}; {remedy}")


def read_bytes(folder: Path, name: str) -> bytes:
    """Reads a file of a run folder.

    Raises:
        RunFolderError: it is missing or cannot be read.
    """
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise bad(folder, name, "is missing") from error
    except OSError as error:
        raise bad(folder, name, f"cannot be read ({error.strerror})") from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object of a run folder.

    Raises:
        RunFolderError: it is missing, or no such object.
    """
    try:
        value = json.loads(read_bytes(folder, name).decode())
    except (ValueError, RecursionError) as error:
        raise bad(folder, name, f"is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise bad(folder, name, "is not a JSON object")
    return value


def read_arrays(folder: Path, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads arrays.npz and checks it against the run's configuration.

    Raises:
        RunFolderError: it is damaged, or an array is missing or of another shape.
    """
    data = io.BytesIO(read_bytes(folder, layout.ARRAYS))
    try:
        with zipfile.ZipFile(data) as file:
            damaged = file.testzip()  # numpy stops before a checksum it need not reach
        if damaged:
            raise zipfile.BadZipFile(f"checksum of {damaged}")
        data.seek(0)
        with np.load(data, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # damaged bytes end in errors of a dozen types
        raise bad(folder, layout.ARRAYS, f"is damaged ({error})") from error
    count, tasks = len(config["seeds"]), config["num_tasks"]
    shapes = {
        "accuracy": (count, tasks, tasks),
        "initial_accuracy": (count, tasks),
        "seeds": (count,),
    }
    for name, shape in shapes.items():
        if name not in arrays:
            raise bad(folder, layout.ARRAYS, f"has no array {name}")
        array = arrays[name]
        if array.shape != shape:
            problem = f"{array.shape}, expected {shape} from {layout.CONFIG}"
            raise bad(folder, layout.ARRAYS, f"has {name} of shape {problem}")
        kind = "iu" if name == "seeds" else "f"
        if array.dtype.kind not in kind:
            raise bad(folder, layout.ARRAYS, f"has {name} of dtype {array.dtype}")
        known = array[~np.isnan(array)] if kind == "f" else array[:0]
        if config.get("metric", "accuracy") != "accuracy":
            if not np.isfinite(known).all():
                raise bad(folder, layout.ARRAYS, f"has infinities in {name}")
        elif not ((known >= 0) & (known <= 1)).all():
            raise bad(folder, layout.ARRAYS, f"has {name} outside 0 to 1")
    if arrays["seeds"].tolist() != config["seeds"]:
        raise bad(folder, layout.ARRAYS, f"has other seeds than {layout.CONFIG}")
    _check_measures(folder, arrays, count, tasks)
    return arrays


def _check_measures(
    folder: Path, arrays: Mapping[str, np.ndarray], count: int, tasks: int
) -> None:
    """Checks the shapes of what may have been measured along the run."""
    sizes = {"S": count, "T": tasks, "T+1": tasks + 1, "5": 5}
    for group in MEASURES:
        if not any(name in arrays for name in group):
            continue
        for name, axes in group.items():
            if name not in arrays:
                raise bad(folder, layout.ARRAYS, f"has no array {name}")
            array = arrays[name]
            shape = array.shape
            known = dict(sizes) if name == next(iter(group)) else sizes
            for axis, size in zip(axes, shape, strict=False):
                known.setdefault(axis, size)
            sizes = known
            if shape != tuple(sizes.get(axis) for axis in axes):
                expected = ", ".join(axes)
                raise bad(
                    folder,
                    layout.ARRAYS,
                    f"has {name} of shape {shape}, expected [{expected}]",
                )
            if array.dtype.kind != ("i" if axes in (("P",), ("E",), ("G",)) else "f"):
                raise bad(folder, layout.ARRAYS, f"has {name} of dtype {array.dtype}")


def recomputed(accuracy: np.ndarray, initial: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the figures named in ``METRICS`` from the matrices, [S] each."""
    accuracy = accuracy.astype(np.float64)
    last, learnt = accuracy[:, -1], np.diagonal(accuracy, axis1=1, axis2=2)
    before = np.diagonal(accuracy, offset=1, axis1=1, axis2=2)
    gain = (before - initial[:, 1:]).sum(axis=1) / max(before.shape[1], 1)
    figures = (last.mean(axis=1), (last - learnt).mean(axis=1), learnt.mean(axis=1))
    return dict(zip(METRICS, (*figures, gain), strict=True))


def recomputed_anytime(accuracy: np.ndarray) -> dict[str, np.ndarray]:
    """Computes ``ANYTIME_METRICS`` of accuracies [S, T, G, T], [S] each."""
    accuracy = accuracy.astype(np.float64)
    count = accuracy.shape[1]
    curve = [accuracy[:, t, :, : t + 1].mean(axis=2) for t in range(count)]
    least = [
        accuracy[:, t + 1 :, :, t].min(axis=(1, 2), initial=np.inf)
        for t in range(count - 1)
    ]
    worst = sum([accuracy[:, -1, -1, -1], *least]) / count
    figures = np.stack(curve).mean(axis=(0, 2)), worst
    return dict(zip(ANYTIME_METRICS, figures, strict=True))
