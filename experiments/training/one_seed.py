"""Pure functions that train one seed of a method on a benchmark."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

import lamaml_jax as lm
from experiments.config.run_config import RunConfig, anytime_after, batches_per_task
from experiments.training import model_state
from experiments.training.batches import Show, keys_of, make_show, task_key
from experiments.training.evaluation import Evaluated, make_evaluate
from experiments.training.inputs import DataForm, Own, Shared
from experiments.training.learners import (
    as_predicted,
    make_learner_of,
    make_prediction,
    problem_as_shown,
)
from experiments.training.linear_probe import make_linear_probe
from experiments.training.placement import spread_rows
from experiments.training.probes import (
    batches_per_part,
    make_alignment,
    make_look_ahead,
)
from experiments.training.problem import build_network, make_problem


class Trained(NamedTuple):
    """What training on a task, or on a part of it, leaves."""

    state: Any
    info: Any
    """Means of the learner's info."""
    first_bad: jax.Array | np.ndarray
    """The first batch in which a value of the info is not finite, or -1."""
    anytime: jax.Array | None = None
    """[G, T] accuracies after the batches of ``config.anytime_after``, NaN of tasks not
    seen yet, or None where there are none."""


class SeedFunctions(NamedTuple):
    """Pure functions of one seed, as ``make_functions`` builds them."""

    init_weights: Callable[[jax.Array], lm.Params]
    """``init_weights(seed)``; the same for every method of an initializer."""
    init: Callable[[Shared, Own], Any]
    """Returns the learner's first state."""
    train_task: Callable[[Shared, Own], Trained]
    """Weights move only where ``is_alive``."""
    train_part: Callable[[Shared, Own], Trained]
    """The ``batches_per_part`` batches from ``first`` on of a task's first epoch; all
    parts in order are ``train_task`` of one epoch."""
    evaluate: Callable[[Shared, Own], Evaluated]
    """Of ``subject`` of a state."""
    subject: Callable[[Any], Any]
    """``subject(state)``: what is evaluated, the weights unless the method predicts
    with more."""
    look_ahead: Callable[[Shared, Own], lm.Params]
    """For methods that take inner steps."""
    alignment: Callable[[Shared, Own], jax.Array]
    linear_probe: Callable[[Shared, Own], jax.Array]
    """Of ``subject`` of a state."""


def unless_diverged(own: Own, state: Any) -> Any:
    """Returns a learner's new state, with its old weights unless the seed is alive."""
    weights = jax.tree.map(
        partial(jnp.where, own.is_alive), state.weights, own.state.weights
    )
    return state._replace(weights=weights)


def summarise(info: Any) -> tuple[Any, jax.Array]:
    """Reduces the infos of N batches.

    Args:
        info: leaves [N, ...] of any dtype.

    Returns:
        Their means, float32 scalars, and the first batch in which one is not finite, or
        -1, an int32 scalar.
    """
    means = jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32)), info)
    leaves = jax.tree.leaves(info)
    if not leaves:  # a learner that reports nothing
        return means, jnp.int32(-1)
    bad = jnp.stack(
        [
            jnp.any(~jnp.isfinite(leaf.reshape(leaf.shape[0], -1)), axis=1)
            for leaf in leaves
        ]
    ).any(axis=0)
    return means, jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)


class _Epochs(NamedTuple):
    """How one seed of a method passes over rows."""

    config: RunConfig
    show: Show
    learner: lm.Learner
    shared: Shared
    own: Own

    def shown(self, epoch: int | jax.Array) -> lm.Learner:
        """The learner of places of rows, which are loaded a batch at a time."""

        def observe(
            key: lm.Key,
            state: Any,
            places: dict[str, jax.Array],
            mask: jax.Array | None = None,
            remember: bool | jax.Array = True,
        ) -> tuple[Any, Any]:
            del remember
            rows, key = self.show.rows(self.shared, self.own, key, places)
            return self.learner.observe(key, state, rows, mask, remember=epoch == 0)

        return lm.Learner(self.learner.init, cast(Any, observe))

    def valid(self, mask: jax.Array) -> jax.Array | None:
        """The mask of a task's batches, or None where none of their rows is padding."""
        config = self.config
        has_padding = config.benchmark.rows_per_task % config.hyper.batch_size
        return mask if has_padding else None

    def run(
        self,
        state: Any,
        key: lm.Key,
        batches: dict[str, jax.Array],
        mask: jax.Array,
        epoch: int | jax.Array,
        first: int | jax.Array = 0,
    ) -> tuple[Any, Any]:
        """Observes batches."""
        shown, valid = self.shown(epoch), self.valid(mask)
        return lm.observe_stream(shown, key, state, batches, valid, first)

    def once(self, state: Any, key: lm.Key) -> tuple[Any, Any]:
        """Passes over the task at hand once."""
        return self.run(state, key, *self.show.epoch(self.shared, self.own, 0), 0)

    def often(self, state: Any, key: lm.Key) -> tuple[Any, Any]:
        """Passes over it several times, with a key for each."""
        epochs = self.config.hyper.epochs

        def epoch_of(state: Any, epoch: jax.Array) -> tuple[Any, Any]:
            own_key = jax.random.fold_in(key, epochs + epoch)
            shown = self.show.epoch(self.shared, self.own, epoch)
            return self.run(state, own_key, *shown, epoch)

        state, info = jax.lax.scan(epoch_of, state, jnp.arange(epochs))
        return state, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), info)

    def watched(
        self, state: Any, key: lm.Key, accuracy_of: Callable[..., jax.Array]
    ) -> tuple[Any, Any, jax.Array]:
        """Passes over the task once, evaluated after the batches of ``anytime_after``.

        One loop both trains and evaluates, so that each of them is compiled once.
        """
        num_tasks = self.config.benchmark.num_tasks
        counts = 1 + np.arange(batches_per_task(self.config))
        is_due = np.isin(counts, anytime_after(self.config))
        is_seen = jnp.arange(num_tasks) <= self.shared.task
        evaluate = lambda state: accuracy_of(self.shared, self.own, state, is_seen)
        shown = self.shown(0)

        def observe(
            key: lm.Key,
            state: tuple[Any, jax.Array],
            places: dict[str, jax.Array],
            mask: jax.Array | None = None,
            remember: bool | jax.Array = True,
        ) -> tuple[Any, Any]:
            learner_state, index = state
            learner_state, info = shown.observe(
                key, learner_state, places, mask, remember
            )
            accuracy = jax.lax.cond(
                jnp.asarray(is_due)[index],
                evaluate,
                lambda _: jnp.full(num_tasks, jnp.nan, jnp.float32),
                learner_state,
            )
            return (learner_state, index + 1), (info, accuracy)

        batches, mask = self.show.epoch(self.shared, self.own, 0)
        (state, _), (info, accuracies) = lm.observe_stream(
            lm.Learner(shown.init, cast(Any, observe)),
            key,
            (state, jnp.int32(0)),
            batches,
            self.valid(mask),
        )
        return state, info, accuracies[np.flatnonzero(is_due)]


