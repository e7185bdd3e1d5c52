"""What runs cost, also those whose folders do not say."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a report imports jax only for runs that do not say what they cost
    from experiments.config.run_config import RunConfig
    from experiments.training.inputs import DataForm

GRADIENT_EVALUATIONS = "gradient_evaluations_per_row"
MEMORY_BYTES = "memory_bytes"
# Images and classes of the data sets of runs that do not say what they cost.
_FORMS = {
    "digits": ((8, 8), 10),
    "mnist": ((28, 28), 10),
    "fashion_mnist": ((28, 28), 10),
    "cifar100": ((32, 32, 3), 100),
    "tiny_imagenet": ((64, 64, 3), 200),
}


def cost_record(config: "RunConfig", form: "DataForm") -> dict[str, float]:
    """Counts what a run costs, as its summary holds it.

    Args:
        config: what is run.
        form: sizes of its data.

    Returns:
        The fields of ``methods.cost.Cost`` under the two names above; nothing for a
        method that does not say.
    """
    from experiments import methods
    from experiments.training.problem import make_problem

    method = methods.METHODS.get(config.method)
    if method is None or method.cost is None:
        return {}
    found = method.cost(make_problem(config, form), config.hyper)
    return {
        GRADIENT_EVALUATIONS: found.gradient_evaluations,
        MEMORY_BYTES: found.memory_bytes,
    }


def derive(stored: Mapping[str, Any]) -> dict[str, float]:
    """Counts what a run cost that was written before runs said so.

    Args:
        stored: a run's config.json.

    Returns:
        As ``cost_record``; nothing if a size or the method is not known here.
    """
    from experiments.config.benchmarks import Benchmark
    from experiments.config.run_config import RunConfig
    from experiments.methods.hyperparameters import Hyperparameters
    from experiments.training.inputs import DataForm

    def fields(kind: Any) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(kind)}
        return {name: stored[name] for name in names & stored.keys()}

    if stored.get("source") not in _FORMS:
        return {}
    shape, num_classes = _FORMS[stored["source"]]
    if not stored["channels"]:
        shape = (math.prod(shape),)
    try:
        benchmark = Benchmark(**fields(Benchmark) | {"name": stored["benchmark"]})
        hyper = Hyperparameters(**fields(Hyperparameters))
        config = RunConfig(
            benchmark, stored["method"], (), hyper, setting=stored["setting"]
        )
        return cost_record(config, DataForm(shape, num_classes, 1))
    except TypeError:  # a field is missing
        return {}
