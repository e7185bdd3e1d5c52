"""Where images come from: scikit-learn's digits, data sets of TFDS, plain arrays.

TFDS data sets are read from array_record files without TensorFlow. Decoding is slow
(about 15 s for MNIST), so its result is kept as ``.npy`` files in a cache folder, from
where large ones are mapped into memory. A folder of such files can also stand for the
data set itself, where TFDS is not installed.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.support import naming, registry
from experiments.support.errors import UserError
from experiments.support.paths import check_local
from experiments.support.suggestions import did_you_mean


class _TfdsForm(NamedTuple):
    """What is known of a data set of TFDS before it is read."""

    version: str
    image_shape: tuple[int, ...]
    test_split: str = "test"
    stand_ins: tuple[str, ...] = ()
    """Names under which a part of it may be prepared instead."""


_TFDS = {
    "mnist": _TfdsForm("3.0.1", (28, 28)),
    "fashion_mnist": _TfdsForm("3.0.1", (28, 28)),
    "cifar100": _TfdsForm("3.0.2", (32, 32, 3)),
    "tiny_imagenet": _TfdsForm(
        "1.0.0", (64, 64, 3), "validation", stand_ins=("tiny_imagenet100",)
    ),
}
_ARRAYS = "arrays"
"""Folder beside the versions of a data set, with its four plain arrays."""
_BLOCK = 1024
# Larger arrays are mapped into memory. Smaller ones are read: a mapped file must not be
# changed while it is in use.
_MAPPED_BYTES = 2**28
_NUM_TEST_DIGITS = 360


class DataError(UserError):
    """A data set is missing, broken or cannot be prepared; says what to do."""


class MissingError(DataError):
    """A data set is not prepared; says how it is."""


class Source(NamedTuple):
    """Images and labels of one data set; a person's own may have rows of any shape."""

    train_images: np.ndarray
    """uint8 [N, H, W], or [N, H, W, 3] of colour images; a person's own uint8 or
    float32 [N, ...]."""
    train_labels: np.ndarray
    """int32 [N]."""
    test_images: np.ndarray
    """uint8 [M, ...] like ``train_images``."""
    test_labels: np.ndarray
    """int32 [M]."""
    num_classes: int
    max_value: float
    """Largest pixel value, which is scaled to 1."""


_OWN: dict[str, Callable[[], Source]] = {}


def register(name: str, load: Callable[[], Source]) -> None:
    """Adds a person's own data set.

    Args:
        name: of the data set.
        load: called when it is needed, with nothing; ``data.own`` has what makes
            sources of arrays and files.

    Raises:
        UserError: the name is taken.
    """
    if name in ("digits", *_TFDS):
        raise UserError(f"data set {name!r}: there is one of that name")
    registry.add(_OWN, "data set", name, load)


_KEYS = Source._fields[:4]
"""The arrays."""


def source_names() -> tuple[str, ...]:
    """Names that ``load_source`` takes."""
    return ("digits", *_TFDS, *_OWN)


def default_data_dir() -> Path:
    """``$TFDS_DATA_DIR``, or where TFDS keeps its data sets.

    Raises:
        UserError: the variable holds the address of an object store.
    """
    given = os.environ.get("TFDS_DATA_DIR")
    check_local("TFDS_DATA_DIR", Path(given or ""))
    return Path(given) if given else Path.home() / "tensorflow_datasets"


def default_cache_dir() -> Path:
    """``$LAMAML_CACHE_DIR``, or a folder in the user's cache."""
    import platformdirs

    given = os.environ.get("LAMAML_CACHE_DIR")
    check_local("LAMAML_CACHE_DIR", Path(given or ""))
    return Path(given) if given else platformdirs.user_cache_path("lamaml_jax")


def check_name(name: str) -> None:
    """Checks that there is a data set called ``name``.

    Raises:
        DataError: there is none; the message names a close one or all there are.
    """
    if name not in source_names():
        known = f"; choose one of: {', '.join(source_names())}"
        hint = did_you_mean(name, source_names())
        raise DataError(f"unknown data set {name!r}{hint or known}")


def own_folder(name: str, data_dir: Path | None) -> Path:
    """Folder in which TFDS keeps the version of ``name`` that is used here."""
    return (data_dir or default_data_dir()) / name / _TFDS[name].version


