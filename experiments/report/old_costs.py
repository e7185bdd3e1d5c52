"""What runs cost whose folders do not say, because they are older than the count."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

# Images and classes of the data sets of those runs.
_FORMS = {
    "digits": ((8, 8), 10),
    "mnist": ((28, 28), 10),
    "fashion_mnist": ((28, 28), 10),
    "cifar100": ((32, 32, 3), 100),
    "tiny_imagenet": ((64, 64, 3), 200),
}


def _fields(kind: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: stored[name] for name in names & stored.keys()}


def derive(stored: Mapping[str, Any]) -> dict[str, float]:
    """Counts what a run cost that was written before runs said so.

    Args:
        stored: a run's config.json.

    Returns:
        As ``training.costs.cost_record``; nothing if a size or the method is not known
        here.
    """
    if stored.get("source") not in _FORMS:
        return {}
    # Methods count in terms of their learners, and import jax with them; only for these
    # old runs does a report.
    from experiments.config.benchmarks import Benchmark
    from experiments.config.run_config import RunConfig
    from experiments.methods import METHODS
    from experiments.training.costs import cost_record
    from experiments.training.inputs import DataForm

    if stored["method"] not in METHODS:
        return {}
    told = METHODS[stored["method"]].told

    shape, num_classes = _FORMS[stored["source"]]
    if not stored["channels"]:
        shape = (math.prod(shape),)
    try:
        known = _fields(Benchmark, stored) | {"name": stored["benchmark"]}
        hyper = told(**_fields(told, stored))
        config = RunConfig(
            Benchmark(**known), stored["method"], (), hyper, setting=stored["setting"]
        )
        return cost_record(config, DataForm(shape, num_classes, 1))
    except TypeError:  # a field is missing
        return {}
