"""Draws a benchmark's streams: from a source and seeds to arrays."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import own_streams, sources, streams, targets
from experiments.data.blurring import blurred
from experiments.data.source import Source
from experiments.schema.benchmark import Benchmark
from experiments.support.errors import UserError

SPLIT = "split"
"""The stream whose tasks have classes of their own."""
STREAMS: dict[str, Callable[..., streams.Stream]] = {
    "rotations": streams.rotation_stream,
    "permutations": streams.permutation_stream,
}
OWN_STREAMS: dict[str, own_streams.StreamFn] = {}
"""By name of the benchmark, a person's own."""
_VALIDATION = 1
"""Second part of the seeds of tasks for validation; those of the test have one part."""


class BenchmarkData(NamedTuple):
    """Arrays of one benchmark for S seeds; images stay uint8."""

    train_images: np.ndarray
    """uint8 (a person's own may be float32) [N, H, W, C], or [N, D] for the published
    network without convolutions."""
    train_labels: np.ndarray
    """int32 [N], or float32 [N, Y]."""
    test_images: np.ndarray
    """uint8 [M, ...] like ``train_images``."""
    test_labels: np.ndarray
    """int32 [M]."""
    max_value: float
    """Pixel value that is scaled to 1."""
    num_classes: int
    rows: np.ndarray
    """int32 [S, T, R]: training rows of each seed and task, in order."""
    pixel_maps: np.ndarray
    """int32 [S, T, D]: source pixel of each pixel, D is the background; [S, T, 0]
    leaves images as they are."""
    label_maps: np.ndarray
    """int32 [S, Y]: new label of each class."""
    test_rows: np.ndarray
    """int32 [S, T, M']: test rows of each task."""
    owners: np.ndarray
    """int32 [S, T, R]: the task that each row is of; [S, T, 0] where it is the one in
    whose time it is shown."""


def load(
    benchmark: Benchmark,
    seeds: Sequence[int],
    data_dir: Path | None = None,
    stream_seed: int | None = None,
    evaluate_on: str = "test",
) -> BenchmarkData:
    """Loads the source and draws one stream per seed.

    Args:
        benchmark: from ``get_benchmark``, possibly with replaced sizes.
        seeds: S seeds; seed s alone decides rows, order and transformations of its
            stream.
        data_dir: folder of the prepared data sets.
        stream_seed: decides the transformations of all seeds, if given; rows and their
            order still follow each seed.
        evaluate_on: ``"test"``, or ``"validation"`` for training rows that are held out
            and for other tasks than those of the test.

    Returns:
        Arrays on the host.

    Raises:
        DataError: the data set is missing or broken.
        UserError: sizes that the data set cannot serve.
    """
    source = sources.load_source(benchmark.source, data_dir)
    return draw(benchmark, source, seeds, stream_seed, evaluate_on)


def draw(
    benchmark: Benchmark,
    source: Source,
    seeds: Sequence[int],
    stream_seed: int | None = None,
    evaluate_on: str = "test",
) -> BenchmarkData:
    """Draws one stream per seed from a source at hand; otherwise as ``load``."""
    targets.check_targets(benchmark.loss, source.has_classes)
    if source.has_classes and not (
        0 <= source.train_labels.min() <= source.train_labels.max() < source.num_classes
    ):
        raise UserError(
            f"{benchmark.source}: labels must lie in [0, {source.num_classes}), found "
            f"{source.train_labels.min()} to {source.train_labels.max()}"
        )
    is_test = evaluate_on == "test"
    if not is_test:
        source = hold_out(source)
    try:
        drawn = [
            _draw_stream(benchmark, source, seed, stream_seed, is_test)
            for seed in seeds
        ]
    except ValueError as error:
        raise UserError(f"{benchmark.name}: {error}") from error
    num_tasks = len(drawn[0].rows)
    no_map = np.zeros((num_tasks, 0), np.int32)
    same_labels = np.arange(source.num_classes, dtype=np.int32)
    all_rows = np.arange(len(source.test_labels), dtype=np.int32)
    all_rows = np.broadcast_to(all_rows, (num_tasks, all_rows.size))

    def stack(name: str, default: Any) -> np.ndarray:
        values = [getattr(stream, name) for stream in drawn]
        return np.stack([default if value is None else value for value in values])

    flat = benchmark.is_flat
    return BenchmarkData(
        train_images=_images(source.train_images, flat),
        train_labels=source.train_labels,
        test_images=_images(source.test_images, flat),
        test_labels=source.test_labels,
        max_value=source.max_value,
        num_classes=source.num_classes,
        rows=stack("rows", None),
        pixel_maps=stack("pixel_map", no_map),
        label_maps=stack("label_map", same_labels),
        test_rows=stack("test_rows", all_rows),
        owners=stack("owners", no_map),
    )


