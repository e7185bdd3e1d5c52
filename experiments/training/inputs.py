"""A benchmark's arrays on the devices: what seeds share, and what each has of its own.

Every function of one seed is ``fn(shared, own)``. ``placement.over_seeds`` maps it over
the leading axis that all leaves of ``own`` have and none of ``shared``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.config import benchmarks
from experiments.training import placement


class DataForm(NamedTuple):
    """Sizes of a benchmark's data that its programs are compiled for."""

    image_shape: tuple[int, ...]
    num_classes: int
    max_value: float
    dtype: Any = np.uint8
    """Of images as they are stored."""


class Shared(NamedTuple):
    """What all seeds read: images as in ``BenchmarkData``, and where the run is."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array
    task: Any = None
    """Index of the task at hand, int32."""
    first: Any = None
    """Index of a batch in it, int32."""
    wanted: Any = None
    """[T] booleans: tasks to evaluate."""


IMAGES = ("train_images", "train_labels", "test_images", "test_labels")
"""The fields of ``Shared`` that do not change."""


class StreamArrays(NamedTuple):
    """A seed's stream, as in ``BenchmarkData``."""

    rows: jax.Array
    pixel_maps: jax.Array
    label_maps: jax.Array
    test_rows: jax.Array
    owners: jax.Array


class Own(NamedTuple):
    """What one seed has of its own; with a leading axis S, what all seeds have."""

    seed: Any
    """int32."""
    stream: StreamArrays
    rates: Any = None
    """Numbers by name, as ``hyperparameters.rates_of`` has them."""
    state: Any = None
    """Of the learner, or what of it is evaluated."""
    is_alive: Any = None
    """Whether it has not diverged."""


class Inputs(NamedTuple):
    """A benchmark on a mesh, the same for all methods."""

    mesh: Mesh
    platform: str
    """What programs are compiled for, such as ``"cpu"``."""
    form: DataForm
    shared: Shared
    own: Own
    """Seeds and streams, S padded with the last one to a multiple of the mesh."""


def place(data: benchmarks.BenchmarkData, seeds: Sequence[int], mesh: Mesh) -> Inputs:
    """Puts a benchmark on the devices: seeds sharded, images on every device.

    Args:
        data: from ``benchmarks.load`` for ``placement.own_seeds``, which are all in a
            run of one process.
        seeds: S seeds of the run, or of all runs of a group.
        mesh: from ``placement.make_mesh``.

    Returns:
        What programs are compiled for and called with.
    """
    images = [placement.place_everywhere(getattr(data, name), mesh) for name in IMAGES]
    stream = [getattr(data, name) for name in StreamArrays._fields]
    return Inputs(
        mesh,
        placement.platform_of(mesh),
        DataForm(
            data.train_images.shape[1:],
            data.num_classes,
            data.max_value,
            data.train_images.dtype,
        ),
        Shared(*images),
        Own(
            placement.place_all(np.asarray(seeds, np.int32), mesh),
            StreamArrays(*placement.place_own(stream, seeds, mesh)),
        ),
    )
