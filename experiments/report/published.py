"""Figures of others to compare with, as data.

MNIST: the authors' code (montrealrobotics/La-MAML) run on the same images with its
published hyper-parameters for the La-MAML family; ER, GEM, A-GEM and Online have none
and were not tuned (ER learning rate 0.1, the others 0.03). Angles and permutations were
drawn anew in the published manner. CIFAR-100 and Tiny ImageNet: as printed in the
figures of the authors' repository, task-aware. Online CIFAR-100: the five runs of ER
that the survey's repository stores (AlbinSou/ocl_survey, ``results``, commit 5a2622a).
Their tasks have 2,375 rows, their last layer grows by the classes of each task, and
their memory keeps as many rows of each class.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.schema.hyperparameters import NO_CLIP

AUTHORS_CODE = "authors' code"
AUTHORS_FIGURES = "authors' figures"
PAPER = "paper"
SURVEYS_RUNS = "survey's runs"


class Published(NamedTuple):
    """One method on one benchmark; percent, one value per seed where seeds are known.

    BTI is divided by the number of tasks T.
    """

    benchmark: str
    method: str
    source: str
    """One of the sources above."""
    retained_accuracy: tuple[float, ...]
    backward_transfer_interference: tuple[float, ...] = ()
    learning_accuracy: tuple[float, ...] = ()
    settings: Mapping[str, Any] = {}
    """Values in a run's configuration with which the figures may be compared."""

    @property
    def ra(self) -> float:
        """Mean retained accuracy, percent."""
        return _mean(self.retained_accuracy)

    @property
    def bti(self) -> float:
        """Mean BTI, percentage points; NaN if not given."""
        return _mean(self.backward_transfer_interference)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values) if values else float("nan")


_TWENTY = {"num_tasks": 20, "rows_per_task": 1000, "glances": 5}
_TWENTY_200 = {**_TWENTY, "capacity": 200, "replay_size": 10, "first_order": True}
_TWENTY_ER = {**_TWENTY, "capacity": 200, "replay_size": 10, "learning_rate": 0.1}
_MANY = {
    "num_tasks": 100,
    "rows_per_task": 200,
    "capacity": 500,
    "replay_size": 10,
    "first_order": True,
}
_ROTATIONS, _PERMUTATIONS = "mnist-rotations", "mnist-permutations"


def _code(
    benchmark: str,
    method: str,
    ra: tuple[float, ...],
    bti: tuple[float, ...],
    la: tuple[float, ...],
    settings: Mapping[str, Any],
) -> Published:
    return Published(benchmark, method, AUTHORS_CODE, ra, bti, la, settings)


_MNIST = (
    _code(
        _ROTATIONS,
        "lamaml",
        (77.5, 76.8, 77.0),
        (-8.6, -9.2, -8.6),
        (86.1, 85.9, 85.6),
        _TWENTY_200,
    ),
    _code(
        _ROTATIONS,
        "cmaml",
        (77.9, 77.6),
        (-7.1, -7.7),
        (85.0, 85.2),
        {**_TWENTY_200, "step_size_init": 0.1},
    ),
    _code(_ROTATIONS, "sync", (71.5, 69.5), (-14.9, -16.3), (86.4, 85.8), _TWENTY_200),
    _code(_ROTATIONS, "er", (68.7,), (-18.5,), (87.2,), _TWENTY_ER),
    _code(_ROTATIONS, "gem", (66.2,), (-18.8,), (85.0,), _TWENTY),
    _code(_ROTATIONS, "agem", (62.8,), (-22.6,), (85.4,), _TWENTY),
    _code(_ROTATIONS, "online", (45.7,), (-39.8,), (85.5,), _TWENTY),
    Published(_ROTATIONS, "lamaml", PAPER, (77.42,), settings=_TWENTY_200),
    _code(
        _PERMUTATIONS, "lamaml", (73.6, 72.9), (-7.9, -8.6), (81.5, 81.5), _TWENTY_200
    ),
    _code(
        _PERMUTATIONS,
        "cmaml",
        (74.5, 74.1),
        (-11.1, -10.6),
        (85.6, 84.7),
        {**_TWENTY_200, "step_size_init": 0.03},
    ),
    _code(
        _PERMUTATIONS, "sync", (57.8, 60.4), (-22.2, -20.0), (80.0, 80.4), _TWENTY_200
    ),
    _code(_PERMUTATIONS, "er", (66.8,), (-17.0,), (83.8,), _TWENTY_ER),
    _code(_PERMUTATIONS, "online", (55.1,), (-26.8,), (81.9,), _TWENTY),
    _code("mnist-many", "lamaml", (46.8,), (-14.5,), (61.4,), {**_MANY, "glances": 10}),
    _code(
        "mnist-many",
        "cmaml",
        (46.1,),
        (-21.8,),
        (67.9,),
        {**_MANY, "glances": 5, "step_size_init": 0.03},
    ),
)

