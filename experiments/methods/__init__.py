"""Every method as a function from a problem to a ``lamaml_jax.Learner``.

A new method is one function in a file of this folder and one line in ``METHODS``.
"""

from collections.abc import Callable

import lamaml_jax as lm
from experiments.errors import UserError
from experiments.methods import lookahead, replay
from experiments.methods.problem import Problem
from experiments.presets import Hyperparameters

METHODS: dict[str, Callable[[Problem, Hyperparameters], lm.Learner]] = {
    "lamaml": lookahead.lamaml,
    "sync": lookahead.sync,
    "cmaml": lookahead.cmaml,
    "er": replay.er,
    "online": replay.online,
}


def make_learner(name: str, problem: Problem, hyper: Hyperparameters) -> lm.Learner:
    """Builds the learner called ``name``.

    Raises:
        UserError: there is none, or its hyper-parameters do not fit together.
    """
    check_method(name)
    try:
        return METHODS[name](problem, hyper)
    except (TypeError, ValueError) as error:
        raise UserError(f"method {name!r}: {error}") from error


def check_method(name: str) -> None:
    """Checks that there is a method called ``name``.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; choose one of: {', '.join(METHODS)}")
