"""Streams of a person's own making: cut to the sizes of a run, and checked."""

from collections.abc import Callable

import numpy as np

from experiments.data.source import Source
from experiments.data.streams import Seed, Stream

StreamFn = Callable[..., Stream]
"""``draw(seed, source, *, num_tasks, rows_per_task, map_seed) -> Stream``. Numpy makes
generators of ``seed`` and of ``map_seed``, which is None unless ``--stream-seed`` is
given. On validation ``source`` has the rows that are left, and those held out as its
test rows."""


def same_for_all(stream: Stream) -> StreamFn:
    """Makes a stream of a person's own order, which every seed is shown.

    Args:
        stream: the order.

    Returns:
        A function that takes its first tasks and rows.

    >>> morning, evening = [0, 2, 4], [5, 3, 1]  # rows of the training images
    >>> stream = Stream(np.array([morning, evening]))
    >>> draw = same_for_all(stream)
    >>> draw(seed=7, source=None, num_tasks=2, rows_per_task=2).rows
    array([[0, 2],
           [5, 3]])

    ``benchmarks.register(..., stream=stream)`` makes it, and takes the sizes from it.
    """

    def draw(
        seed: Seed,
        source: Source,
        *,
        num_tasks: int,
        rows_per_task: int,
        map_seed: Seed | None = None,
    ) -> Stream:
        del source, map_seed
        if isinstance(seed, tuple):
            raise ValueError(
                "stream: an order of your own has no validation tasks, which a sweep "
                "needs; give a function of the data set instead"
            )
        most = np.shape(stream.rows)
        if len(most) != 2 or num_tasks > most[0] or rows_per_task > most[1]:
            raise ValueError(
                f"num_tasks, rows_per_task: expected at most {list(most)}, as the "
                f"stream's own rows, received {num_tasks} and {rows_per_task}"
            )
        cut = lambda array: None if array is None else np.asarray(array)[:num_tasks]
        owners = cut(stream.owners)
        return stream._replace(
            rows=np.asarray(stream.rows)[:num_tasks, :rows_per_task],
            pixel_map=cut(stream.pixel_map),
            test_rows=cut(stream.test_rows),
            owners=None if owners is None else owners[:, :rows_per_task],
        )

    return draw


def checked(
    stream: Stream,
    source: Source,
    *,
    num_tasks: int,
    rows_per_task: int,
    classes_per_task: int | None = None,
) -> Stream:
    """Checks a stream, and gives its arrays their dtype.

    Args:
        stream: what a person's function made.
        source: the data set.
        num_tasks: T.
        rows_per_task: R.
        classes_per_task: of tasks with classes of their own, else None.

    Returns:
        The stream, of int32 arrays.

    Raises:
        ValueError: an array is of another shape, an index is beyond its array, or a
            row is of a class of another task.
    """
    if not isinstance(stream, Stream):
        raise ValueError(f"stream: expected a Stream, received {type(stream).__name__}")
    num_pixels = int(np.prod(source.train_images.shape[1:]))
    num_tested = (0,)
    if stream.test_rows is not None:
        num_tested = np.shape(stream.test_rows)[-1:] or (0,)
    forms = {
        "rows": ((num_tasks, rows_per_task), len(source.train_labels)),
        "pixel_map": ((num_tasks, num_pixels), num_pixels + 1),
        "label_map": ((source.num_classes,), source.num_classes),
        "test_rows": ((num_tasks, *num_tested), len(source.test_labels)),
        "owners": ((num_tasks, rows_per_task), num_tasks),
    }
    found = {}
    for name, (shape, end) in forms.items():
        if getattr(stream, name) is None and name != "rows":
            continue
        array = np.asarray(getattr(stream, name))
        if array.shape != shape or array.dtype.kind not in "iu" or not array.size:
            raise ValueError(
                f"stream: {name}: expected integers {list(shape)}, received "
                f"{array.dtype} {list(array.shape)}"
            )
        if array.min() < 0 or array.max() >= end:
            raise ValueError(
                f"stream: {name}: expected 0 to {end - 1}, received {array.min()} to "
                f"{array.max()}"
            )
        found[name] = array.astype(np.int32)
    made = Stream(**found)
    if classes_per_task is not None:
        _check_owners(made, source, classes_per_task)
    return made


def _check_owners(stream: Stream, source: Source, classes_per_task: int) -> None:
    """Checks that task t has rows of classes ``t * classes_per_task`` and on only."""
    if stream.test_rows is None:
        raise ValueError("stream: test_rows: expected, as tasks have their own classes")
    new = (
        np.arange(source.num_classes) if stream.label_map is None else stream.label_map
    )
    own = np.arange(len(stream.rows))[:, None]
    shown = {
        "rows": (
            stream.rows,
            source.train_labels,
            own if stream.owners is None else stream.owners,
        ),
        "test_rows": (stream.test_rows, source.test_labels, own),
    }
    for name, (rows, labels, expected) in shown.items():
        wrong = new[labels[rows]] // classes_per_task != expected
        if wrong.any():
            task = int(np.argmax(wrong.any(axis=1)))
            label = int(new[labels[rows[task]]][wrong[task]][0])
            raise ValueError(
                f"stream: {name}: task {task} has a row of class {label}, and its own "
                f"are {task * classes_per_task} to {(task + 1) * classes_per_task - 1}"
            )
