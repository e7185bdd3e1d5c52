"""Where images come from: scikit-learn's digits, and data sets of TFDS.

TFDS data sets are read from array_record files without TensorFlow. Decoding is slow
(about 15 s for MNIST), so its result is kept as ``.npy`` files in a cache folder.
"""

import hashlib
import json
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.errors import UserError

_TFDS_VERSIONS = {"mnist": "3.0.1", "fashion_mnist": "3.0.1"}
_IMAGE_SHAPE = (28, 28)
_BLOCK = 1024
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_NUM_TEST_DIGITS = 360


class DataError(UserError):
    """A data set is missing, broken or cannot be prepared; says what to do."""


class Source(NamedTuple):
    """Images and labels of one data set."""

    train_images: np.ndarray
    """uint8 [N, H, W]."""
    train_labels: np.ndarray
    """int32 [N]."""
    test_images: np.ndarray
    """uint8 [M, H, W]."""
    test_labels: np.ndarray
    """int32 [M]."""
    num_classes: int
    max_value: int
    """Largest pixel value, which is scaled to 1."""


def source_names() -> tuple[str, ...]:
    """Names that ``load_source`` takes."""
    return ("digits", *_TFDS_VERSIONS)


def default_data_dir() -> Path:
    """``$TFDS_DATA_DIR``, or where TFDS keeps its data sets."""
    given = os.environ.get("TFDS_DATA_DIR")
    return Path(given) if given else Path.home() / "tensorflow_datasets"


def default_cache_dir() -> Path:
    """``$LAMAML_CACHE_DIR``, or a folder in the user's cache."""
    import platformdirs

    given = os.environ.get("LAMAML_CACHE_DIR")
    return Path(given) if given else platformdirs.user_cache_path("lamaml_jax")


def check_name(name: str) -> None:
    """Checks that there is a data set called ``name``.

    Raises:
        DataError: there is none; the message lists those there are.
    """
    if name not in source_names():
        raise DataError(
            f"unknown data set {name!r}; choose one of: {', '.join(source_names())}"
        )


def dataset_folder(name: str, data_dir: Path | None) -> Path:
    """Folder in which TFDS keeps the version of ``name`` that is used here."""
    return (data_dir or default_data_dir()) / name / _TFDS_VERSIONS[name]


def _broken(name: str, folder: Path, what: str) -> DataError:
    return DataError(
        f"data set {name!r} in {folder} is broken: {what}. Remove that folder and "
        f"prepare it again: python -m experiments data prepare {name} --data-dir "
        f"{folder.parents[1]} --from FOLDER_WITH_ARCHIVES (or --download)"
    )


def _stored_otherwise(name: str, folder: Path, stored: str) -> DataError:
    """Words the case of a sound data set that other programs may be using."""
    return DataError(
        f"data set {name!r} in {folder} is stored as {stored}, which cannot be read "
        "without TensorFlow. Leave it and prepare another: python -m experiments data "
        f"prepare {name} --data-dir OTHER_FOLDER --from FOLDER_WITH_ARCHIVES (or "
        "--download)"
    )


def _shards(name: str, folder: Path) -> dict[str, list[tuple[Path, int]]]:
    """Reads from ``dataset_info.json`` the shards of each split and their rows."""
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        stored = info.get("fileFormat", "array_record")
        if stored != "array_record":
            raise _stored_otherwise(name, folder, stored)
        shards = {}
        for split in info["splits"]:
            lengths = [int(length) for length in split["shardLengths"]]
            files = [
                folder / f"{name}-{split['name']}.array_record-{i:05d}-of-"
                f"{len(lengths):05d}"
                for i in range(len(lengths))
            ]
            shards[split["name"]] = list(zip(files, lengths, strict=True))
        if not {"train", "test"} <= shards.keys():
            raise KeyError("train and test splits")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(name, folder, f"dataset_info.json: {error!r}") from error
    return shards


def _check_shard(name: str, folder: Path, shard: Path, length: int) -> None:
    """Checks that a shard is there, whole, and holds as many records as declared.

    An array_record file ends on a footer that gives its record count; a truncated file
    has none and cannot be opened.
    """
    from array_record.python import array_record_module

    if not shard.is_file():
        raise _broken(name, folder, f"{shard.name} is missing")
    try:
        reader = array_record_module.ArrayRecordReader(str(shard))
        found = reader.num_records()
        reader.close()
    except Exception as error:
        raise _broken(name, folder, f"{shard.name} cannot be read: {error}") from error
    if found != length:
        raise _broken(name, folder, f"{shard.name} has {found} of {length} records")


