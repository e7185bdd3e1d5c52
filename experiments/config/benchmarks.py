"""Named benchmarks as data, and a person's own beside them."""

import typing
from collections.abc import Callable
from typing import Any

import numpy as np

# What is drawn of a benchmark is asked for by way of this module too.
from experiments.config.drawing import (  # noqa: F401
    OWN_STREAMS,
    SPLIT,
    STREAMS,
    BenchmarkData,
    draw,
    hold_out,
    load,
    with_tasks_of,
)
from experiments.data import own_streams, sources
from experiments.data.own_streams import StreamFn
from experiments.data.source import Source
from experiments.data.streams import Stream
from experiments.networks import REDUCED_RESNET_BATCHNORM
from experiments.schema.benchmark import Benchmark
from experiments.support import registry
from experiments.support.errors import UserError
from experiments.support.suggestions import did_you_mean, unknown
from experiments.support.values import checked

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
            "fashion-mnist-online",
            "fashion_mnist",
            SPLIT,
            num_tasks=5,
            rows_per_task=1000,
            classes_per_task=2,
            is_online=True,
            anytime_every=5,
            description=(
                "Online: Fashion-MNIST's classes arrive by two, 1000 rows of each pair"
            ),
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
            network=REDUCED_RESNET_BATCHNORM,
            is_online=True,
            anytime_every=25,
            anytime_rows=100,
            raw_memory=True,
            description=(
                "Online: CIFAR-100's classes arrive by five, 2250 rows of each five; "
                "reduced ResNet-18"
            ),
        ),
        Benchmark(
            "tinyimagenet-online",
            "tiny_imagenet",
            SPLIT,
            num_tasks=20,
            rows_per_task=4500,
            classes_per_task=10,
            channels=(20, 40, 80, 160),
            hidden=(),
            augment=("crop", "flip"),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            network=REDUCED_RESNET_BATCHNORM,
            is_online=True,
            anytime_every=50,
            anytime_rows=100,
            raw_memory=True,
            description=(
                "Online: Tiny ImageNet's classes arrive by ten, 4500 rows of each ten; "
                "reduced ResNet-18"
            ),
        ),
    ]
}


def register(
    name: str,
    data: str | Source | Callable[..., Source],
    *,
    stream: str | Stream | StreamFn,
    num_tasks: int | None = None,
    rows_per_task: int | None = None,
    description: str = "",
    **fields: Any,
) -> Benchmark:
    """Adds a person's own benchmark to the command line.

    Args:
        name: for ``--benchmark`` and folders.
        data: a data set as ``data.own`` makes it of arrays, or better a function that
            makes it, which is called when the data are needed, see
            ``sources.register``; or the name of one of those in ``data list``.
        stream: ``"rotations"``, ``"permutations"`` or ``"split"``; a ``Stream``, the
            person's own order of rows, which all seeds are shown; or a function that
            draws one, see ``own_streams.StreamFn``.
        num_tasks: T; all there are if the stream is a ``Stream``.
        rows_per_task: likewise.
        description: a line for ``list``.
        **fields: others of ``Benchmark``, such as ``classes_per_task``, ``network`` or
            ``blur``.

    Returns:
        The benchmark.

    Raises:
        UserError: the name is taken, or a field that cannot be.
    """
    draw_own, sizes = _own_stream(name, stream)
    given = {"num_tasks": num_tasks, "rows_per_task": rows_per_task}
    sizes |= {key: value for key, value in given.items() if value is not None}
    kind = stream if isinstance(stream, str) else name
    if (kind == SPLIT) > (fields.get("classes_per_task") is not None):
        raise UserError(f"{name}: classes_per_task: expected for a split")
    if missing := given.keys() - sizes.keys():
        names = ", ".join(each for each in given if each in missing)
        raise UserError(f"{name}: {names}: expected a whole number, received None")
    source = name
    if isinstance(data, str):
        source = data
        sources.check_name(source)
    told = _checked_fields(name, fields | sizes)
    made = Benchmark(name, source, kind, description=description, **told)
    registry.add(BENCHMARKS, "benchmark", name, made)
    if draw_own is not None:
        OWN_STREAMS[name] = draw_own
    if not isinstance(data, str):
        sources.register(name, data if callable(data) else lambda: data)
    return made


def _own_stream(
    name: str, stream: str | Stream | StreamFn
) -> tuple[StreamFn | None, dict[str, Any]]:
    """Returns what draws a person's own stream, and the sizes that it has."""
    if isinstance(stream, str):
        if stream not in (known := (*STREAMS, SPLIT)):
            raise UserError(
                f"{name}: stream: expected one of {', '.join(known)}, received "
                f"{stream!r}"
            )
        return None, {}
    if name in (*STREAMS, SPLIT):
        raise UserError(f"{name}: is the name of a stream that there is")
    if not isinstance(stream, Stream):
        return stream, {}
    shape = np.shape(stream.rows)
    if len(shape) != 2:
        raise UserError(f"{name}: stream: expected rows [T, R], received {shape}")
    sizes = {"num_tasks": shape[0], "rows_per_task": shape[1]}
    return own_streams.same_for_all(stream), sizes


def _checked_fields(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Checks names and types of fields of a benchmark."""
    hints = typing.get_type_hints(Benchmark)
    for key in fields:
        if key not in hints:
            raise UserError(f"{name}: unknown field {key!r}{did_you_mean(key, hints)}")
    return {
        key: checked(f"{name}: {key}", hints[key], value)
        for key, value in fields.items()
    }


def get_benchmark(name: str) -> Benchmark:
    """Returns the benchmark called ``name``.

    Raises:
        UserError: there is none; the message names a close one or all there are.
    """
    if name not in BENCHMARKS:
        raise UserError(unknown("benchmark", name, BENCHMARKS))
    return BENCHMARKS[name]
