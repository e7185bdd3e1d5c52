"""Pure functions that train one seed of a method on a benchmark."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments import methods, networks
from experiments.config.run_config import RunConfig, batches_per_task
from experiments.methods.problem import Problem
from experiments.training.batches import DataForm, keys_of, make_show, task_key
from experiments.training.evaluation import (
    batches_per_part,
    make_alignment,
    make_evaluate,
    make_look_ahead,
)
from experiments.training.placement import spread_rows


class TrainFns(NamedTuple):
    """Pure functions of one seed, as ``make_train`` builds them."""

    init_weights: Callable[..., lm.Params]
    """``init_weights(seed) -> weights``; the same for every method of an initializer.
    """
    init: Callable[..., Any]
    """``init(seed) -> state``."""
    train_task: Callable[..., tuple[Any, Any, jax.Array, jax.Array | None]]
    """``train_task(shared, stream, seed, state, is_alive, task) -> state, info,
    first_bad, anytime``: means of the learner's info, the first batch in which one of
    its values is not finite, or -1, and accuracies [G, T] after the batches of
    ``config.anytime_after``, NaN of tasks not seen yet, or None where there are none.
    Weights move only where ``is_alive``."""
    subject: Callable[[Any], Any]
    """``subject(state)``: what is evaluated, the weights unless the method predicts
    with more."""
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    """``evaluate(shared, stream, subject, wanted [T]) -> accuracy [T], finite``."""
    train_part: Callable[..., tuple[Any, Any, jax.Array]]
    """``train_part(shared, stream, seed, state, is_alive, task, first) -> state, info,
    first_bad``: the ``batches_per_part`` batches from ``first`` on of a task's first
    epoch; all parts in order are ``train_task`` of one epoch."""
    look_ahead: Callable[..., lm.Params]
    """``look_ahead(shared, stream, seed, state, task, index) -> fast_weights`` after
    the inner steps on batch ``index``, for methods that take inner steps."""
    alignment: Callable[..., jax.Array]
    """``alignment(shared, stream, weights) -> [T, T]``, cosines between the gradients
    of the tasks' losses."""


def make_problem(
    config: RunConfig, form: DataForm, apply_fn: Callable[..., jax.Array] | None = None
) -> Problem:
    """Describes a benchmark to a method.

    Args:
        config: what to run.
        form: sizes of the data.
        apply_fn: ``(weights, images [B, ...]) -> logits [B, Y]``; None for a problem of
            which only the sizes are read.
    """
    benchmark = config.benchmark
    classes_per_task = benchmark.classes_per_task
    example = {
        "image": jax.ShapeDtypeStruct(form.image_shape, jnp.float32),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
    }
    if config.setting == "aware":
        example["task"] = jax.ShapeDtypeStruct((), jnp.int32)

    def loss_fn(weights, batch):
        logits = apply_fn(weights, batch["image"])
        if classes_per_task is not None and config.setting == "aware":
            return lm.losses.multi_head_cross_entropy(
                logits, batch["label"], batch["task"], classes_per_task
            )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    return Problem(
        loss_fn,
        example,
        apply_fn,
        num_tasks=benchmark.num_tasks,
        rows_per_task=benchmark.rows_per_task,
        num_classes=form.num_classes,
        classes_per_task=classes_per_task,
        head_fn=networks.head_fn_of(benchmark.network),
    )


def unless_diverged(start: Any, state: Any, is_alive: jax.Array) -> Any:
    """Returns a learner's state, with the weights of ``start`` unless it is alive."""
    weights = jax.tree.map(partial(jnp.where, is_alive), state.weights, start.weights)
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


