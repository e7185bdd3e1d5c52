"""The four arrays of a data set as ``.npy`` files: plain ones, and a cache of them.

Decoding is slow (about 15 s for MNIST), so its result is kept in a cache folder, from
where large arrays are mapped into memory. A folder of such files can also stand for a
data set itself, where TFDS is not installed.
"""

import contextlib
import hashlib
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.source import ARRAYS, DataError, Source
from experiments.support.errors import UserError
from experiments.support.paths import check_local

# Larger arrays are mapped into memory. Smaller ones are read: a mapped file must not be
# changed while it is in use.
_MAPPED_BYTES = 2**28

Arrays = dict[str, np.ndarray]
"""By name, those of ``ARRAYS``."""
Forms = Mapping[str, tuple[tuple[int, ...], Any]]
"""Shape and dtype of each."""


def default_cache_dir() -> Path:
    """``$LAMAML_CACHE_DIR``, or a folder in the user's cache."""
    import platformdirs

    given = os.environ.get("LAMAML_CACHE_DIR")
    check_local("LAMAML_CACHE_DIR", Path(given or ""))
    return Path(given) if given else platformdirs.user_cache_path("lamaml_jax")


def are_classes(arrays: Arrays, num_classes: int) -> bool:
    """Tells whether all labels are in [0, num_classes)."""
    labels = arrays["train_labels"], arrays["test_labels"]
    return all(
        each.min(initial=0) >= 0 and each.max(initial=0) < num_classes
        for each in labels
    )


@contextlib.contextmanager
def _replacing(folder: Path) -> Generator[Path]:
    """Yields a folder whose files are moved into ``folder``, once all are whole.

    Whoever has mapped earlier ones of their names into memory keeps those.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as part:
        yield Path(part)
        for file in sorted(Path(part).iterdir()):
            os.replace(file, folder / file.name)


def read_plain(name: str, folder: Path, image_shape: tuple[int, ...]) -> Source:
    """Maps the plain arrays of a data set into memory.

    Args:
        name: of the data set, for messages.
        folder: of the four files.
        image_shape: of one image.

    Returns:
        The data set.

    Raises:
        DataError: one is missing, damaged, or not of the form of this data set.
    """
    arrays: Arrays = {}
    for part in ("train", "test"):
        for kind, rest, dtype in (
            ("images", image_shape, "uint8"),
            ("labels", (), "int32"),
        ):
            key = f"{part}_{kind}"
            path = folder / f"{key}.npy"
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # damaged ones end in errors of many types
                raise DataError(f"data set {name!r}: {path}: {error}") from error
            if array.shape[1:] != rest or array.dtype != dtype or not len(array):
                raise DataError(
                    f"data set {name!r}: {path}: expected {dtype} [N"
                    f"{''.join(f', {n}' for n in rest)}], received {array.dtype} "
                    f"{list(array.shape)}"
                )
            arrays[key] = array
        if len(arrays[f"{part}_images"]) != len(arrays[f"{part}_labels"]):
            raise DataError(
                f"data set {name!r}: {folder}: {len(arrays[f'{part}_images'])} images "
                f"and {len(arrays[f'{part}_labels'])} labels for {part}"
            )
    num_classes = 1 + int(arrays["train_labels"].max())
    if not are_classes(arrays, num_classes):
        raise DataError(
            f"data set {name!r}: {folder}: labels beyond the {num_classes} classes of "
            "the training rows"
        )
    return Source(**arrays, num_classes=num_classes, max_value=255)


def write_plain(source: Source, folder: Path) -> None:
    """Writes a data set as plain arrays, also over those that it is read from.

    Raises:
        UserError: the files cannot be written.
    """
    try:
        with _replacing(folder) as part:
            for key in ARRAYS:
                np.save(part / f"{key}.npy", getattr(source, key))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error


def cache_folder(
    name: str, folder: Path, cache_dir: Path | None, parts: str = ""
) -> Path:
    """Names a folder that is another whenever the prepared files are.

    Args:
        name: of the data set.
        folder: where it is prepared.
        cache_dir: ``default_cache_dir`` if None.
        parts: what of it is read, if not the usual.
    """
    files = sorted(folder.iterdir())
    identity = [str(folder.resolve())]
    identity += [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    identity += [parts] if parts else []
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    return (cache_dir or default_cache_dir()) / f"{name}-{digest}"


def _read_cache(
    cache: Path, forms: Forms, is_sound: Callable[[Arrays], bool]
) -> Arrays | None:
    """Returns the cached arrays, or None if they are absent or not whole."""
    arrays: Arrays = {}
    for key, (shape, dtype) in forms.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        mode = "r" if size > _MAPPED_BYTES else None
        try:
            array = np.load(cache / f"{key}.npy", mmap_mode=mode, allow_pickle=False)
        except Exception:  # damaged ones end in errors of many types
            return None
        if array.shape != shape or array.dtype != dtype:
            return None
        arrays[key] = array
    return arrays if is_sound(arrays) else None


def _fill_cache(cache: Path, forms: Forms, decode: Callable[[Arrays], None]) -> None:
    """Decodes into files under temporary names, then moves them into place.

    Raises:
        OSError: the cache cannot be written to.
    """
    with _replacing(cache) as part:
        arrays: dict[str, np.memmap] = {
            key: np.lib.format.open_memmap(
                part / f"{key}.npy", mode="w+", dtype=dtype, shape=shape
            )
            for key, (shape, dtype) in forms.items()
        }
        decode({**arrays})
        for array in arrays.values():
            array.flush()


def decoded(
    cache: Path,
    forms: Forms,
    decode: Callable[[Arrays], None],
    is_sound: Callable[[Arrays], bool],
) -> Arrays:
    """Reads arrays from a cache, which is filled where it is absent or damaged.

    Args:
        cache: its folder; a warning if it cannot be written to.
        forms: of the arrays.
        decode: fills arrays of those forms in place.
        is_sound: whether what was read can be what was decoded.

    Returns:
        The arrays, large ones mapped into memory.
    """
    arrays = _read_cache(cache, forms, is_sound)
    if arrays is None:
        try:
            _fill_cache(cache, forms, decode)
            arrays = _read_cache(cache, forms, is_sound)
        except OSError as error:
            warnings.warn(
                f"decoded images cannot be kept in {cache}: {error}", stacklevel=2
            )
    if arrays is None:
        arrays = {key: np.empty(*form) for key, form in forms.items()}
        decode(arrays)
    return arrays
