"""Prepares data sets for TFDS from their archives, without TensorFlow.

The official builders cannot prepare these data sets without TensorFlow. A subclass that
only replaces their reading of the archives can, and the official builders read what it
writes.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.data import cifar, sources, tiny_imagenet
from experiments.data.source import DataError

_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049
_STEMS = {
    "train": ("train-images", "train-labels"),
    "test": ("t10k-images", "t10k-labels"),
}


def _archive_names(stem: str) -> list[str]:
    kind = "idx3-ubyte" if stem.endswith("images") else "idx1-ubyte"
    names = [f"{stem}-{kind}", f"{stem}.{kind}"]
    return [name + ending for ending in (".gz", "") for name in names]


def _read_idx(path: Path) -> np.ndarray:
    """Reads one idx file, gzipped or not, and checks that it is whole.

    Raises:
        DataError: it is no idx file of bytes, or is short, long or damaged.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        (magic,) = struct.unpack_from(">I", data)
        if magic not in (_IMAGES_MAGIC, _LABELS_MAGIC):
            raise ValueError(f"magic number {magic} is not that of images or labels")
        rank = magic % 256
        shape = struct.unpack_from(f">{rank}I", data, 4)
        content = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
        return content.reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path} is no whole idx archive: {error}") from error


def _checked(images: np.ndarray, labels: np.ndarray, where: str) -> None:
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.ndim != 1:
        raise DataError(
            f"{where}: expected images [N, 28, 28] and labels [N], found "
            f"{images.shape} and {labels.shape}"
        )
    if len(images) != len(labels) or len(images) == 0:
        raise DataError(f"{where}: found {len(images)} images, {len(labels)} labels")
    if labels.max() > 9:
        raise DataError(f"{where}: labels must be 0 to 9, found {labels.max()}")


def _read_folder(archives: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the four archives of a folder.

    Raises:
        DataError: one is missing, damaged or does not fit the others.
    """
    splits = {}
    for split, stems in _STEMS.items():
        arrays = []
        for stem in stems:
            names = _archive_names(stem)
            found = [archives / name for name in names if (archives / name).is_file()]
            if not found:
                raise DataError(f"{archives}: none of {', '.join(names)} is there")
            arrays.append(_read_idx(found[0]))
        _checked(arrays[0], arrays[1], f"{archives}, {split}")
        splits[split] = (arrays[0], arrays[1])
    return splits


def _png(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    buffer.seek(0)
    return buffer


def _builder_class(
    name: str, read: Callable[[Any], dict[str, tuple[np.ndarray, np.ndarray]]]
) -> Any:
    """Subclasses the official builder: the same data set, read by ``read``."""
    import tensorflow_datasets as tfds

    official: Any = tfds.builder_cls(name)

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {
            split: self._generate_examples(*arrays)
            for split, arrays in read(dl_manager).items()
        }

    def generate_examples(
        self: Any, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        del self
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _png(image), "label": int(label)}

    members = {
        "name": name,
        "VERSION": official.VERSION,
        "url_infos": official.url_infos,
        "__module__": official.__module__,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
    }
    return type(name, (official,), members, skip_registration=True)


def _downloaded(url: str, dl_manager: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    splits = {}
    for split, stems in _STEMS.items():
        urls = [url + _archive_names(stem)[0] for stem in stems]
        try:
            paths = [dl_manager.download(each) for each in urls]
        except Exception as error:  # of no common type: network, checksum, disk
            raise DataError(f"{', '.join(urls)} cannot be fetched: {error}") from error
        images, labels = (_read_idx(Path(path)) for path in paths)
        _checked(images, labels, f"{url}, {split}")
        splits[split] = (images, labels)
    return splits


def _idx_builder_class(name: str, archives: Path | None) -> Any:
    if archives is not None:
        splits = _read_folder(archives)
        return _builder_class(name, lambda dl_manager: splits)
    made = _builder_class(name, lambda dl_manager: _downloaded(made.URL, dl_manager))
    return made


_FOUR_FILES = "the four *-ubyte.gz files"
_ARCHIVES = {
    "mnist": _FOUR_FILES,
    "fashion_mnist": _FOUR_FILES,
    "cifar100": "cifar-100-binary.tar.gz",
    "tiny_imagenet": "tiny-imagenet-200.zip",
}
_OWN_READERS: dict[str, Callable[[Path | None], Any]] = {
    "cifar100": cifar.builder_class,
    "tiny_imagenet": tiny_imagenet.builder_class,
}


def prepare(
    name: str,
    data_dir: Path | None = None,
    archives: Path | None = None,
    download: bool = False,
) -> Path:
    """Prepares a data set as array_record files that the official builder reads.

    Args:
        name: a data set of ``sources.source_names()`` other than the digits.
        data_dir: folder of the TFDS data sets; see ``sources.default_data_dir``.
        archives: folder with the original archives: the four idx files, gzipped or
            not; CIFAR-100's ``.tar.gz``; Tiny ImageNet's ``.zip``; or what those unpack
            to.
        download: fetch the archives from their home instead.

    Returns:
        The prepared folder; an existing whole one is left as it is.

    Raises:
        DataError: an unknown data set, no source given, archives that are missing or
            damaged, or a folder that cannot be written.
    """
    if name == "digits":
        raise DataError("digits ship with scikit-learn; there is nothing to prepare")
    sources.check_name(name)
    folder = sources.own_folder(name, data_dir)
    if folder.exists():
        sources.check_source(name, data_dir)
        return folder
    if (archives is None) == (not download):
        raise DataError(
            f"{name}: say where its archives are: --from FOLDER with "
            f"{_ARCHIVES[name]}, or --download to fetch them"
        )
    if name in _OWN_READERS:
        builder_class = _OWN_READERS[name](archives)
    else:
        builder_class = _idx_builder_class(name, archives)
    try:
        builder = builder_class(
            data_dir=str(folder.parents[1]), file_format="array_record"
        )
        builder.download_and_prepare()
    except OSError as error:
        raise DataError(f"{name} cannot be prepared in {folder}: {error}") from error
    sources.check_source(name, data_dir)
    return folder
