"""What there is to say of a method: how it is built, and what it asks for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lamaml_jax as lm
from experiments.methods.cost import Cost
from experiments.methods.problem import Problem
from experiments.schema.hyperparameters import Hyperparameters


def trained_weights(state: Any) -> lm.Params:
    """Returns the weights in the state of a method's learner."""
    return state.weights


class Method(NamedTuple):
    """How a method is built, and what it asks of a benchmark."""

    make: Callable[[Problem, Any], lm.Learner]
    """From a problem and an instance of ``told``."""
    cost: Callable[[Problem, Any], Cost] | None = None
    """Counts what it asks for; of the problem it reads sizes only. Tables have no cost
    of a method without it."""
    told: type[Hyperparameters] = Hyperparameters
    """What it is told: what several methods are, and fields of its own."""
    needs_tasks: bool = False
    """The learner reads task ids or ends of tasks."""
    needs_own_classes: bool = False
    """No class may belong to two tasks."""
    mixes_tasks: bool = False
    """It is shown the rows of all tasks mixed, an upper bound."""
    predicting_weights: Callable[[Any], lm.Params] = trained_weights
    """``state -> weights`` with which it predicts; those that it trains unless it keeps
    others, such as their average."""
    make_scores: Callable[..., Callable[[Any, Any], Any]] | None = None
    """``(problem, hyper) -> scores_fn`` with ``scores_fn(state, images [B, ...]) -> [B,
    Y]``, for methods that do not predict with the logits; ``state`` is theirs."""
    hyper: Hyperparameters | None = None
    """What it is told on every benchmark, of a person's own method; of others
    ``presets`` has it, by benchmark."""
    scores_by_rows: bool = False
    """It predicts with rows that it keeps."""
    takes_rows_alone: bool = False
    """It asks for gradients or outputs of single rows, which BatchNorm mixes."""
    needs_classes: bool = False
    """What is learnt are classes, not real numbers."""
    needs_one_head: bool = False
    """It is about the outputs of all classes, not about heads masked by task."""
