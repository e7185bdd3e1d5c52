"""Task streams as arrays of indices, drawn with numpy from a seed.

An image turned by one angle per task (nearest neighbour) and an image with its pixels
permuted are the same operation: one gather per task. A stream is therefore which rows
to show and, per task, which source pixel each pixel takes; or, where each task has
classes of its own, which rows to show and test, and the order of the classes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.data.source import Source

Seed = int | Sequence[int]  # what numpy makes a generator from


class Stream(NamedTuple):
    """T tasks of R rows over images of D pixels and Y classes."""

    rows: np.ndarray
    """int32 [T, R]: training rows in order of presentation, distinct within a task."""
    pixel_map: np.ndarray | None = None
    """int32 [T, D]: source pixel of every pixel; D stands for background, 0. None
    leaves images as they are."""
    label_map: np.ndarray | None = None
    """int32 [Y]: new label of each class, or None where labels stay."""
    test_rows: np.ndarray | None = None
    """int32 [T, M]: test rows of each task, or None where every task tests all."""
    owners: np.ndarray | None = None
    """int32 [T, R]: the task of each row, whose map it takes; None: the one at hand."""


def apply_pixel_map(images: Any, pixel_map: Any) -> Any:
    """Rearranges the pixels of images.

    Args:
        images: [N, D], any dtype, numpy or jax (also traced).
        pixel_map: [D'] integers in [0, D]; D gives 0.

    Returns:
        [N, D'] of the dtype of ``images``; numpy where both arguments are, else jax.

    Raises:
        ValueError: ranks are wrong.
    """
    if images.ndim != 2 or pixel_map.ndim != 1:
        raise ValueError(
            "images, pixel_map: expected ranks 2 and 1, received "
            f"{images.ndim} and {pixel_map.ndim}"
        )
    on_host = isinstance(images, np.ndarray) and isinstance(pixel_map, np.ndarray)
    xp = np if on_host else jnp
    background = xp.zeros((images.shape[0], 1), images.dtype)
    return xp.concatenate([images, background], axis=1)[:, pixel_map]


def _check_sizes(
    num_rows_available: int,
    num_tasks: int,
    rows_per_task: int,
    image_shape: tuple[int, ...],
    ranks: tuple[int, ...],
) -> None:
    if len(image_shape) not in ranks or min(image_shape) < 1:
        vector = " (or a number of features)" if 1 in ranks else ""
        raise ValueError(
            "image_shape: expected a height and a width of at least 1, and channels "
            f"or none{vector}, received {tuple(image_shape)}"
        )
    for name, size in (("num_tasks", num_tasks), ("rows_per_task", rows_per_task)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, received {size}")
    if rows_per_task > num_rows_available:
        raise ValueError(
            f"rows_per_task: expected at most the {num_rows_available} training rows "
            f"of the data set, received {rows_per_task}"
        )


def _generators(
    seed: Seed, map_seed: Seed | None
) -> tuple[np.random.Generator, np.random.Generator]:
    """Independent generators of rows and of pixel maps."""
    rows, maps = np.random.SeedSequence(seed).spawn(2)
    if map_seed is not None:
        _, maps = np.random.SeedSequence(map_seed).spawn(2)
    return np.random.default_rng(rows), np.random.default_rng(maps)


def _draw_rows(
    generator: np.random.Generator, available: int, num_tasks: int, rows_per_task: int
) -> np.ndarray:
    one = lambda: generator.choice(available, rows_per_task, replace=False)
    return np.stack([one() for _ in range(num_tasks)]).astype(np.int32)


def _with_channels(pixel_maps: np.ndarray, num_channels: int) -> np.ndarray:
    """Turns maps [T, P] of whole pixels into maps [T, P * C] of their values."""
    size = pixel_maps.shape[1]
    values = pixel_maps[..., None] * num_channels + np.arange(num_channels)
    values[pixel_maps == size] = size * num_channels
    return values.reshape(len(pixel_maps), -1)


def rotation_map(angle: float, image_shape: tuple[int, int]) -> np.ndarray:
    """Source pixels of an image turned by ``angle``.

    The image is turned as ``PIL.Image.rotate`` does by default: counter-clockwise about
    its centre, nearest neighbour, background 0.

    Args:
        angle: degrees.
        image_shape: height and width in pixels.

    Returns:
        int32 [D], D = height * width; D marks background.
    """
    size = math.prod(image_shape)
    # Pixel i is labelled i + 1, so that the 0 which Pillow fills in is background.
    labels = np.arange(1, size + 1, dtype=np.int32).reshape(image_shape)
    turned = np.asarray(Image.fromarray(labels).rotate(angle)).reshape(-1)
    return np.where(turned == 0, size, turned - 1).astype(np.int32)


def rotation_stream(
    seed: Seed,
    *,
    num_rows_available: int,
    num_tasks: int,
    rows_per_task: int,
    image_shape: tuple[int, ...],
    max_angle: float = 180.0,
    map_seed: Seed | None = None,
) -> Stream:
    """Tasks that turn the images by growing angles.

    Task t (from 0) turns by an angle drawn uniformly from ``[t, t + 1) * max_angle /
    num_tasks``, as in the published streams.

    Args:
        seed: decides rows, their order and angles.
        num_rows_available: training rows of the data set.
        num_tasks: T.
        rows_per_task: R, drawn without replacement for each task.
        image_shape: height and width in pixels, and channels if there are several.
        max_angle: degrees.
        map_seed: decides the angles instead of ``seed``, if given.

    Returns:
        The stream.

    Raises:
        ValueError: a size is below 1 or above what is available, or ``image_shape`` is
            that of no image.
    """
    _check_sizes(num_rows_available, num_tasks, rows_per_task, image_shape, (2, 3))
    row_generator, map_generator = _generators(seed, map_seed)
    angles = (np.arange(num_tasks) + map_generator.random(num_tasks)) * (
        max_angle / num_tasks
    )
    height, width = image_shape[:2]
    maps = np.stack([rotation_map(float(angle), (height, width)) for angle in angles])
    if len(image_shape) == 3:
        maps = _with_channels(maps, image_shape[2]).astype(np.int32)
    return Stream(
        _draw_rows(row_generator, num_rows_available, num_tasks, rows_per_task), maps
    )


def permutation_stream(
    seed: Seed,
    *,
    num_rows_available: int,
    num_tasks: int,
    rows_per_task: int,
    image_shape: tuple[int, ...],
    map_seed: Seed | None = None,
) -> Stream:
    """Tasks that permute the pixels, each with a permutation of its own.

    Args:
        seed: decides rows, their order and permutations.
        num_rows_available: training rows of the data set.
        num_tasks: T.
        rows_per_task: R, drawn without replacement for each task.
        image_shape: height and width in pixels, and channels if there are several,
            which stay together; or the number of features of rows that are no images.
        map_seed: decides the permutations instead of ``seed``, if given.

    Returns:
        The stream.

    Raises:
        ValueError: a size is below 1 or above what is available, or ``image_shape`` has
            more than three of them.
    """
    _check_sizes(num_rows_available, num_tasks, rows_per_task, image_shape, (1, 2, 3))
    row_generator, map_generator = _generators(seed, map_seed)
    size = math.prod(image_shape[:2])
    maps = np.stack([map_generator.permutation(size) for _ in range(num_tasks)])
    if len(image_shape) == 3:
        maps = _with_channels(maps, image_shape[2])
    return Stream(
        _draw_rows(row_generator, num_rows_available, num_tasks, rows_per_task),
        maps.astype(np.int32),
    )


def _rows_of_classes(labels: np.ndarray, num_classes: int, what: str) -> np.ndarray:
    """Rows of every class, as many as the smallest class has, [Y, n]."""
    counts = np.bincount(labels, minlength=num_classes)
    if counts.min() == 0:
        raise ValueError(f"{what}: class {counts.argmin()} has no row")
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.stack([order[start : start + counts.min()] for start in starts])


def check_class_split(num_classes: int, classes_per_task: int, num_tasks: int) -> None:
    """Checks that classes can be dealt to tasks.

    Raises:
        ValueError: they do not divide into tasks, or are too few for them.
    """
    if not 1 <= classes_per_task <= num_classes or num_classes % classes_per_task:
        raise ValueError(
            f"classes_per_task: expected a divisor of the {num_classes} classes, "
            f"received {classes_per_task}"
        )
    available = num_classes // classes_per_task
    if not 1 <= num_tasks <= available:
        raise ValueError(
            f"num_tasks: expected 1 to {available} ({num_classes} classes in tasks of "
            f"{classes_per_task}), received {num_tasks}"
        )


def split_stream(
    seed: Seed,
    source: Source,
    *,
    classes_per_task: int,
    num_tasks: int,
    rows_per_task: int,
    validation_fraction: float = 0.1,
    map_seed: Seed | None = None,
) -> Stream:
    """Tasks that each have classes of their own.

    Classes are shuffled; task t owns new labels ``t * classes_per_task`` and on. The
    same number of rows of each of its classes is shown, in random order. The first rows
    of a random order of each class are held out for validation and never shown.

    Args:
        seed: decides rows, their order and the order of the classes.
        source: the data set, of Y classes.
        classes_per_task: a divisor of Y.
        num_tasks: T, at most ``Y / classes_per_task``.
        rows_per_task: R, a multiple of ``classes_per_task``.
        validation_fraction: of each class's training rows, held out.
        map_seed: decides the order of the classes instead of ``seed``, if given.

    Returns:
        The stream, with ``label_map`` and ``test_rows``.

    Raises:
        ValueError: sizes that do not divide or that the data set cannot serve.
    """
    num_classes = source.num_classes
    check_class_split(num_classes, classes_per_task, num_tasks)
    row_generator, map_generator = _generators(seed, map_seed)
    order = map_generator.permutation(num_classes)
    train = _rows_of_classes(source.train_labels, num_classes, "training rows")
    test = _rows_of_classes(source.test_labels, num_classes, "test rows")
    num_kept = train.shape[1] - round(validation_fraction * train.shape[1])
    per_class, rest = divmod(rows_per_task, classes_per_task)
    if rest or not 1 <= per_class <= num_kept:
        raise ValueError(
            f"rows_per_task: expected a multiple of the {classes_per_task} classes of "
            f"a task, at most {num_kept * classes_per_task}, received {rows_per_task}"
        )
    rows = []
    for task in range(num_tasks):
        own = order[task * classes_per_task : (task + 1) * classes_per_task]
        kept = [row_generator.permutation(train[c])[-per_class:] for c in own]
        rows.append(row_generator.permutation(np.concatenate(kept)))
    owners = order[: num_tasks * classes_per_task].reshape(num_tasks, -1)
    return Stream(
        np.stack(rows).astype(np.int32),
        label_map=np.argsort(order).astype(np.int32),
        test_rows=test[owners].reshape(num_tasks, -1).astype(np.int32),
    )
