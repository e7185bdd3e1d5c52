"""Which features of a prepared data set are rows and labels, and their form."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.data.source import DataError, Source
from experiments.data.tfds_files import Prepared, Rows, broken, builder_of, load
from experiments.support.suggestions import did_you_mean

_SUPERVISED = ("image", "label")
"""Features that are read where TFDS names none."""


def _feature(place: Prepared, info: Any, name: str, argument: str) -> Any:
    if name not in info.features:
        hint = did_you_mean(name, info.features)
        raise DataError(
            f"data set {place.name!r}: {argument}: no feature {name!r}"
            f"{hint or '; there are ' + ', '.join(info.features)}"
        )
    return info.features[name]


def _length(place: Prepared, info: Any, split: str) -> int:
    try:
        return int(info.splits[split].num_examples)
    except (KeyError, ValueError) as error:
        raise DataError(
            f"data set {place.name!r}: no split {split!r}; there are "
            f"{', '.join(info.splits)}, and parts such as 'train[:80%]'"
        ) from error


def _scaled(size: tuple[int, int]) -> Callable[[Any], np.ndarray]:
    """Makes a function that scales an image [H, W, C] of uint8 to height and width."""

    def scale(image: Any) -> np.ndarray:
        grey = image[..., 0] if image.shape[-1] == 1 else image
        changed = Image.fromarray(grey).resize((size[1], size[0]))
        return np.asarray(changed, np.uint8)

    return scale


def _shape(
    place: Prepared, name: str, feature: Any, size: tuple[int, int] | None
) -> tuple[int, ...]:
    """Shape of one row: [H, W] of grey images, else as TFDS has it."""
    shape: tuple[Any, ...] = tuple(feature.shape or ())
    dtype = np.dtype(feature.np_dtype)
    where = f"data set {place.name!r}: feature {name!r}"
    if dtype.kind not in "biuf" or not shape:
        raise DataError(
            f"{where}: expected images or rows of numbers, found {dtype} {list(shape)}"
        )
    if size is not None:
        if len(shape) != 3 or dtype != np.uint8:
            raise DataError(f"{where}: size: only images of uint8 can be scaled")
        shape = (*size, *shape[2:])
    if None in shape:
        known = ", ".join("?" if each is None else str(each) for each in shape)
        raise DataError(f"{where}: rows of [{known}] are not alike; give size=(H, W)")
    return shape[:2] if len(shape) == 3 and shape[2] == 1 else shape


def _label_shape(place: Prepared, name: str, feature: Any) -> tuple[int, ...]:
    """Shape of one label: () of classes, [Y] of real targets."""
    shape, dtype = tuple(feature.shape or ()), np.dtype(feature.np_dtype)
    if dtype.kind in "biu" and not shape:
        return ()
    if dtype.kind == "f" and None not in shape:
        return (math.prod(shape),)
    raise DataError(
        f"data set {place.name!r}: feature {name!r}: expected classes, whole numbers "
        f"or real ones of one shape, found {dtype} {list(shape)}"
    )


def read(
    place: Prepared,
    image: str | None,
    label: str | None,
    size: tuple[int, int] | None,
    cache_dir: Path | None,
) -> Source:
    """Reads two features of a data set, as ``own.from_tfds`` has them.

    Args:
        place: the folder and its splits.
        image: the feature that is shown.
        label: the feature that is learnt.
        size: height and width to which images are scaled.
        cache_dir: where decoded rows are kept.

    Returns:
        The data set.

    Raises:
        DataError: no such split or feature, or one that cannot be shown or learnt.
    """
    try:
        info = builder_of(place).info
        keys = info.supervised_keys or _SUPERVISED
    except Exception as error:  # of no common type: files of another version, imports
        raise broken(place, f"TFDS cannot read it: {error}") from error
    named = image or str(keys[0]), label or str(keys[1])
    shown = _feature(place, info, named[0], "image")
    learnt = _feature(place, info, named[1], "label")
    label_shape = _label_shape(place, named[1], learnt)
    rows = Rows(
        _shape(place, named[0], shown, size),
        np.dtype(np.uint8 if np.dtype(shown.np_dtype) == np.uint8 else np.float32),
        np.dtype(np.float32 if label_shape else np.int32),
        label_shape,
        change=None if size is None else _scaled(size),
        key=" ".join(map(str, (place.train, place.test, *named, size))),
    )
    lengths = _length(place, info, place.train), _length(place, info, place.test)
    place = place._replace(image=named[0], label=named[1])
    num_classes = getattr(learnt, "num_classes", None)
    arrays = load(place, lengths, rows, num_classes, cache_dir)
    if label_shape:
        num_classes = label_shape[0]
    elif num_classes is None:
        num_classes = 1 + max(
            int(arrays[f"{part}_labels"].max()) for part in ("train", "test")
        )
    max_value = 255 if rows.dtype == np.uint8 else 1
    return Source(**arrays, num_classes=num_classes, max_value=max_value)