def dataset_folder(name: str, data_dir: Path | None) -> Path:
    """Folder to read: the data set's own, or a stand-in's if only that is there."""
    own = own_folder(name, data_dir)
    for stand_in in _TFDS[name].stand_ins:
        other = own.parents[1] / stand_in / own.name
        if other.is_dir() and not own.is_dir():
            return other
    return own


def arrays_folder(name: str, data_dir: Path | None) -> Path | None:
    """Folder of the plain arrays of ``name``, or None unless they are what is there."""
    folder = own_folder(name, data_dir).parent / _ARRAYS
    is_alone = not dataset_folder(name, data_dir).is_dir()
    return folder if is_alone and folder.is_dir() else None


def _program() -> str:
    return " ".join(naming.command())


def _broken(name: str, folder: Path, what: str) -> DataError:
    return DataError(
        f"data set {name!r} in {folder} is broken: {what}. Remove that folder and "
        f"prepare it again: {_program()} data prepare {name} --data-dir "
        f"{folder.parents[1]} --from FOLDER_WITH_ARCHIVES (or --download)"
    )


def _stored_otherwise(name: str, folder: Path, stored: str) -> DataError:
    """Words the case of a sound data set that other programs may be using."""
    return DataError(
        f"data set {name!r} in {folder} is stored as {stored}, which cannot be read "
        f"without TensorFlow. Leave it and prepare another: {_program()} data "
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
                folder
                / f"{folder.parent.name}-{split['name']}.array_record-{i:05d}-of-"
                f"{len(lengths):05d}"
                for i in range(len(lengths))
            ]
            shards[split["name"]] = list(zip(files, lengths, strict=True))
        wanted = {"train", _TFDS[name].test_split}
        if not wanted <= shards.keys():
            raise KeyError(f"splits {' and '.join(sorted(wanted))}")
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
    if name == "digits" or name in _OWN:
        return
    if (plain := arrays_folder(name, data_dir)) is not None:
        _read_arrays(name, plain)
        return
    folder = dataset_folder(name, data_dir)
    if not folder.is_dir():
        raise MissingError(
            f"data set {name!r} is not prepared: searched {folder}. Prepare it with: "
            f"{_program()} data prepare {name} --data-dir "
            f"{folder.parents[1]} --from FOLDER_WITH_ARCHIVES (or --download)"
        )
    for split in _shards(name, folder).values():
        for shard, length in split:
            _check_shard(name, folder, shard, length)


def _read_arrays(name: str, folder: Path) -> Source:
    """Maps the plain arrays of a data set into memory.

    Raises:
        DataError: one is missing, damaged, or not of the form of this data set.
    """
    shape = _TFDS[name].image_shape
    arrays = {}
    for part in ("train", "test"):
        for kind, rest, dtype in (("images", shape, "uint8"), ("labels", (), "int32")):
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
    if not _are_classes(arrays, num_classes):
        raise DataError(
            f"data set {name!r}: {folder}: labels beyond the {num_classes} classes of "
            "the training rows"
        )
    return Source(**arrays, num_classes=num_classes, max_value=255)


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
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


def write_arrays(source: Source, name: str, data_dir: Path) -> Path:
    """Writes a data set as plain arrays, which are read where nothing else is.

    Args:
        source: from ``load_source``.
        name: of a data set of TFDS.
        data_dir: another folder of data sets.

    Returns:
        The folder of the four ``.npy`` files.

    Raises:
        DataError: no such data set, or one that needs no files.
        UserError: the files cannot be written.
    """
    check_name(name)
    if name == "digits":
        raise DataError("data set 'digits' comes with scikit-learn and needs no files")
    if name in _OWN:
        raise DataError(f"data set {name!r} is your own and needs no such files")
    folder = own_folder(name, data_dir).parent / _ARRAYS
    try:
        with _replacing(folder) as part:
            for key in _KEYS:
                np.save(part / f"{key}.npy", getattr(source, key))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error
    return folder


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


def _load_own(name: str) -> Source:
    from experiments.data.own import checked

    try:
        return checked(_OWN[name]())
    except (OSError, ValueError) as error:
        raise DataError(f"data set {name!r}: {error}") from error


