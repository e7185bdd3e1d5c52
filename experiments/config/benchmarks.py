"""Named benchmarks as data: source, stream, model and protocol."""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import own_streams, sources, streams
from experiments.networks import REDUCED_RESNET
from experiments.schema.benchmark import Benchmark
from experiments.support import registry
from experiments.support.errors import UserError
from experiments.support.suggestions import did_you_mean
from experiments.support.values import checked

STREAMS = {
    "rotations": streams.rotation_stream,
    "permutations": streams.permutation_stream,
}
SPLIT = "split"
"""The stream whose tasks have classes of their own."""
_OWN_STREAMS: dict[str, own_streams.StreamFn] = {}
_VALIDATION = 1
"""Second part of the seeds of tasks for validation; those of the test have one part."""


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
        Benchmark(
            "fashion-mnist-split",
            "fashion_mnist",
            SPLIT,
            num_tasks=5,
            rows_per_task=1000,
            classes_per_task=2,
            description="Fashion-MNIST in 5 tasks of 2 classes, 1000 rows each",
        ),
        Benchmark(
            "cifar100-split",
            "cifar100",
            SPLIT,
            num_tasks=20,
            rows_per_task=2250,
            classes_per_task=5,
            channels=(160, 160, 160),
            hidden=(320, 320),
            augment=("crop", "flip", "brightness"),
            mean=(0.5071, 0.4867, 0.4408),
            std=(0.2675, 0.2565, 0.2761),
            description="CIFAR-100 in 20 tasks of 5 classes, 2250 rows each",
        ),
        Benchmark(
            "tinyimagenet-split",
            "tiny_imagenet",
            SPLIT,
            num_tasks=40,
            rows_per_task=2250,
            classes_per_task=5,
            channels=(160, 160, 160, 160),
            hidden=(640, 640),
            augment=("crop", "flip"),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            description="Tiny ImageNet in 40 tasks of 5 classes, 2250 rows each",
        ),
        Benchmark(
            "mnist-online",
            "mnist",
            SPLIT,
            num_tasks=5,
            rows_per_task=1000,
            classes_per_task=2,
            is_online=True,
            anytime_every=5,
            description="Online: MNIST's classes arrive by two, 1000 rows of each pair",
        ),
        Benchmark(
            "cifar100-online",
            "cifar100",
            SPLIT,
            num_tasks=20,
            rows_per_task=2250,
            classes_per_task=5,
            channels=(20, 40, 80, 160),
            hidden=(),
            augment=("crop", "flip"),
            mean=(0.5071, 0.4867, 0.4408),
            std=(0.2675, 0.2565, 0.2761),
            network=REDUCED_RESNET,
            is_online=True,
            anytime_every=25,
            anytime_rows=100,
            description=(
                "Online: CIFAR-100's classes arrive by five, 2250 rows of each five; "
                "reduced ResNet-18 with GroupNorm in BatchNorm's place"
            ),
        ),
    ]
}


class BenchmarkData(NamedTuple):
    """Arrays of one benchmark for S seeds; images stay uint8."""

    train_images: np.ndarray
    """uint8 (a person's own may be float32) [N, H, W, C], or [N, D] for the published
    network without convolutions."""
    train_labels: np.ndarray
    """int32 [N]."""
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


def register(
    name: str,
    data: str | sources.Source | Callable[[], sources.Source],
    *,
    stream: str | streams.Stream | own_streams.StreamFn,
    num_tasks: int | None = None,
    rows_per_task: int | None = None,
    description: str = "",
    **fields: Any,
) -> Benchmark:
    """Adds a person's own benchmark to the command line.

    Args:
        name: for ``--benchmark`` and folders.
        data: a data set as ``data.own`` makes it of arrays, or better a function that
            makes it, which is called when the data are needed; or the name of one of
            those in ``data list``.
        stream: ``"rotations"``, ``"permutations"`` or ``"split"``; a ``Stream``, the
            person's own order of rows, which all seeds are shown; or a function that
            draws one, see ``own_streams.StreamFn``.
        num_tasks: T; all there are if the stream is a ``Stream``.
        rows_per_task: likewise.
        description: a line for ``list``.
        **fields: others of ``Benchmark``, such as ``classes_per_task`` or ``network``.

    Returns:
        The benchmark.

    Raises:
        UserError: the name is taken, or a field that cannot be.
    """
    if isinstance(data, str):
        source = data
        sources.check_name(source)
    else:
        source = name
    if isinstance(stream, streams.Stream):
        shape = np.shape(stream.rows)
        if len(shape) != 2:
            raise UserError(f"{name}: stream: expected rows [T, R], received {shape}")
        num_tasks, rows_per_task = num_tasks or shape[0], rows_per_task or shape[1]
        draw_own = own_streams.same_for_all(stream)
    else:
        draw_own = None if isinstance(stream, str) else stream
    kind = stream if isinstance(stream, str) else name
    if kind == name and name in (*STREAMS, SPLIT):
        raise UserError(f"{name}: is the name of a stream that there is")
    if isinstance(stream, str) and stream not in (known := (*STREAMS, SPLIT)):
        raise UserError(
            f"{name}: stream: expected one of {', '.join(known)}, received {stream!r}"
        )
    if (kind == SPLIT) > (fields.get("classes_per_task") is not None):
        raise UserError(f"{name}: classes_per_task: expected for a split")
    if num_tasks is None or rows_per_task is None:
        raise UserError(f"{name}: num_tasks, rows_per_task: expected whole numbers")
    fields |= {"num_tasks": num_tasks, "rows_per_task": rows_per_task}
    hints = typing.get_type_hints(Benchmark)
    for key, value in fields.items():
        if key not in hints:
            raise UserError(f"{name}: unknown field {key!r}{did_you_mean(key, hints)}")
        fields[key] = checked(f"{name}: {key}", hints[key], value)
    made = Benchmark(name, source, kind, description=description, **fields)
    registry.add(BENCHMARKS, "benchmark", name, made)
    if draw_own is not None:
        _OWN_STREAMS[name] = draw_own
    if not isinstance(data, str):
        sources.register(name, data if callable(data) else lambda: data)
    return made


