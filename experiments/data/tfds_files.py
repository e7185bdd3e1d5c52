"""Reads what TFDS has prepared, from array_record files, without TensorFlow."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.npy_files import Arrays, are_classes, cache_folder, decoded
from experiments.data.source import DataError, MissingError
from experiments.support.paths import check_local

_BLOCK = 1024


class Prepared(NamedTuple):
    """A folder in which TFDS has prepared a data set, and what of it is read."""

    name: str
    folder: Path
    """``DATA_DIR/NAME/VERSION``, or with a configuration between the two."""
    how: Callable[[object], str]
    """``how(data_dir)``: what a person types to prepare it in a folder."""
    train: str = "train"
    """Split of the training rows, ``"train[:80%]"`` too."""
    test: str = "test"
    image: str = "image"
    """Feature that is shown."""
    label: str = "label"


def default_data_dir() -> Path:
    """``$TFDS_DATA_DIR``, or where TFDS keeps its data sets.

    Raises:
        UserError: the variable holds the address of an object store.
    """
    given = os.environ.get("TFDS_DATA_DIR")
    check_local("TFDS_DATA_DIR", Path(given or ""))
    return Path(given) if given else Path.home() / "tensorflow_datasets"


class Rows(NamedTuple):
    """What is stored of the rows that are read."""

    shape: tuple[int, ...]
    """Of one row."""
    dtype: Any = np.uint8
    label_dtype: Any = np.int32
    label_shape: tuple[int, ...] = ()
    change: Callable[[Any], np.ndarray] | None = None
    """What is done to a row before, such as scaling; None for nothing."""
    key: str = ""
    """Tells the cache of these rows from that of the usual ones."""


def _dataset_folder(prepared: Prepared) -> Path:
    """The folder of all versions, whose name those of the files begin with."""
    return prepared.folder.parents[len(prepared.name.split("/")) - 1]


def _versions(folder: Path) -> list[tuple[int, ...]]:
    """Versions that are prepared in a folder, oldest first."""
    found = [each.parent.name for each in folder.glob("*/dataset_info.json")]
    numbers = [name.split(".") for name in found if re.fullmatch(r"\d+(\.\d+)*", name)]
    return sorted(tuple(map(int, each)) for each in numbers)


def _how(name: str, folder: object) -> str:
    call = f'tfds.builder("{name}", data_dir="{folder}", file_format="array_record")'
    return (
        f"import tensorflow_datasets as tfds; {call}.download_and_prepare() (in "
        "Python, with TensorFlow for most data sets)"
    )


def find(name: str, data_dir: Path | None) -> Prepared:
    """Finds a data set that TFDS has prepared.

    Args:
        name: ``"NAME"``, ``"NAME/CONFIG"`` or either with ``":VERSION"``.
        data_dir: folder of the data sets; see ``default_data_dir``.

    Returns:
        The folder of its version, the newest if ``name`` gives none.

    Raises:
        MissingError: it is not prepared.
        DataError: it has several configurations, and ``name`` gives none.
    """
    path, _, version = name.partition(":")
    base = data_dir or default_data_dir()
    folder = base / path
    found = _versions(folder)
    configs = sorted(
        each.name for each in folder.glob("*") if each.is_dir() and _versions(each)
    )
    if not found and configs:
        raise DataError(
            f"data set {name!r}: say which configuration: "
            + " or ".join(repr(f"{path}/{each}") for each in configs)
        )
    names = [".".join(map(str, each)) for each in found]
    if not names or (version and version not in names):
        there = f", where there is version {', '.join(names)}" if names else ""
        raise MissingError(
            f"data set {name!r} is not prepared: searched {folder}{there}. Prepare it "
            f"by: {_how(name, base)}"
        )
    chosen = version or names[-1]
    return Prepared(path, folder / chosen, lambda to: _how(name, to))


def broken(prepared: Prepared, what: str) -> DataError:
    """Words what is wrong with a prepared data set, and what to do."""
    how = prepared.how(_dataset_folder(prepared).parent)
    return DataError(
        f"data set {prepared.name!r} in {prepared.folder} is broken: {what}. Remove "
        f"that folder and prepare it again: {how}"
    )


def _stored_otherwise(prepared: Prepared, stored: str) -> DataError:
    """Words the case of a sound data set that other programs may be using."""
    return DataError(
        f"data set {prepared.name!r} in {prepared.folder} is stored as {stored}, which "
        "cannot be read without TensorFlow. Leave it and prepare another: "
        f"{prepared.how('OTHER_FOLDER')}"
    )


def shards(prepared: Prepared) -> dict[str, list[tuple[Path, int]]]:
    """Reads from ``dataset_info.json`` the shards of each split and their rows.

    Raises:
        DataError: it cannot be read, or the data are not in array_record files.
    """
    folder = prepared.folder
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        stored = info.get("fileFormat", "array_record")
        if stored != "array_record":
            raise _stored_otherwise(prepared, stored)
        stem = _dataset_folder(prepared).name
        found = {}
        for split in info["splits"]:
            lengths = [int(length) for length in split["shardLengths"]]
            files = [
                folder / f"{stem}-{split['name']}.array_record-{i:05d}-of-"
                f"{len(lengths):05d}"
                for i in range(len(lengths))
            ]
            found[split["name"]] = list(zip(files, lengths, strict=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken(prepared, f"dataset_info.json: {error!r}") from error
    return found


def _check_shard(prepared: Prepared, shard: Path, length: int) -> None:
    """Checks that a shard is there, whole, and holds as many records as declared.

    An array_record file ends on a footer that gives its record count; a truncated file
    has none and cannot be opened.
    """
    from array_record.python import array_record_module  # pyright: ignore

    if not shard.is_file():
        raise broken(prepared, f"{shard.name} is missing")
    try:
        reader = array_record_module.ArrayRecordReader(str(shard))
        found = reader.num_records()
        reader.close()
    except Exception as error:
        raise broken(prepared, f"{shard.name} cannot be read: {error}") from error
    if found != length:
        raise broken(prepared, f"{shard.name} has {found} of {length} records")


def check(prepared: Prepared) -> None:
    """Checks cheaply that a data set is whole, before any long work.

    Raises:
        DataError: missing or truncated files, or a format that needs TensorFlow.
    """
    for split in shards(prepared).values():
        for shard, length in split:
            _check_shard(prepared, shard, length)


def num_classes_of(prepared: Prepared) -> int:
    """Reads from ``features.json`` how many classes there are.

    Raises:
        DataError: it cannot be read.
    """
    try:
        features = json.loads((prepared.folder / "features.json").read_text())
        label = features["featuresDict"]["features"][prepared.label]
        return int(label["classLabel"]["numClasses"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise broken(prepared, f"features.json: {error!r}") from error


def builder_of(prepared: Prepared) -> Any:
    """Makes TFDS's read-only builder of a prepared folder."""
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # it would ask for OpenCV
    return tfds.builder_from_directory(prepared.folder)