def _make_training(
    config: RunConfig,
    form: DataForm,
    learner_of: Callable[[Own], lm.Learner],
    accuracy_of: Callable[..., jax.Array],
) -> tuple[Callable[[Shared, Own], Trained], Callable[[Shared, Own], Trained]]:
    """Builds ``train_task`` and ``train_part`` of ``SeedFunctions``.

    Args:
        config: what to run.
        form: sizes of the data.
        learner_of: the method's learner, with a seed's own rates.
        accuracy_of: ``accuracy_of(shared, own, state, wanted [T]) -> [T]``, for
            evaluations within a task.
    """
    show = make_show(config, form)

    def train_task(shared: Shared, own: Own) -> Trained:
        learner = learner_of(own)
        epochs = _Epochs(config, show, learner, shared, own)
        key, anytime = task_key(own.seed, shared.task), None
        if config.benchmark.anytime_every is not None:
            state, info, anytime = epochs.watched(own.state, key, accuracy_of)
        elif config.hyper.epochs == 1:
            state, info = epochs.once(own.state, key)
        else:
            state, info = epochs.often(own.state, key)
        if learner.end_task is not None:
            state = learner.end_task(jax.random.fold_in(key, 2**31 - 1), state)
        return Trained(unless_diverged(own, state), *summarise(info), anytime)

    def train_part(shared: Shared, own: Own) -> Trained:
        epochs = _Epochs(config, show, learner_of(own), shared, own)
        places, mask = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(
                x, shared.first, batches_per_part(config)
            ),
            show.epoch(shared, own, 0),
        )
        key = task_key(own.seed, shared.task)
        state, info = epochs.run(own.state, key, places, mask, 0, shared.first)
        means, bad = summarise(info)
        bad = jnp.where(bad < 0, bad, shared.first + bad)
        return Trained(unless_diverged(own, state), means, bad)

    return train_task, train_part


def make_functions(
    config: RunConfig, form: DataForm, platform: str, devices_per_seed: int = 1
) -> SeedFunctions:
    """Builds the functions that run one seed of ``config``.

    Args:
        config: what to run; a seed's own rates, where it has any, come before its
            numbers.
        form: sizes of the data.
        platform: what they are compiled for, such as ``"cpu"``.
        devices_per_seed: devices that share the rows of support and query.

    Returns:
        Functions that can be jitted and mapped over seeds.

    Raises:
        UserError: hyper-parameters that do not fit together.
    """
    benchmark = config.benchmark
    model = build_network(config, form, platform)

    def spread(weights: lm.Params, images: jax.Array, *key: lm.Key) -> jax.Array:
        return model.apply(weights, spread_rows(images, devices_per_seed), *key)

    network, one_key = model._replace(apply=spread), jax.random.key(0)
    learner_of = make_learner_of(config, form, network)
    problem = make_problem(config, form, network.with_key(one_key).apply)
    subject, scores_fn, weights_of = make_prediction(config, problem, model.running)

    def init_weights(seed: jax.Array) -> lm.Params:
        return model.init(keys_of(seed)[0], jnp.zeros((1, *form.image_shape)))

    def init(shared: Shared, own: Own) -> Any:
        del shared
        return learner_of(own).init(keys_of(own.seed)[1], init_weights(own.seed))

    evaluate_within = make_evaluate(
        config, form, scores_fn, weights_of, benchmark.anytime_rows
    )

    def accuracy_of(
        shared: Shared, own: Own, state: Any, wanted: jax.Array
    ) -> jax.Array:
        seen = own._replace(state=subject(state))
        return evaluate_within(shared._replace(wanted=wanted), seen).accuracy

    as_shown = problem_as_shown(config, form, network, one_key)
    look_ahead = make_look_ahead(config, form, as_shown)
    if model.running is not None:
        look_ahead = model_state.beside_averages(look_ahead)
    train_task, train_part = _make_training(config, form, learner_of, accuracy_of)
    return SeedFunctions(
        init_weights,
        init,
        train_task,
        train_part,
        make_evaluate(config, form, scores_fn, weights_of),
        subject,
        look_ahead,
        make_alignment(config, form, problem),
        make_linear_probe(
            config, form, as_predicted(problem, model.running), weights_of
        ),
    )