def _make_train_fns(
    config: RunConfig,
    form: DataForm,
    learner: lm.Learner,
    accuracy_of: Callable[..., jax.Array],
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Builds ``train_task`` and ``train_part`` of ``TrainFns``.

    Args:
        config: what to run.
        form: sizes of the data.
        learner: of the method.
        accuracy_of: ``accuracy_of(shared, stream, state, wanted [T]) -> [T]``, for
            evaluations within a task.
    """
    hyper = config.hyper
    every = config.benchmark.anytime_every
    show = make_show(config, form)
    has_padding = config.benchmark.rows_per_task % hyper.batch_size > 0

    def run(shared, stream, state, key, batches, mask, epoch, first=0):
        def observe(key, state, places, mask, remember=True):
            del remember
            rows, key = show.rows(shared, stream, key, places)
            return learner.observe(key, state, rows, mask, remember=epoch == 0)

        shown = lm.Learner(learner.init, observe)
        mask = mask if has_padding else None
        return lm.observe_stream(shown, key, state, batches, mask, first)

    def run_watched(shared, stream, seed, state, task):
        """One epoch, interrupted by evaluations."""
        key = task_key(seed, task)
        shown = show.epoch(stream, seed, task, 0)
        is_seen = jnp.arange(config.benchmark.num_tasks) <= task

        def part(state, inputs):
            first, (batches, mask) = inputs
            state, info = run(shared, stream, state, key, batches, mask, 0, first)
            return state, (info, accuracy_of(shared, stream, state, is_seen))

        # Parts of one size in a scan, and what is left of the task after them.
        count, rest = divmod(batches_per_task(config), every)
        whole = jax.tree.map(
            lambda x: x[: count * every].reshape(count, every, *x.shape[1:]), shown
        )
        firsts = jnp.arange(count) * every
        state, (info, accuracies) = jax.lax.scan(part, state, (firsts, whole))
        info = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), info)
        if rest:
            left = jax.tree.map(lambda x: x[count * every :], shown)
            state, (last_info, last) = part(state, (count * every, left))
            info = jax.tree.map(lambda *x: jnp.concatenate(x), info, last_info)
            accuracies = jnp.concatenate([accuracies, last[None]])
        return state, info, accuracies

    def train_task(shared, stream, seed, state, is_alive, task):
        key_of_task = task_key(seed, task)

        def run_epoch(state, epoch):
            key = key_of_task
            if hyper.epochs > 1:
                key = jax.random.fold_in(key_of_task, hyper.epochs + epoch)
            shown = show.epoch(stream, seed, task, epoch)
            return run(shared, stream, state, key, *shown, epoch)

        start, anytime = state, None
        if every is not None:
            state, info, anytime = run_watched(shared, stream, seed, start, task)
        elif hyper.epochs == 1:
            state, info = run_epoch(start, 0)
        else:
            state, info = jax.lax.scan(run_epoch, start, jnp.arange(hyper.epochs))
            info = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), info)
        if learner.end_task is not None:
            end_key = jax.random.fold_in(key_of_task, 2**31 - 1)
            state = learner.end_task(end_key, state)
        return unless_diverged(start, state, is_alive), *summarise(info), anytime

    def train_part(shared, stream, seed, state, is_alive, task, first):
        places, mask = show.epoch(stream, seed, task, 0)
        places, mask = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, first, batches_per_part(config)),
            (places, mask),
        )
        key = task_key(seed, task)
        start = state
        state, info = run(shared, stream, start, key, places, mask, 0, first)
        means, bad = summarise(info)
        bad = jnp.where(bad < 0, bad, first + bad)
        return unless_diverged(start, state, is_alive), means, bad

    return train_task, train_part


def make_train(
    config: RunConfig, form: DataForm, platform: str, devices_per_seed: int = 1
) -> TrainFns:
    """Builds the functions that run one seed of ``config``.

    Args:
        config: what to run.
        form: sizes of the data.
        platform: what they are compiled for, such as ``"cpu"``.
        devices_per_seed: devices that share the rows of support and query.

    Returns:
        Functions that can be jitted and mapped over seeds.

    Raises:
        UserError: hyper-parameters that do not fit together.
    """
    benchmark, hyper = config.benchmark, config.hyper
    network = networks.NetworkForm(
        form.image_shape,
        form.num_classes,
        benchmark.hidden,
        benchmark.channels,
        hyper.initializer,
        dtype=None if config.precision == "float32" else config.precision,
        convolve=networks.convolution_for(platform),
    )
    model = networks.build(benchmark.network, network)

    def apply_fn(weights, images):
        return model.apply(weights, spread_rows(images, devices_per_seed))

    problem = make_problem(config, form, apply_fn)
    learner = methods.make_learner(config.method, problem, hyper)
    make_scores = methods.METHODS[config.method].make_scores

    def init_weights(seed):
        return model.init(keys_of(seed)[0], jnp.zeros((1, *form.image_shape)))

    def init(seed):
        return learner.init(keys_of(seed)[1], init_weights(seed))

    if make_scores is None:
        subject = lambda state: state.weights
        scoring = apply_fn, lambda weights: weights
    else:
        subject = lambda state: state
        scoring = make_scores(problem, hyper), lambda state: state.weights
    evaluate = make_evaluate(config, form, *scoring)
    evaluate_within = make_evaluate(config, form, *scoring, benchmark.anytime_rows)

    def accuracy_of(shared, stream, state, wanted):
        return evaluate_within(shared, stream, subject(state), wanted)[0]

    train_task, train_part = _make_train_fns(config, form, learner, accuracy_of)
    return TrainFns(
        init_weights,
        init,
        train_task,
        subject,
        evaluate,
        train_part,
        make_look_ahead(config, form, problem),
        make_alignment(config, form, problem),
    )
