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
    """int32 [N] classes, or float32 [N, Y] real targets."""
    test_images: np.ndarray
    """uint8 [M, ...] like ``train_images``."""
    test_labels: np.ndarray
    """The same of the M test rows."""
    num_classes: int
    """Y, classes, or real numbers in a target."""
    max_value: float
    """Largest pixel value, which is scaled to 1."""

    @property
    def has_classes(self) -> bool:
        """Whether labels are classes, not real numbers."""
        return self.train_labels.dtype.kind != "f"


ARRAYS = Source._fields[:4]
"""Names of the arrays."""


def _check_labels(source: Source, part: str) -> None:
    """Checks what ``checked`` does of the labels of one part."""
    labels = np.asarray(getattr(source, f"{part}_labels"))
    if labels.dtype != source.train_labels.dtype:
        raise ValueError(
            f"train_labels, test_labels: expected both of one dtype, received "
            f"{source.train_labels.dtype} and {labels.dtype}"
        )
    if labels.dtype == np.float32:
        if labels.shape[1:] != (source.num_classes,) or not np.isfinite(labels).all():
            raise ValueError(
                f"{part}_labels: expected finite numbers [N, {source.num_classes}], "
                f"received {list(labels.shape)}"
            )
        return
    if labels.dtype != np.int32 or labels.ndim != 1:
        raise ValueError(
            f"{part}_labels: expected int32 [N] or float32 [N, Y], received "
            f"{labels.dtype} {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= source.num_classes:
        raise ValueError(
            f"{part}_labels: expected [0, {source.num_classes}), received "
            f"{labels.min()} to {labels.max()}"
        )


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
        if images.ndim < 2 or not images.size or labels.shape[:1] != images.shape[:1]:
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
        _check_labels(source, part)
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
