"""A TFDS builder of Tiny ImageNet, which TFDS does not have; needs no TensorFlow."""

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from experiments.data.source import DataError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_FOLDER = "tiny-imagenet-200"
_SIZE = (64, 64)


class Files(NamedTuple):
    """A folder, unpacked or in a zip file."""

    where: Path
    names: Sequence[str]
    """Paths of all files, relative to the folder that holds wnids.txt."""
    read: Callable[[str], bytes]


class Examples(NamedTuple):
    """What is to be stored."""

    wnids: list[str]
    """WordNet ids of the classes, in the order of wnids.txt."""
    splits: dict[str, list[tuple[str, str]]]
    """By split: path and WordNet id of every image."""


def _files_of_zip(path: Path) -> Files:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damaged ones end in errors of many types
        raise DataError(f"{path} is no whole zip file: {error}") from error
    names = [name for name in archive.namelist() if not name.endswith("/")]
    roots = {n.removesuffix("wnids.txt") for n in names if n.endswith("wnids.txt")}
    if len(roots) != 1:
        raise DataError(f"{path}: expected one wnids.txt in it, found {len(roots)}")
    (root,) = roots

    def read(name: str) -> bytes:
        try:
            return archive.read(root + name)
        except Exception as error:  # as above
            raise DataError(f"{path}: {root}{name} cannot be read: {error}") from error

    inside = [name.removeprefix(root) for name in names if name.startswith(root)]
    return Files(path, inside, read)


def _files_of_folder(folder: Path) -> Files:
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]

    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read: {error}") from error

    return Files(folder, names, read)


def find_files(path: Path) -> Files:
    """Finds the data set.

    Args:
        path: the zip file, a folder that holds it, the folder that it unpacks to, or
            one that holds that.

    Returns:
        Its files.

    Raises:
        DataError: it is not there, or is no whole zip file.
    """
    if path.is_file():
        return _files_of_zip(path)
    if (path / f"{_FOLDER}.zip").is_file():
        return _files_of_zip(path / f"{_FOLDER}.zip")
    for folder in (path / _FOLDER, path):
        if (folder / "wnids.txt").is_file():
            return _files_of_folder(folder)
    raise DataError(
        f"none of {path / f'{_FOLDER}.zip'}, {path / _FOLDER}, {path} is the zip file "
        "of Tiny ImageNet or the folder that it unpacks to"
    )


def list_examples(files: Files) -> Examples:
    """Lists the images of both splits in an order that depends on nothing else.

    Args:
        files: from ``find_files``.

    Returns:
        Classes and images.

    Raises:
        DataError: a file is missing or an image has no known class.
    """
    wnids = files.read("wnids.txt").decode(errors="replace").split()
    if not wnids or len(set(wnids)) < len(wnids):
        raise DataError(f"{files.where}: wnids.txt names no class, or one twice")
    by_class: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for name in sorted(files.names):
        parts = name.split("/")
        if (
            len(parts) == 4
            and parts[::2] == ["train", "images"]
            and parts[1] in by_class
        ):
            if name.endswith(".JPEG"):
                by_class[parts[1]].append(name)
    for wnid, names in by_class.items():
        if not names:
            raise DataError(f"{files.where}: train/{wnid}/images holds no image")
    train = [(name, wnid) for wnid, names in by_class.items() for name in names]
    present, validation = set(files.names), []
    lines = files.read("val/val_annotations.txt").decode(errors="replace").splitlines()
    for number, line in enumerate(filter(None, lines), start=1):
        image, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        name = f"val/images/{image}"
        if wnid not in by_class or name not in present:
            raise DataError(
                f"{files.where}: val_annotations.txt, line {number}: no image {name!r} "
                f"or no class {wnid!r}"
            )
        validation.append((name, wnid))
    if not validation:
        raise DataError(f"{files.where}: val_annotations.txt names no image")
    return Examples(wnids, {"train": train, "validation": validation})


def _checked(data: bytes, name: str) -> io.BytesIO:
    try:
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
    except Exception as error:  # of no common type
        raise DataError(f"{name} is no image: {error}") from error
    if size != _SIZE:
        raise DataError(f"{name}: expected 64 x 64 pixels, found {size}")
    return io.BytesIO(data)


def builder_class(archives: Path | None) -> Any:
    """Makes the builder: JPEG bytes as they are, labels in the order of wnids.txt.

    Args:
        archives: as ``path`` of ``find_files``; None downloads the zip file, whose 200
            classes are then those that are stored.

    Returns:
        A builder class with splits ``train`` and ``validation``.

    Raises:
        DataError: what ``find_files`` and ``list_examples`` raise.
    """
    import tensorflow_datasets as tfds

    found = None if archives is None else find_files(archives)
    listed = None if found is None else list_examples(found)

    def info(self: Any) -> Any:
        classes = (
            tfds.features.ClassLabel(num_classes=200)
            if listed is None
            else tfds.features.ClassLabel(names=listed.wnids)
        )
        image = tfds.features.Image(shape=(*_SIZE, 3), encoding_format="jpeg")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiny ImageNet: 64 x 64 pixels, up to 200 classes of ImageNet.",
            features=tfds.features.FeaturesDict({"image": image, "label": classes}),
            supervised_keys=("image", "label"),
        )

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Iterator[Any]]:
        files, examples = found, listed
        if files is None or examples is None:
            try:
                path = dl_manager.download(URL)
            except Exception as error:  # of no common type: network, disk
                raise DataError(f"{URL} cannot be fetched: {error}") from error
            files = find_files(Path(path))
            examples = list_examples(files)
            self.info.features["label"].names = examples.wnids
        return {
            split: self._generate_examples(files, rows)
            for split, rows in examples.splits.items()
        }

    def generate_examples(
        self: Any, files: Files, rows: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        del self
        for index, (name, wnid) in enumerate(rows):
            yield index, {"image": _checked(files.read(name), name), "label": wnid}

    members = {
        "name": "tiny_imagenet",
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
    }
    base = tfds.core.GeneratorBasedBuilder
    return type("tiny_imagenet", (base,), members, skip_registration=True)
