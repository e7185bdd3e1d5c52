"""Task streams as arrays of indices, drawn with numpy from a seed.

An image turned by one angle per task (nearest neighbour) and an image with its pixels
permuted are the same operation: one gather per task. A stream is therefore which rows
to show and, per task, which source pixel each pixel takes.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image


class Stream(NamedTuple):
    """T tasks of R rows over images of D pixels."""

    rows: np.ndarray
    """int32 [T, R]: training rows in order of presentation, distinct within a task."""
    pixel_map: np.ndarray
    """int32 [T, D]: source pixel of every pixel; D stands for background, 0."""


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
    image_shape: tuple[int, int],
) -> None:
    if len(image_shape) != 2 or min(image_shape) < 1:
        raise ValueError(
            "image_shape: expected a height and a width of at least 1, received "
            f"{tuple(image_shape)}"
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
    seed: int, map_seed: int | None
) -> tuple[np.random.Generator, np.random.Generator]:
    """Independent generators of rows and of pixel maps."""
    rows, maps = np.random.SeedSequence(seed).spawn(2)
    if map_seed is not None:
        _, maps = np.random.SeedSequence(map_seed).spawn(2)
    return np.random.default_rng(rows), np.random.default_rng(maps)


def _draw_rows(
    generator: np.random.Generator, available: int, num_tasks: int, rows_per_task: int
) -> np.ndarray:
    rows = [
        generator.choice(available, rows_per_task, replace=False)
        for _ in range(num_tasks)
    ]
    return np.stack(rows).astype(np.int32)


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
    seed: int,
    *,
    num_rows_available: int,
    num_tasks: int,
    rows_per_task: int,
    image_shape: tuple[int, int],
    max_angle: float = 180.0,
    map_seed: int | None = None,
) -> Stream:
    """Tasks that turn the images by growing angles.

    Task t (from 0) turns by an angle drawn uniformly from ``[t, t + 1) * max_angle /
    num_tasks``, as in the published streams.

    Args:
        seed: decides rows, their order and angles.
        num_rows_available: training rows of the data set.
        num_tasks: T.
        rows_per_task: R, drawn without replacement for each task.
        image_shape: height and width in pixels.
        max_angle: degrees.
        map_seed: decides the angles instead of ``seed``, if given.

    Returns:
        The stream.

    Raises:
        ValueError: a size is below 1 or above what is available, or ``image_shape`` is
            not two of them.
    """
    _check_sizes(num_rows_available, num_tasks, rows_per_task, image_shape)
    row_generator, map_generator = _generators(seed, map_seed)
    angles = (np.arange(num_tasks) + map_generator.random(num_tasks)) * (
        max_angle / num_tasks
    )
    return Stream(
        _draw_rows(row_generator, num_rows_available, num_tasks, rows_per_task),
        np.stack([rotation_map(float(angle), image_shape) for angle in angles]),
    )


def permutation_stream(
    seed: int,
    *,
    num_rows_available: int,
    num_tasks: int,
    rows_per_task: int,
    image_shape: tuple[int, int],
    map_seed: int | None = None,
) -> Stream:
    """Tasks that permute the pixels, each with a permutation of its own.

    Args:
        seed: decides rows, their order and permutations.
        num_rows_available: training rows of the data set.
        num_tasks: T.
        rows_per_task: R, drawn without replacement for each task.
        image_shape: height and width in pixels.
        map_seed: decides the permutations instead of ``seed``, if given.

    Returns:
        The stream.

    Raises:
        ValueError: a size is below 1 or above what is available, or ``image_shape`` is
            not two of them.
    """
    _check_sizes(num_rows_available, num_tasks, rows_per_task, image_shape)
    row_generator, map_generator = _generators(seed, map_seed)
    size = math.prod(image_shape)
    maps = [map_generator.permutation(size) for _ in range(num_tasks)]
    return Stream(
        _draw_rows(row_generator, num_rows_available, num_tasks, rows_per_task),
        np.stack(maps).astype(np.int32),
    )