def _cache_folder(name: str, folder: Path, cache_dir: Path | None) -> Path:
    """Folder whose name changes whenever the prepared files do."""
    files = sorted(folder.iterdir())
    identity = [str(folder.resolve())]
    identity += [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    return (cache_dir or default_cache_dir()) / f"{name}-{digest}"


def _num_classes(name: str, folder: Path) -> int:
    """Reads from ``features.json`` how many classes there are."""
    try:
        features = json.loads((folder / "features.json").read_text())
        label = features["featuresDict"]["features"]["label"]
        return int(label["classLabel"]["numClasses"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(name, folder, f"features.json: {error!r}") from error


def _forms(name: str, folder: Path) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shapes and dtypes of the four arrays of a data set."""
    shards = _shards(name, folder)
    forms = {}
    for part, split in (("train", "train"), ("test", _TFDS[name].test_split)):
        rows = sum(length for _, length in shards[split])
        forms[f"{part}_images"] = ((rows, *_TFDS[name].image_shape), np.uint8)
        forms[f"{part}_labels"] = ((rows,), np.int32)
    return forms


def _decode(name: str, folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Decodes both splits, block by block, into arrays of the right form."""
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # it would ask for OpenCV
    builder = tfds.builder_from_directory(folder)
    is_grey = len(_TFDS[name].image_shape) == 2
    for part, split in (("train", "train"), ("test", _TFDS[name].test_split)):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        records = builder.as_data_source(split=split)
        if len(records) != len(labels):
            raise ValueError(f"{split} has {len(records)} of {len(labels)} records")
        for start in range(0, len(records), _BLOCK):
            block = range(start, min(start + _BLOCK, len(records)))
            for i, record in zip(block, records.__getitems__(list(block)), strict=True):
                images[i] = record["image"][..., 0] if is_grey else record["image"]
                labels[i] = record["label"]


def _are_classes(arrays: dict[str, np.ndarray], num_classes: int) -> bool:
    """Tells whether all labels are in [0, num_classes)."""
    labels = arrays["train_labels"], arrays["test_labels"]
    return all(
        each.min(initial=0) >= 0 and each.max(initial=0) < num_classes
        for each in labels
    )


def _read_cache(
    cache: Path, forms: dict[str, Any], num_classes: int
) -> dict[str, np.ndarray] | None:
    """Returns the cached arrays, or None if they are absent or not whole."""
    arrays = {}
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
    return arrays if _are_classes(arrays, num_classes) else None


def _fill_cache(name: str, folder: Path, cache: Path, forms: dict[str, Any]) -> None:
    """Decodes into files under temporary names, then moves them into place.

    Raises:
        OSError: the cache cannot be written to.
    """
    with _replacing(cache) as part:
        arrays = {
            key: np.lib.format.open_memmap(
                part / f"{key}.npy", mode="w+", dtype=dtype, shape=shape
            )
            for key, (shape, dtype) in forms.items()
        }
        _decode(name, folder, arrays)
        for array in arrays.values():
            array.flush()


def load_source(
    name: str, data_dir: Path | None = None, cache_dir: Path | None = None
) -> Source:
    """Loads a data set; large ones are mapped from the cache.

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
    if name in _OWN:
        return _load_own(name)
    if (plain := arrays_folder(name, data_dir)) is not None:
        return _read_arrays(name, plain)
    folder = dataset_folder(name, data_dir)
    forms, num_classes = _forms(name, folder), _num_classes(name, folder)
    cache = _cache_folder(name, folder, cache_dir)
    arrays = _read_cache(cache, forms, num_classes)
    try:
        if arrays is None:
            try:
                _fill_cache(name, folder, cache, forms)
                arrays = _read_cache(cache, forms, num_classes)
            except OSError as error:
                warnings.warn(
                    f"decoded images cannot be kept in {cache}: {error}", stacklevel=2
                )
        if arrays is None:
            arrays = {key: np.empty(*form) for key, form in forms.items()}
            _decode(name, folder, arrays)
    except Exception as error:  # of no common type: records, pixels, labels
        raise _broken(name, folder, f"cannot be decoded: {error}") from error
    if not _are_classes(arrays, num_classes):
        raise _broken(name, folder, f"labels beyond the {num_classes} classes")
    return Source(**arrays, num_classes=num_classes, max_value=255)
