"""Named benchmarks as data: source, stream, model and protocol."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import sources, streams
from experiments.errors import UserError

STREAMS = {
    "rotations": streams.rotation_stream,
    "permutations": streams.permutation_stream,
}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark; another data set of the same shape is one entry below."""

    name: str
    source: str
    """Name of the data set, as in ``experiments data list``."""
    stream: str
    """How tasks are made of it, a key of ``STREAMS``."""
    num_tasks: int
    """T."""
    rows_per_task: int
    """Training rows shown per task, each once."""
    hidden: tuple[int, ...] = (100, 100)
    """Widths of the network's hidden layers."""
    eval_every: int = 1
    """Accuracy on all tasks is taken after every this many tasks and after the last.

    In between, only the task just learnt and the next one are evaluated, which is all
    that LA, BTI and forward transfer need.
    """
    description: str = ""


_FAMILIES = (
    ("mnist", "mnist", "MNIST"),
    ("fashion-mnist", "fashion_mnist", "Fashion-MNIST"),
)

BENCHMARKS = {
    b.name: b
    for b in [
        Benchmark(
            "digits-rotations",
            "digits",
            "rotations",
            num_tasks=20,
            rows_per_task=200,
            description="20 rotations of scikit-learn's digits, 200 rows each",
        ),
        *(
            Benchmark(
                f"{prefix}-{kind}",
                source,
                stream,
                num_tasks=num_tasks,
                rows_per_task=rows,
                eval_every=every,
                description=f"{num_tasks} {stream} of {title}, {rows} rows each",
            )
            for prefix, source, title in _FAMILIES
            for kind, stream, num_tasks, rows, every in [
                ("rotations", "rotations", 20, 1000, 1),
                ("permutations", "permutations", 20, 1000, 1),
                ("many", "permutations", 100, 200, 10),
            ]
        ),
    ]
}


class BenchmarkData(NamedTuple):
    """Arrays of one benchmark for S seeds; images stay uint8."""

    train_images: np.ndarray
    """uint8 [N, D]."""
    train_labels: np.ndarray
    """int32 [N]."""
    test_images: np.ndarray
    """uint8 [M, D]."""
    test_labels: np.ndarray
    """int32 [M]."""
    max_value: int
    """Pixel value that is scaled to 1."""
    num_classes: int
    rows: np.ndarray
    """int32 [S, T, R]: training rows of each seed and task, in order."""
    pixel_maps: np.ndarray
    """int32 [S, T, D]: source pixel of each pixel; D is the background."""


def get_benchmark(name: str) -> Benchmark:
    """Returns the benchmark called ``name``.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in BENCHMARKS:
        raise UserError(
            f"unknown benchmark {name!r}; choose one of: {', '.join(BENCHMARKS)}"
        )
    return BENCHMARKS[name]


def load(
    benchmark: Benchmark,
    seeds: Sequence[int],
    data_dir: Path | None = None,
    stream_seed: int | None = None,
) -> BenchmarkData:
    """Loads the source and draws one stream per seed.

    Args:
        benchmark: from ``get_benchmark``, possibly with replaced sizes.
        seeds: S seeds; seed s alone decides rows, order and transformations of its
            stream.
        data_dir: folder of the prepared data sets.
        stream_seed: decides the transformations of all seeds, if given; rows and their
            order still follow each seed.

    Returns:
        Arrays on the host.

    Raises:
        DataError: the data set is missing or broken.
        UserError: sizes that the data set cannot serve.
    """
    source = sources.load_source(benchmark.source, data_dir)
    if source.train_labels.min() < 0 or source.train_labels.max() >= source.num_classes:
        raise UserError(
            f"{benchmark.source}: labels must lie in [0, {source.num_classes}), found "
            f"{source.train_labels.min()} to {source.train_labels.max()}"
        )
    try:
        drawn = [
            STREAMS[benchmark.stream](
                seed,
                num_rows_available=len(source.train_labels),
                num_tasks=benchmark.num_tasks,
                rows_per_task=benchmark.rows_per_task,
                image_shape=source.train_images.shape[1:],
                map_seed=stream_seed,
            )
            for seed in seeds
        ]
    except ValueError as error:
        raise UserError(f"{benchmark.name}: {error}") from error
    return BenchmarkData(
        train_images=_flat(source.train_images),
        train_labels=source.train_labels,
        test_images=_flat(source.test_images),
        test_labels=source.test_labels,
        max_value=source.max_value,
        num_classes=source.num_classes,
        rows=np.stack([stream.rows for stream in drawn]),
        pixel_maps=np.stack([stream.pixel_map for stream in drawn]),
    )


def _flat(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.reshape(len(images), -1))
