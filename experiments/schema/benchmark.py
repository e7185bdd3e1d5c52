"""What decides a benchmark's stream, network and protocol."""

import dataclasses
from typing import Annotated

from experiments.schema.choices import Setting
from experiments.schema.fields import Count, UpTo, Within

PUBLISHED = "published"
"""The network of the paper: of ``channels`` and ``hidden`` of a benchmark."""

_BELOW_ONE = Within("a share in [0, 1)", lambda x: 0 <= x < 1)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark; another data set of the same shape is one entry of a table."""

    name: str
    source: str
    """Name of the data set, as in ``experiments data list``."""
    stream: str
    """How tasks are made of it: one of ``config.drawing.STREAMS``, ``SPLIT``, or a
    person's own."""
    num_tasks: Annotated[int, UpTo(10_000)]
    """Tasks of the stream (fewer is not the benchmark).

    T; a split of a data set with fewer classes has as many as those make.
    """
    rows_per_task: Count
    """Training rows per task, each shown once in a pass."""
    classes_per_task: Count | None = None
    """Classes per task, where tasks have their own."""
    channels: tuple[int, ...] = ()
    """Channels of the network's convolutions, if any."""
    hidden: tuple[int, ...] = (100, 100)
    """Widths of the network's hidden dense layers."""
    augment: tuple[str, ...] = ()
    """What is done to a training row when it is shown, names of ``augment.STEPS``."""
    mean: tuple[float, ...] = ()
    """Channel means that are subtracted after scaling to [0, 1]; none if empty."""
    std: tuple[float, ...] = ()
    """Channel standard deviations that are divided by."""
    eval_every: Count = 1
    """Evaluate on all tasks after every this many, and after the last.

    In between, only the task just learnt and the next one are evaluated, which is all
    that LA, BTI and forward transfer need.
    """
    description: str = ""
    network: str = PUBLISHED
    """Name of a network that a plugin registers [default: the benchmark's]

    Or another of ``networks.NETWORKS``; a person's own passes over ``channels`` and
    ``hidden``.
    """
    is_online: bool = False
    """Whether it is class-incremental online learning: one pass, one head over all
    classes, and no task id reaches the learner."""
    anytime_every: Count | None = None
    """Batches between two evaluations within a task on all tasks seen, which are part
    of the compiled program; None: there are none."""
    anytime_rows: Count | None = None
    """Test rows of each task that those evaluations take, evenly spread over its
    classes; None: all."""
    raw_memory: bool = False
    """Whether learners are given rows as they are stored, so that a memory keeps them
    so (uint8) and each replay augments them anew."""
    loss: str = "cross_entropy"
    """What training descends; asymmetric_cross_entropy is ER-ACE's, of any method.

    A name of ``data.targets.LOSSES``.
    """
    metric: str = "accuracy"
    """What stands in accuracy's place, a name of ``data.targets.METRICS``; RA, BTI, LA
    and all others are of it."""
    blur: Annotated[float, _BELOW_ONE] = 0.0
    """Share of each task's rows that are shown in the time of the other tasks.

    See ``data.blurring``; 0: tasks have boundaries. Tasks that blur have no ids.
    """

    @property
    def usual_setting(self) -> Setting:
        """The setting of a run that was told of none."""
        return "agnostic" if self.is_online or self.blur else "aware"

    @property
    def is_flat(self) -> bool:
        """Whether the network is given rows as vectors [B, D]."""
        return self.network == PUBLISHED and not self.channels