def check_source(name: str, data_dir: Path | None = None) -> None:
    """Checks cheaply that a data set is ready, before any long work.

    Args:
        name: one of ``source_names()``.
        data_dir: folder of the TFDS data sets; see ``default_data_dir``.

    Raises:
        DataError: unknown, not prepared, or with missing or truncated files.
    """
    check_name(name)
    if name == "digits":
        return
    folder = dataset_folder(name, data_dir)
    if not folder.is_dir():
        raise DataError(
            f"data set {name!r} is not prepared: searched {folder}. Prepare it with: "
            f"python -m experiments data prepare {name} --data-dir "
            f"{folder.parents[1]} --from FOLDER_WITH_ARCHIVES (or --download)"
        )
    for split in _shards(name, folder).values():
        for shard, length in split:
            _check_shard(name, folder, shard, length)


def _load_digits() -> Source:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = images[order].astype(np.uint8).reshape(-1, 8, 8)
    labels = labels[order].astype(np.int32)
    test, train = slice(_NUM_TEST_DIGITS), slice(_NUM_TEST_DIGITS, None)
    return Source(
        images[train], labels[train], images[test], labels[test], 10, max_value=16
    )


def _cache_folder(name: str, folder: Path, cache_dir: Path | None) -> Path:
    """Folder whose name changes whenever the prepared files do."""
    files = sorted(folder.iterdir())
    identity = [str(folder.resolve())]
    identity += [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    return (cache_dir or default_cache_dir()) / f"{name}-{digest}"


def _decode(name: str, folder: Path) -> dict[str, np.ndarray]:
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # it would ask for OpenCV
    builder = tfds.builder_from_directory(folder)
    arrays = {}
    for split in ("train", "test"):
        records = builder.as_data_source(split=split)
        images, labels = [], []
        for start in range(0, len(records), _BLOCK):
            block = range(start, min(start + _BLOCK, len(records)))
            for record in records.__getitems__(list(block)):
                images.append(record["image"][..., 0])
                labels.append(record["label"])
        arrays[f"{split}_images"] = np.stack(images).astype(np.uint8)
        arrays[f"{split}_labels"] = np.asarray(labels, np.int32)
    return arrays


def _read_cache(cache: Path, shards: dict[str, list[tuple[Path, int]]]):
    """Returns the cached arrays, or None if they are absent or not whole."""
    arrays = {}
    for key in _ARRAYS:
        try:
            arrays[key] = np.load(cache / f"{key}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        rows = sum(length for _, length in shards[key.split("_")[0]])
        is_images = key.endswith("images")
        shape = (rows, *_IMAGE_SHAPE) if is_images else (rows,)
        dtype = np.uint8 if is_images else np.int32
        if arrays[key].shape != shape or arrays[key].dtype != dtype:
            return None
    return arrays


def _write_cache(cache: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes each array under a temporary name and then moves it into place."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for key, array in arrays.items():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                np.save(Path(folder) / "array.npy", array)
                os.replace(Path(folder) / "array.npy", cache / f"{key}.npy")
    except OSError as error:
        warnings.warn(
            f"decoded images cannot be kept in {cache}: {error}", stacklevel=2
        )


def load_source(
    name: str, data_dir: Path | None = None, cache_dir: Path | None = None
) -> Source:
    """Loads a data set whole into memory.

    Args:
        name: one of ``source_names()``.
        data_dir: folder of the TFDS data sets; see ``default_data_dir``.
        cache_dir: where decoded images are kept; see ``default_cache_dir``.

    Returns:
        The images and labels.

    Raises:
        DataError: unknown, not prepared, or with missing or damaged files.
    """
    check_source(name, data_dir)
    if name == "digits":
        return _load_digits()
    folder = dataset_folder(name, data_dir)
    cache = _cache_folder(name, folder, cache_dir)
    arrays = _read_cache(cache, _shards(name, folder))
    if arrays is None:
        try:
            arrays = _decode(name, folder)
        except Exception as error:
            raise _broken(name, folder, f"cannot be decoded: {error}") from error
        _write_cache(cache, arrays)
    return Source(**arrays, num_classes=10, max_value=255)
