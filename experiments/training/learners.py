"""A method's learner on a benchmark and network, and what is evaluated of its state."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

import lamaml_jax as lm
from experiments import methods
from experiments.config.run_config import RunConfig, with_rates
from experiments.methods.problem import Problem
from experiments.networks.running import Running
from experiments.training import model_state
from experiments.training.batches import make_images
from experiments.training.inputs import DataForm, Own
from experiments.training.problem import make_problem
from experiments.training.raw_rows import Prepare, changed_anew


class Prediction(NamedTuple):
    """What of a learner's state is evaluated, and how."""

    subject: Callable[[Any], Any]
    """``subject(state)``: the weights unless the method or network has more."""
    scores_fn: Callable[[Any, jax.Array], jax.Array]
    """``(subject, images [B, ...]) -> [B, Y]``."""
    weights_of: Callable[[Any], lm.Params]
    """The weights in a subject."""


def make_prediction(
    config: RunConfig, problem: Problem, running: Running | None
) -> Prediction:
    """Says what is evaluated of a method's state.

    Args:
        config: what to run.
        problem: whose images are inputs of the network.
        running: what the network carries beside its weights, if anything.
    """
    make_scores = methods.METHODS[config.method].make_scores
    weights_of = lambda state: state.weights
    if running is not None:
        scores_fn = model_state.scores_of(running)
        return Prediction(model_state.subject_of, scores_fn, weights_of)
    if make_scores is not None:
        scores_fn = make_scores(problem, config.hyper)
        return Prediction(lambda state: state, scores_fn, weights_of)
    assert problem.logits_fn is not None
    return Prediction(weights_of, problem.logits_fn, lambda weights: weights)


def make_learner_of(
    config: RunConfig,
    form: DataForm,
    apply_fn: Callable[..., jax.Array],
    running: Running | None,
) -> Callable[[Own], lm.Learner]:
    """Builds what makes the learner of one seed, with its own rates.

    Args:
        config: what to run.
        form: sizes of the data.
        apply_fn: ``(weights, images [B, ...]) -> logits [B, Y]`` in training.
        running: what the network carries beside its weights, if anything.

    Raises:
        UserError: the method cannot train such a network.
    """
    methods.check_network(config.method, has_averages=running is not None)
    prepare = make_images(config.benchmark, form).prepare

    def learner_of(own: Own) -> lm.Learner:
        hyper: Any = with_rates(config, own.rates or {}).hyper

        def make(prepare: Prepare | None) -> lm.Learner:
            problem = make_problem(config, form, apply_fn, prepare)
            learner = methods.make_learner(config.method, problem, hyper)
            if running is None:
                return learner
            return model_state.carried(learner, running, hyper.replay_size, prepare)

        if config.benchmark.raw_memory:
            return changed_anew(make, prepare)
        return make(None)

    return learner_of


def problem_as_shown(
    config: RunConfig, form: DataForm, apply_fn: Callable[..., jax.Array]
) -> Problem:
    """Describes a benchmark whose images are as batches show them."""
    if not config.benchmark.raw_memory:
        return make_problem(config, form, apply_fn)
    prepare = make_images(config.benchmark, form).prepare
    return make_problem(config, form, apply_fn, partial(prepare, jax.random.key(0)))
