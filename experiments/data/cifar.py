"""Reads CIFAR-100's archive for its official TFDS builder, without TensorFlow."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.data.source import DataError

_FOLDER, _ARCHIVE = "cifar-100-binary", "cifar-100-binary.tar.gz"
_LABEL_FILES = {
    "coarse_label": "coarse_label_names.txt",
    "label": "fine_label_names.txt",
}
_NUM_CLASSES = {"coarse_label": 20, "label": 100}
_RECORD = 2 + 3 * 32 * 32


class Archive(NamedTuple):
    """What the archive holds."""

    splits: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    """By split: images uint8 [N, 32, 32, 3], fine and coarse labels [N]."""
    names: dict[str, list[str]]
    """Names of the classes of ``label`` and ``coarse_label``."""


def _files_of_tar(path: Path) -> Callable[[str], bytes]:
    """Reads members in memory; nothing is unpacked to disk."""
    wanted = {"train.bin", "test.bin", *_LABEL_FILES.values()}
    contents = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                file = archive.extractfile(member) if name in wanted else None
                if file is not None:
                    contents[name] = file.read()
    except Exception as error:  # damaged ones end in errors of many types
        raise DataError(f"{path} is no whole archive: {error}") from error

    def read(name: str) -> bytes:
        if name not in contents:
            raise DataError(f"{path}: {_FOLDER}/{name} is not in it")
        return contents[name]

    return read


def _files_of_folder(folder: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read: {error}") from error

    return read


def _split(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not data or len(data) % _RECORD:
        raise DataError(
            f"{where}: expected records of {_RECORD} bytes, found {len(data)} bytes"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    coarse, fine = records[:, 0], records[:, 1]
    for name, labels in (("coarse_label", coarse), ("label", fine)):
        if labels.max() >= _NUM_CLASSES[name]:
            raise DataError(
                f"{where}: {name} must be below {_NUM_CLASSES[name]}, found "
                f"{labels.max()}"
            )
    images = records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, fine, coarse


def read(path: Path) -> Archive:
    """Reads the archive.

    Args:
        path: the ``.tar.gz``, a folder that holds it, the folder that it unpacks to,
            or one that holds that.

    Returns:
        Its images, labels and names of classes.

    Raises:
        DataError: it is absent, damaged, or of another form.
    """
    places = [path, path / _ARCHIVE, path / _FOLDER]
    if path.is_file():
        files = _files_of_tar(path)
    elif (path / _ARCHIVE).is_file():
        files = _files_of_tar(path / _ARCHIVE)
    else:
        found = [p for p in (path / _FOLDER, path) if (p / "train.bin").is_file()]
        if not found:
            raise DataError(
                f"none of {', '.join(map(str, places))} is CIFAR-100's archive or the "
                "folder that it unpacks to"
            )
        files = _files_of_folder(found[0])
    splits = {
        split: _split(files(f"{split}.bin"), f"{path}, {split}.bin")
        for split in ("train", "test")
    }
    names = {}
    for key, file in _LABEL_FILES.items():
        names[key] = files(file).decode(errors="replace").split()
        if len(names[key]) != _NUM_CLASSES[key]:
            raise DataError(
                f"{path}, {file}: expected {_NUM_CLASSES[key]} names, found "
                f"{len(names[key])}"
            )
    return Archive(splits, names)


def _png(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
    buffer.seek(0)
    return buffer


def builder_class(archives: Path | None) -> Any:
    """Subclasses the official builder: the same data set, read by ``read``.

    Args:
        archives: as ``path`` of ``read``; None downloads the archive.

    Returns:
        A builder class that can prepare without TensorFlow.

    Raises:
        DataError: what ``read`` raises.
    """
    import tensorflow_datasets as tfds

    official: Any = tfds.builder_cls("cifar100")
    given = None if archives is None else read(archives)

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Iterator[Any]]:
        archive = given
        if archive is None:
            url = self._cifar_info.url
            try:
                path = dl_manager.download(url)
            except Exception as error:  # of no common type: network, checksum, disk
                raise DataError(f"{url} cannot be fetched: {error}") from error
            archive = read(Path(path))
        for key, names in archive.names.items():
            self.info.features[key].names = names
        return {
            split: self._generate_examples(split, *arrays)
            for split, arrays in archive.splits.items()
        }

    def generate_examples(
        self: Any, split: str, images: np.ndarray, fine: np.ndarray, coarse: np.ndarray
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        del self
        for i, image in enumerate(images):
            key = f"{split}_{i:05d}"
            yield (
                key,
                {
                    "id": key,
                    "image": _png(image),
                    "label": int(fine[i]),
                    "coarse_label": int(coarse[i]),
                },
            )

    members = {
        "name": "cifar100",
        "VERSION": official.VERSION,
        "url_infos": official.url_infos,
        "__module__": official.__module__,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
    }
    return type("cifar100", (official,), members, skip_registration=True)
