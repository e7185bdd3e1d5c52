"""Data sets by name: scikit-learn's digits, those of TFDS, and a person's own."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import npy_files, tfds_files
from experiments.data.source import DataError, MissingError, Source, checked
from experiments.data.tfds_files import Prepared, Rows, default_data_dir
from experiments.support import naming, registry
from experiments.support.errors import UserError
from experiments.support.suggestions import unknown


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
_PLAIN = "arrays"
"""Folder beside the versions of a data set, with its four plain arrays."""
_NUM_TEST_DIGITS = 360

_OWN: dict[str, Callable[..., Source]] = {}


def register(name: str, load: Callable[..., Source]) -> None:
    """Adds a person's own data set.

    Args:
        name: of the data set.
        load: called when it is needed, with nothing, or with ``data_dir=``, the folder
            of ``--data-dir`` or None, if it has such an argument; ``data.own`` has what
            makes sources of arrays, files and data sets of TFDS.

    Raises:
        UserError: the name is taken.
    """
    if name in ("digits", *_TFDS):
        raise UserError(f"data set {name!r}: there is one of that name")
    registry.add(_OWN, "data set", name, load)


def source_names() -> tuple[str, ...]:
    """Names that ``load_source`` takes."""
    return ("digits", *_TFDS, *_OWN)


def check_name(name: str) -> None:
    """Checks that there is a data set called ``name``.

    Raises:
        DataError: there is none; the message names a close one or all there are.
    """
    if name not in source_names():
        raise DataError(unknown("data set", name, source_names()))


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
    folder = own_folder(name, data_dir).parent / _PLAIN
    is_alone = not dataset_folder(name, data_dir).is_dir()
    return folder if is_alone and folder.is_dir() else None


def prepared_folder(name: str, data_dir: Path | None) -> Prepared:
    """Describes what is read of a data set of TFDS, and how it is prepared."""
    program = " ".join(naming.command())
    return Prepared(
        name,
        dataset_folder(name, data_dir),
        lambda folder: (
            f"{program} data prepare {name} --data-dir {folder} --from "
            "FOLDER_WITH_ARCHIVES (or --download)"
        ),
        test=_TFDS[name].test_split,
    )


def _lengths(source: Prepared) -> tuple[int, int]:
    """Rows of both splits."""
    found = tfds_files.shards(source)
    wanted = {source.train, source.test}
    if not wanted <= found.keys():
        splits = f"no splits {' and '.join(sorted(wanted))}"
        raise tfds_files.broken(source, f"dataset_info.json: {splits}")
    train, test = (
        sum(length for _, length in found[split])
        for split in (source.train, source.test)
    )
    return train, test


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
        npy_files.read_plain(name, plain, _TFDS[name].image_shape)
        return
    source = prepared_folder(name, data_dir)
    if not source.folder.is_dir():
        raise MissingError(
            f"data set {name!r} is not prepared: searched {source.folder}. Prepare it "
            f"with: {source.how(source.folder.parents[1])}"
        )
    _lengths(source)
    tfds_files.check(source)


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
    folder = own_folder(name, data_dir).parent / _PLAIN
    npy_files.write_plain(source, folder)
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


def _load_own(name: str, data_dir: Path | None) -> Source:
    load = _OWN[name]
    try:
        takes_it = "data_dir" in inspect.signature(load).parameters
        return checked(load(data_dir=data_dir) if takes_it else load())
    except (OSError, ValueError) as error:
        raise DataError(f"data set {name!r}: {error}") from error


def load_source(
    name: str, data_dir: Path | None = None, cache_dir: Path | None = None
) -> Source:
    """Loads a data set; large ones are mapped from the cache.

    Args:
        name: one of ``source_names()``.
        data_dir: folder of the TFDS data sets; see ``default_data_dir``.
        cache_dir: where decoded images are kept; see ``npy_files.default_cache_dir``.

    Returns:
        The images and labels.

    Raises:
        DataError: unknown, not prepared, or with missing or damaged files.
    """
    check_source(name, data_dir)
    if name == "digits":
        return _load_digits()
    if name in _OWN:
        return _load_own(name, data_dir)
    shape = _TFDS[name].image_shape
    if (plain := arrays_folder(name, data_dir)) is not None:
        return npy_files.read_plain(name, plain, shape)
    source = prepared_folder(name, data_dir)
    num_classes = tfds_files.num_classes_of(source)
    arrays = tfds_files.load(
        source, _lengths(source), Rows(shape), num_classes, cache_dir
    )
    return Source(**arrays, num_classes=num_classes, max_value=255)
