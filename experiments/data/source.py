"""What a data set is, and what is wrong with one."""

from typing import NamedTuple

import numpy as np

from experiments.support.errors import UserError


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


ARRAYS = Source._fields[:4]
"""Names of the arrays."""


def checked(source: Source) -> Source:
    """Checks that a data set can be trained on.

    Raises:
        ValueError: as ``from_arrays``.
    """
    if not isinstance(source, Source):
        raise ValueError(f"expected a Source, received {type(source).__name__}")
    for part in ("train", "test"):
        images = np.asarray(getattr(source, f"{part}_images"))
        labels = np.asarray(getattr(source, f"{part}_labels"))
        if images.ndim < 2 or not images.size or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{part}_images, {part}_labels: expected [N, ...] and [N], received "
                f"{list(images.shape)} and {list(labels.shape)}"
            )
        if images.dtype not in (np.uint8, np.float32):
            raise ValueError(
                f"{part}_images: expected uint8 or float32, as from_arrays makes them, "
                f"received {images.dtype}"
            )
        if images.dtype == np.float32 and not np.isfinite(images).all():
            raise ValueError(f"{part}_images: expected finite numbers")
        if labels.dtype != np.int32:
            raise ValueError(f"{part}_labels: expected int32, received {labels.dtype}")
        if labels.min() < 0 or labels.max() >= source.num_classes:
            raise ValueError(
                f"{part}_labels: expected [0, {source.num_classes}), received "
                f"{labels.min()} to {labels.max()}"
            )
    if source.train_images.shape[1:] != source.test_images.shape[1:]:
        raise ValueError(
            f"train_images, test_images: expected rows alike, received "
            f"{list(source.train_images.shape)} and {list(source.test_images.shape)}"
        )
    if not source.max_value > 0:
        raise ValueError(
            f"max_value: expected a number > 0, received {source.max_value}"
        )
    return source
