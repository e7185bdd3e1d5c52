"""What decides a run's numbers."""

import dataclasses

from experiments.schema.benchmark import Benchmark
from experiments.schema.choices import Part, Passes, Precision, Setting
from experiments.schema.fields import Seed
from experiments.schema.hyperparameters import Hyperparameters


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers."""

    benchmark: Benchmark
    method: str
    seeds: tuple[int, ...]
    hyper: Hyperparameters
    stream_seed: Seed | None = None
    """Decides the tasks' angles or permutations for all seeds, as in the authors'
    protocol [default: each seed has its own]"""
    setting: Setting = "aware"
    """Aware: learners are told task ids, and a benchmark whose tasks have classes of
    their own has a head per task. Agnostic: one head over all classes, and no task id
    or boundary reaches the learner."""
    passes: Passes = "single"
    """Presets for one pass over each task (with glances) or for several"""
    probes: bool = False
    """Also take the accuracy at the fast and the slow weights about every 25
    meta-updates through the first five tasks."""
    alignment: bool = False
    """Also take the cosines between the gradients of the tasks' losses.

    After every evaluation.
    """
    linear_probe: bool = False
    """At the end also take the accuracy on all classes of a linear classifier.

    It is fitted to the network's last features of every training row.
    """
    precision: Precision = "float32"
    """What networks compute in; weights are float32"""
    evaluate_on: Part = "test"
    """Rows and tasks to evaluate on.

    On ``"validation"`` a tenth of the training rows is held out for it, tasks are drawn
    anew, and no test row or test task is seen.
    """
    presets_from: str | None = None
    """The benchmark whose presets these are, where this one has none."""

    @property
    def is_aware(self) -> bool:
        """Whether learners are told of tasks."""
        return self.setting == "aware"