def _decode(
    prepared: Prepared, arrays: Arrays, change: Callable[[Any], Any] | None
) -> None:
    """Decodes both splits, block by block, into arrays of the right form."""
    builder = builder_of(prepared)
    for part, split in (("train", prepared.train), ("test", prepared.test)):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        records = builder.as_data_source(split=split)
        if len(records) != len(labels):
            raise ValueError(f"{split} has {len(records)} of {len(labels)} records")
        for start in range(0, len(records), _BLOCK):
            block = range(start, min(start + _BLOCK, len(records)))
            for i, record in zip(block, records.__getitems__(list(block)), strict=True):
                image = record[prepared.image]
                image = image if change is None else change(image)
                images[i] = np.reshape(image, images.shape[1:])
                label = record[prepared.label]
                labels[i] = np.reshape(label, labels.shape[1:])


def load(
    prepared: Prepared,
    lengths: tuple[int, int],
    rows: Rows,
    num_classes: int | None,
    cache_dir: Path | None,
) -> Arrays:
    """Decodes a data set, or reads what was decoded before.

    Args:
        prepared: what of which folder.
        lengths: rows for training and for the test.
        rows: what is stored of them.
        num_classes: Y; None where any label will do.
        cache_dir: where decoded rows are kept; see ``npy_files.default_cache_dir``.

    Returns:
        The four arrays.

    Raises:
        DataError: they cannot be decoded, or labels are out of range.
    """
    forms = {}
    for part, length in zip(("train", "test"), lengths, strict=True):
        forms[f"{part}_images"] = ((length, *rows.shape), rows.dtype)
        forms[f"{part}_labels"] = ((length, *rows.label_shape), rows.label_dtype)

    def is_sound(arrays: Arrays) -> bool:
        return num_classes is None or are_classes(arrays, num_classes)

    name = prepared.name.replace("/", "-")
    cache = cache_folder(name, prepared.folder, cache_dir, rows.key)
    decode = lambda arrays: _decode(prepared, arrays, rows.change)
    try:
        arrays = decoded(cache, forms, decode, is_sound)
    except Exception as error:  # of no common type: records, pixels, labels
        raise broken(prepared, f"cannot be decoded: {error}") from error
    if not is_sound(arrays):
        raise broken(prepared, f"labels beyond the {num_classes} classes")
    return arrays
