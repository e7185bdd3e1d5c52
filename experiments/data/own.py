"""Data sets of a person's own: arrays, an ``.npz``, a folder of images, of TFDS."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.data import tfds_features, tfds_files
from experiments.data.source import Source, checked

_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
_OTHER_KEYS = ("x_train", "y_train", "x_test", "y_test")
_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def from_arrays(
    train_images: Any,
    train_labels: Any,
    test_images: Any,
    test_labels: Any,
    *,
    max_value: float | None = None,
    num_classes: int | None = None,
) -> Source:
    """Makes a data set of arrays in memory.

    Args:
        train_images: [N, ...] images [H, W] or [H, W, C], feature vectors [D], or rows
            of any other shape, of numbers or bools. uint8 stays as it is until it is
            shown; everything else becomes float32.
        train_labels: [N] integers from 0, or words, which are numbered in their order;
            or real targets, floats [N] or [N, Y], of a benchmark that names a ``loss``
            and a ``metric`` of ``data.targets``.
        test_images: [M, ...] of the same shape.
        test_labels: [M], likewise.
        max_value: what is scaled to 1; 255 for uint8, else 1, if None.
        num_classes: Y; one more than the largest label if None. Targets tell theirs.

    Returns:
        The data set.

    Raises:
        ValueError: shapes or numbers of rows disagree, a value is not finite, or a test
            label is of no training row.

    >>> import numpy as np
    >>> source = from_arrays(np.eye(4), list("abba"), np.eye(4)[:1], ["b"])
    >>> source.train_labels, source.num_classes, source.train_images.dtype
    (array([0, 1, 1, 0], dtype=int32), 2, dtype('float32'))
    """
    labels = _numbered(np.asarray(train_labels), np.asarray(test_labels))
    if labels[0].dtype == np.float32:
        num_outputs = labels[0].shape[1]
    else:
        most = 1 + max(int(each.max(initial=-1)) for each in labels)
        num_outputs = most if num_classes is None else num_classes
    images = [_stored(each) for each in (train_images, test_images)]
    if max_value is None:
        max_value = 255 if all(each.dtype == np.uint8 for each in images) else 1
    return checked(
        Source(images[0], labels[0], images[1], labels[1], num_outputs, max_value)
    )


def from_npz(path: Path | str, **options: Any) -> Source:
    """Reads a data set from an ``.npz``.

    Args:
        path: of a file with ``train_images``, ``train_labels``, ``test_images`` and
            ``test_labels``, or ``x_train``, ``y_train``, ``x_test`` and ``y_test``.
        **options: of ``from_arrays``.

    Returns:
        The data set.

    Raises:
        OSError: there is no such file.
        ValueError: it lacks an array, or as ``from_arrays``.
    """
    with np.load(path, allow_pickle=False) as file:
        for keys in (_KEYS, _OTHER_KEYS):
            if set(keys) <= set(file.files):
                return from_arrays(*(file[key] for key in keys), **options)
        raise ValueError(
            f"{path}: expected arrays {', '.join(_KEYS)} (or {', '.join(_OTHER_KEYS)})"
            f", received {', '.join(file.files)}"
        )


def from_folder(
    path: Path | str,
    *,
    size: tuple[int, int] | None = None,
    mode: str = "RGB",
    test_fraction: float = 0.2,
) -> Source:
    """Reads a folder of images by class.

    Args:
        path: of ``CLASS/IMAGE``, or of ``train/CLASS/IMAGE`` and ``test/CLASS/IMAGE``.
        size: height and width to which images are scaled; all must be alike if None.
        mode: of Pillow, ``"RGB"`` or ``"L"`` for grey.
        test_fraction: of each class, in an order that never changes, where ``train``
            and ``test`` are not apart.

    Returns:
        The data set; classes are numbered in the order of their names.

    Raises:
        OSError: no such folder, or an image that cannot be read.
        ValueError: no images, images of several sizes, or a class of one image only.
    """
    root = Path(path)
    apart = (root / "train").is_dir() and (root / "test").is_dir()
    classes = _folders(root / "train" if apart else root)
    train, test = [], []
    for label, name in enumerate(classes):
        if apart:
            train += [(each, label) for each in _files(root / "train" / name)]
            test += [(each, label) for each in _files(root / "test" / name)]
            continue
        files = _files(root / name)
        order = np.random.default_rng(0).permutation(len(files))
        count = max(1, round(test_fraction * len(files)))
        if count >= len(files):
            raise ValueError(f"{root / name}: expected at least two images")
        test += [(files[i], label) for i in order[:count]]
        train += [(files[i], label) for i in order[count:]]
    parts = []
    for files in (train, test):
        images = [_read(each, size, mode) for each, _ in files]
        if len({image.shape for image in images}) != 1:
            raise ValueError(f"{root}: expected images of one size; give size=(H, W)")
        parts += [np.stack(images), np.array([label for _, label in files])]
    return from_arrays(*parts, num_classes=len(classes))


def from_tfds(
    name: str,
    *,
    train: str = "train",
    test: str = "test",
    image: str | None = None,
    label: str | None = None,
    size: tuple[int, int] | None = None,
    data_dir: Path | str | None = None,
    cache_dir: Path | None = None,
) -> Source:
    """Reads any data set that TFDS has prepared as array_record, without TensorFlow.

    Rows are decoded once and kept in a cache. Given to ``benchmarks.register`` as
    ``functools.partial(from_tfds, "kmnist")``, it reads the folder of ``--data-dir``.

    Args:
        name: as TFDS has it, ``"NAME"``, ``"NAME/CONFIG"`` or ``"NAME:VERSION"``; the
            newest version that is prepared if it gives none.
        train: the split that is shown, or a part of one such as ``"train[:80%]"``.
        test: the split that is tested on.
        image: the feature that is shown, images or other numbers of one shape; the
            first of what TFDS calls supervised keys if None.
        label: the feature that is learnt, classes or whole numbers from 0, or real
            targets; the second of those.
        size: height and width to which images are scaled; they must be alike if None.
        data_dir: folder of the data sets; see ``tfds_files.default_data_dir``.
        cache_dir: where decoded rows are kept; see ``npy_files.default_cache_dir``.

    Returns:
        The data set; uint8 where it is stored so, else float32.

    Raises:
        DataError: it is not prepared, is damaged or stored in another format, or has
            no such split or feature.
    """
    place = tfds_files.find(name, None if data_dir is None else Path(data_dir))
    place = place._replace(train=train, test=test)
    tfds_files.check(place)
    return tfds_features.read(place, image, label, size, cache_dir)


def _stored(images: Any) -> np.ndarray:
    array = np.asarray(images)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"images: expected numbers, received {array.dtype}")
    return array if array.dtype == np.uint8 else array.astype(np.float32)


def _numbered(*labels: np.ndarray) -> list[np.ndarray]:
    """Leaves numbers as they are, and numbers words in their order."""
    if all(each.dtype.kind == "f" for each in labels):
        return [
            each.reshape(len(each), -1).astype(np.float32) if each.ndim else each
            for each in labels
        ]
    if all(each.dtype.kind in "iub" for each in labels):
        return [each.astype(np.int32) for each in labels]
    if not all(each.dtype.kind in "USO" for each in labels):
        kinds = ", ".join(str(each.dtype) for each in labels)
        raise ValueError(
            f"labels: expected integers, words or floats, received {kinds}"
        )
    words = np.unique(labels[0].astype(str))
    for each in labels[1:]:
        if unknown := set(each.astype(str)) - set(words):
            raise ValueError(
                f"test_labels: {str(min(unknown))!r} is of no training row"
            )
    found = [np.searchsorted(words, each.astype(str)) for each in labels]
    return [each.astype(np.int32) for each in found]


def _folders(path: Path) -> list[str]:
    names = sorted(each.name for each in path.iterdir() if each.is_dir())
    if not names:
        raise ValueError(f"{path}: expected a folder for each class")
    return names


def _files(path: Path) -> list[Path]:
    files: Iterable[Path] = path.iterdir() if path.is_dir() else ()
    found = sorted(each for each in files if each.suffix.lower() in _ENDINGS)
    if not found:
        raise ValueError(f"{path}: expected images, such as .png or .jpg")
    return found


def _read(path: Path, size: tuple[int, int] | None, mode: str) -> np.ndarray:
    with Image.open(path) as image:
        changed = image.convert(mode)
        if size is not None:
            changed = changed.resize((size[1], size[0]))
        return np.asarray(changed, np.uint8)