_CIFAR, _TINY = "cifar100-split", "tinyimagenet-split"
_COLUMNS = (
    (_CIFAR, "multi", 20),
    (_CIFAR, "single", 20),
    (_TINY, "multi", 40),
    (_TINY, "single", 40),
)
# method: figures, and glances of the commands that gave them, by column.
_IMAGES = {
    "lamaml": ((70.08, 61.18, 66.99, 52.59), (1, 10, 1, 2)),
    "cmaml": ((65.44, 55.57, 61.93, 48.77), (1, 2, 1, 2)),
    "er": ((59.70, 47.88, 48.23, 39.38), (1, 10, 1, 2)),
    "mer": ((None, 51.38, None, 44.87), (None, 1, None, 1)),
    "gem": ((62.80, 48.27, 50.57, 40.56), (1, 2, 1, 2)),
    "agem": ((58.37, 46.93, 46.38, 38.96), (1, 2, 1, 2)),
}
_INNER = {
    (_CIFAR, "lamaml"): {"first_order": False, "step_size_init": 0.1},
    (_CIFAR, "cmaml"): {"first_order": False, "step_size_init": 0.075},
    (_TINY, "lamaml"): {"first_order": False, "step_size_init": 0.1},
    (_TINY, "cmaml"): {"first_order": False, "step_size_init": 0.03},
}

_CAPACITY = {_CIFAR: 200, _TINY: 400}
# Rows that those commands replay in every update from a memory of that capacity.
_REPLAYED = {"lamaml": 10, "cmaml": 10, "er": 1, "mer": 25}


def _memory(benchmark: str, method: str) -> dict[str, int]:
    if method not in _REPLAYED:
        return {}
    return {"capacity": _CAPACITY[benchmark], "replay_size": _REPLAYED[method]}


_ONLINE = (
    Published(
        "cifar100-online",
        "er",
        SURVEYS_RUNS,
        (28.95, 29.69, 26.98, 28.24, 26.89),
        settings={
            "num_tasks": 20,
            "rows_per_task": 2250,
            "classes_per_task": 5,
            "capacity": 2000,
            "replay_size": 10,
            "glances": 3,
            "learning_rate": 0.0599,
            "max_grad_norm": NO_CLIP,
            "network": "reduced-resnet18-batchnorm",
        },
    ),
)

_PRINTED = tuple(
    Published(
        benchmark,
        method,
        AUTHORS_FIGURES,
        (value,),
        settings={
            "passes": passes,
            "setting": "aware",
            "num_tasks": num_tasks,
            "rows_per_task": 2250,
            "classes_per_task": 5,
            "glances": glances,
            **_memory(benchmark, method),
            **_INNER.get((benchmark, method), {}),
        },
    )
    for method, columns in _IMAGES.items()
    for (benchmark, passes, num_tasks), value, glances in zip(
        _COLUMNS, *columns, strict=True
    )
    if value is not None
)
PUBLISHED = (*_MNIST, *_PRINTED, *_ONLINE)


def look_up(config: Mapping[str, Any]) -> tuple[Published, ...]:
    """Returns the figures that a run of this configuration may be set beside.

    Args:
        config: a run's config.json.

    Returns:
        Rows of its benchmark and method whose settings are all in ``config``, others'
        code first; none if the run changed the stream, the glances, the reservoir or
        how many of its rows are replayed, the order or C-MAML's inner rate, or was
        evaluated on validation rows.
    """
    return tuple(
        row
        for row in PUBLISHED
        if (row.benchmark, row.method) == (config["benchmark"], config["method"])
        and config.get("evaluate_on", "test") == "test"
        and all(config.get(key) == value for key, value in row.settings.items())
    )