def with_tasks_of(benchmark: Benchmark, num_classes: int) -> Benchmark:
    """Fits the number of tasks of a split to a data set with fewer classes.

    Args:
        benchmark: from ``get_benchmark``.
        num_classes: Y of the data set.

    Returns:
        The benchmark, with at most ``Y / classes_per_task`` tasks if it is a split.

    Raises:
        UserError: classes do not divide into tasks.
    """
    if benchmark.classes_per_task is None or benchmark.stream in OWN_STREAMS:
        return benchmark
    available = num_classes // max(benchmark.classes_per_task, 1)
    num_tasks = min(benchmark.num_tasks, max(available, 1))
    try:
        streams.check_class_split(num_classes, benchmark.classes_per_task, num_tasks)
    except ValueError as error:
        raise UserError(f"{benchmark.name}: {error}") from error
    return dataclasses.replace(benchmark, num_tasks=num_tasks)


def hold_out(source: Source) -> Source:
    """Puts a tenth of the training rows of every class in the place of the test rows.

    Where targets are real numbers, a tenth of all.
    Which rows does not depend on any seed. A run on what is left sees no test row.
    """
    labels, num_classes = source.train_labels, source.num_classes
    if not source.has_classes:
        labels, num_classes = np.zeros(len(labels), np.int32), 1
    counts = np.bincount(labels, minlength=num_classes)
    generator = np.random.default_rng(_VALIDATION)
    order = generator.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    is_held = rank < np.repeat(-(-counts // 10), counts)
    held, kept = np.sort(by_class[is_held]), np.sort(by_class[~is_held])
    return source._replace(
        train_images=source.train_images[kept],
        train_labels=source.train_labels[kept],
        test_images=source.train_images[held],
        test_labels=source.train_labels[held],
    )


def _draw_stream(
    benchmark: Benchmark,
    source: Source,
    seed: int,
    stream_seed: int | None,
    is_test: bool,
) -> streams.Stream:
    own: streams.Seed = seed if is_test else (seed, _VALIDATION)
    map_seed: streams.Seed | None = stream_seed
    if not is_test and stream_seed is not None:
        map_seed = (stream_seed, _VALIDATION)
    sizes = {
        "num_tasks": benchmark.num_tasks,
        "rows_per_task": benchmark.rows_per_task,
    }
    if benchmark.classes_per_task is not None and not source.has_classes:
        raise ValueError("classes_per_task: the targets are real numbers, not classes")
    if benchmark.stream == SPLIT:
        drawn = streams.split_stream(
            own,
            source,
            classes_per_task=benchmark.classes_per_task or 0,
            # On validation rows are held out already.
            validation_fraction=0.1 if is_test else 0.0,
            map_seed=map_seed,
            **sizes,
        )
    elif benchmark.stream in OWN_STREAMS:
        made = OWN_STREAMS[benchmark.stream](own, source, map_seed=map_seed, **sizes)
        drawn = own_streams.checked(
            made, source, classes_per_task=benchmark.classes_per_task, **sizes
        )
    elif benchmark.stream in STREAMS:
        drawn = STREAMS[benchmark.stream](
            own,
            num_rows_available=len(source.train_labels),
            image_shape=source.train_images.shape[1:],
            map_seed=map_seed,
            **sizes,
        )
    else:
        raise UserError(f"{benchmark.name}: unknown stream {benchmark.stream!r}")
    return blurred(own, drawn, benchmark.blur)


def _images(images: np.ndarray, flat: bool) -> np.ndarray:
    if flat:
        images = images.reshape(len(images), -1)
    elif images.ndim == 3:
        images = images[..., None]
    return np.ascontiguousarray(images)
