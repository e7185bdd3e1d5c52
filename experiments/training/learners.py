"""A method's learner on a benchmark and network, and what is evaluated of its state."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

import lamaml_jax as lm
from experiments import methods
from experiments.config.run_config import RunConfig, with_rates
from experiments.methods.problem import Problem
from experiments.networks import Pair
from experiments.networks.running import Running
from experiments.training import model_state
from experiments.training.batch_keys import keyed_by_batch
from experiments.training.batches import make_images
from experiments.training.inputs import DataForm, Own
from experiments.training.linear_probe import LastLayer
from experiments.training.problem import make_problem


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
    method = methods.METHODS[config.method]
    predicting = method.predicting_weights
    if running is not None:
        subject = model_state.make_subject(predicting)
        scores_fn = model_state.scores_of(running)
        return Prediction(subject, scores_fn, lambda subject: subject.weights)
    if method.make_scores is not None:
        scores_fn = method.make_scores(problem, config.hyper)
        return Prediction(lambda state: state, scores_fn, predicting)
    return Prediction(predicting, problem.logits_fn, lambda weights: weights)


def as_predicted(problem: Problem, running: Running | None) -> LastLayer:
    """Says what a network gives in prediction, whatever a method makes of that.

    Args:
        problem: whose images are inputs of the network.
        running: what the network carries beside its weights, if anything.
    """

    def logits_fn(subject: Any, weights: lm.Params, images: jax.Array) -> jax.Array:
        if running is None:
            return problem.logits_fn(weights, images)
        return running.predict(weights, subject.averages, images)

    assert problem.head_fn is not None
    return LastLayer(logits_fn, problem.head_fn)


def make_learner_of(
    config: RunConfig,
    form: DataForm,
    network: Pair,
) -> Callable[[Own], lm.Learner]:
    """Builds what makes the learner of one seed, with its own rates.

    Args:
        config: what to run.
        form: sizes of the data.
        network: of the benchmark.

    Raises:
        UserError: the method cannot train such a network.
    """
    has_mode = network.running is not None
    has_averages = network.running is not None and network.running.is_any
    methods.check_network(config.method, has_averages=has_averages, has_mode=has_mode)

    def learner_of(own: Own) -> lm.Learner:
        hyper: Any = with_rates(config, own.rates or {}).hyper

        def make(key: lm.Key) -> lm.Learner:
            problem = problem_as_shown(config, form, network, key)
            learner = methods.make_learner(config.method, problem, hyper)
            running = network.with_key(key).running
            if running is None:
                return learner
            return model_state.carried(
                learner,
                running,
                hyper.replay_size,
                _prepare_with(config, form, key),
                methods.METHODS[config.method].predicting_weights,
            )

        if config.benchmark.raw_memory or network.draws:
            return keyed_by_batch(make)
        return make(jax.random.key(0))

    return learner_of


def _prepare_with(
    config: RunConfig, form: DataForm, key: lm.Key
) -> Callable[[jax.Array], jax.Array] | None:
    """Makes what makes inputs of images; None if batches hold inputs already."""
    if not config.benchmark.raw_memory:
        return None
    return partial(make_images(config.benchmark, form).prepare, key)


def problem_as_shown(
    config: RunConfig, form: DataForm, network: Pair, key: lm.Key
) -> Problem:
    """Describes a benchmark whose images are as batches show them.

    Args:
        config: what to run.
        form: sizes of the data.
        network: of the benchmark.
        key: of all that is random in the loss.
    """
    apply_fn = network.with_key(key).apply
    return make_problem(config, form, apply_fn, _prepare_with(config, form, key))