def get_benchmark(name: str) -> Benchmark:
    """Returns the benchmark called ``name``.

    Raises:
        UserError: there is none; the message names a close one or all there are.
    """
    if name not in BENCHMARKS:
        known = f"; choose one of: {', '.join(BENCHMARKS)}"
        raise UserError(
            f"unknown benchmark {name!r}{did_you_mean(name, BENCHMARKS) or known}"
        )
    return BENCHMARKS[name]


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
    source: sources.Source,
    seeds: Sequence[int],
    stream_seed: int | None = None,
    evaluate_on: str = "test",
) -> BenchmarkData:
    """Draws one stream per seed from a source at hand; otherwise as ``load``."""
    if source.train_labels.min() < 0 or source.train_labels.max() >= source.num_classes:
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
    if benchmark.classes_per_task is None or benchmark.stream in _OWN_STREAMS:
        return benchmark
    available = num_classes // max(benchmark.classes_per_task, 1)
    num_tasks = min(benchmark.num_tasks, max(available, 1))
    try:
        streams.check_class_split(num_classes, benchmark.classes_per_task, num_tasks)
    except ValueError as error:
        raise UserError(f"{benchmark.name}: {error}") from error
    return dataclasses.replace(benchmark, num_tasks=num_tasks)


def hold_out(source: sources.Source) -> sources.Source:
    """Puts a tenth of the training rows of every class in the place of the test rows.

    Which rows does not depend on any seed. A run on what is left sees no test row.
    """
    counts = np.bincount(source.train_labels, minlength=source.num_classes)
    generator = np.random.default_rng(_VALIDATION)
    order = generator.permutation(len(source.train_labels))
    by_class = order[np.argsort(source.train_labels[order], kind="stable")]
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
    source: sources.Source,
    seed: int,
    stream_seed: int | None,
    is_test: bool,
) -> streams.Stream:
    sizes: dict[str, Any] = {
        "num_tasks": benchmark.num_tasks,
        "rows_per_task": benchmark.rows_per_task,
        "map_seed": stream_seed,
    }
    own: streams.Seed = seed
    if not is_test:
        own = (seed, _VALIDATION)
        if stream_seed is not None:
            sizes["map_seed"] = (stream_seed, _VALIDATION)
    if benchmark.stream == SPLIT:
        if not is_test:
            sizes["validation_fraction"] = 0.0  # held out already
        return streams.split_stream(
            own,
            train_labels=source.train_labels,
            test_labels=source.test_labels,
            num_classes=source.num_classes,
            classes_per_task=benchmark.classes_per_task or 0,
            **sizes,
        )
    if benchmark.stream in _OWN_STREAMS:
        drawn = _OWN_STREAMS[benchmark.stream](own, source, **sizes)
        del sizes["map_seed"]
        return own_streams.checked(
            drawn, source, **sizes, classes_per_task=benchmark.classes_per_task
        )
    if benchmark.stream not in STREAMS:
        raise UserError(f"{benchmark.name}: unknown stream {benchmark.stream!r}")
    return STREAMS[benchmark.stream](
        own,
        num_rows_available=len(source.train_labels),
        image_shape=source.train_images.shape[1:],
        **sizes,
    )


def _images(images: np.ndarray, flat: bool) -> np.ndarray:
    if flat:
        images = images.reshape(len(images), -1)
    elif images.ndim == 3:
        images = images[..., None]
    return np.ascontiguousarray(images)
