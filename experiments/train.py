"""Pure functions that run one seed of a method on a benchmark."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments import benchmarks, methods, presets
from experiments.data.streams import apply_pixel_map
from experiments.errors import UserError
from experiments.methods.problem import Problem
from experiments.models import MLP

_MAX_TASKS = 10_000


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers."""

    benchmark: benchmarks.Benchmark
    method: str
    seeds: tuple[int, ...]
    hyper: presets.Hyperparameters
    stream_seed: int | None = None
    """Decides the transformations of every seed's stream; None: each seed its own."""


class DataForm(NamedTuple):
    """Sizes of a benchmark's data that its programs are compiled for."""

    num_pixels: int
    num_classes: int
    max_value: int


class TrainFns(NamedTuple):
    """Pure functions of one seed, as ``make_train`` builds them."""

    init_weights: Callable[..., lm.Params]
    """``init_weights(seed) -> weights``; the same for every method."""
    init: Callable[..., Any]
    """``init(seed, weights) -> state``."""
    train_task: Callable[..., tuple[Any, Any]]
    """``train_task(shared, stream, seed, state, task) -> state, info``."""
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    """``evaluate(shared, stream, weights, wanted [T]) -> accuracy [T], finite``."""


class Shared(NamedTuple):
    """Arrays on the device that all seeds read."""

    train_images: jax.Array
    """uint8 [N, D]."""
    train_labels: jax.Array
    """int32 [N]."""
    test: tuple[jax.Array, jax.Array, jax.Array]
    """Images uint8 [chunks, C, D], labels [chunks, C] and their mask."""


class StreamArrays(NamedTuple):
    """Arrays on the device with a leading seed axis."""

    rows: jax.Array
    """int32 [S, T, R], as in ``BenchmarkData``."""
    pixel_maps: jax.Array
    """int32 [S, T, D], as in ``BenchmarkData``."""


def make_train(config: RunConfig, form: DataForm) -> TrainFns:
    """Builds the functions that run one seed of ``config``.

    Args:
        config: what to run.
        form: sizes of the data.

    Returns:
        Functions that can be jitted and mapped over seeds.

    Raises:
        UserError: hyper-parameters that do not fit together.
    """
    benchmark, hyper = config.benchmark, config.hyper
    batch_size = hyper.batch_size
    num_batches = -(-benchmark.rows_per_task // batch_size)
    model = MLP(benchmark.hidden, form.num_classes)

    def loss_fn(weights, batch):
        logits = model.apply(weights, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    def images_of(images, pixel_map):
        turned = apply_pixel_map(images, pixel_map)
        return turned.astype(jnp.float32) / form.max_value

    example = {
        "image": jax.ShapeDtypeStruct((form.num_pixels,), jnp.float32),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
    }
    learner = methods.make_learner(config.method, Problem(loss_fn, example), hyper)

    def keys_of(seed):
        init_key, learner_key, train_key = jax.random.split(jax.random.key(seed), 3)
        return init_key, learner_key, train_key

    def init_weights(seed):
        init_key, _, _ = keys_of(seed)
        return model.init(init_key, jnp.zeros((1, form.num_pixels)))

    def init(seed, weights):
        _, learner_key, _ = keys_of(seed)
        return learner.init(learner_key, weights)

    def train_task(shared, stream, seed, state, task):
        rows = stream.rows[task]
        padding = num_batches * batch_size - rows.shape[0]
        rows = jnp.pad(rows, (0, padding), mode="edge")
        mask = jnp.arange(rows.shape[0]) < rows.shape[0] - padding
        images = images_of(shared.train_images[rows], stream.pixel_maps[task])
        batches = jax.tree.map(
            lambda x: x.reshape(num_batches, batch_size, *x.shape[1:]),
            {"image": images, "label": shared.train_labels[rows]},
        )
        masks = mask.reshape(num_batches, batch_size) if padding else None
        _, _, train_key = keys_of(seed)
        state, info = lm.observe_stream(
            learner,
            jax.random.fold_in(train_key, task),
            state,
            batches,
            masks,
        )
        return state, jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32)), info)

    def evaluate(shared, stream, weights, wanted):
        def accuracy(inputs):
            pixel_map, is_wanted = inputs

            def hits(chunk):
                images, labels, valid = chunk
                logits = model.apply(weights, images_of(images, pixel_map))
                return jnp.sum((jnp.argmax(logits, axis=-1) == labels) & valid)

            def measure():
                return jnp.sum(jax.lax.map(hits, shared.test)) / num_test

            return jax.lax.cond(is_wanted, measure, lambda: jnp.float32(jnp.nan))

        num_test = jnp.sum(shared.test[2])
        leaves = jax.tree.leaves(weights)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
        accuracies = jax.lax.map(accuracy, (stream.pixel_maps, wanted))
        return jnp.where(finite, accuracies, jnp.nan), finite

    return TrainFns(init_weights, init, train_task, evaluate)


def num_meta_updates(config: RunConfig) -> int:
    """Updates that one seed makes over the whole stream."""
    benchmark, hyper = config.benchmark, config.hyper
    num_batches = -(-benchmark.rows_per_task // hyper.batch_size)
    return benchmark.num_tasks * num_batches * hyper.glances


def check_config(config: RunConfig) -> None:
    """Checks sizes and rates before any work.

    Raises:
        UserError: the first that is out of range.
    """
    benchmark, hyper = config.benchmark, config.hyper
    methods.check_method(config.method)
    limits = {
        "num_tasks": (benchmark.num_tasks, _MAX_TASKS),
        "rows_per_task": (benchmark.rows_per_task, 2**31 - 1),
        "eval_every": (benchmark.eval_every, 2**31 - 1),
        "batch_size": (hyper.batch_size, benchmark.rows_per_task),
        "glances": (hyper.glances, 2**31 - 1),
        "capacity": (hyper.capacity, 2**31 - 2),
        "replay_size": (hyper.replay_size, hyper.capacity),
        "inner_steps": (hyper.inner_steps, hyper.batch_size),
    }
    for name, (size, limit) in limits.items():
        if size is not None and limit is not None and not 1 <= size <= limit:
            raise UserError(f"{name}: expected 1 to {limit}, received {size}")
    for name in ("step_size_learning_rate", "learning_rate", "step_size_init"):
        rate = getattr(hyper, name)
        if rate is not None and not 0 <= rate < math.inf:
            raise UserError(f"{name}: expected a finite rate >= 0, received {rate}")
    if not 0 < hyper.max_grad_norm:
        raise UserError(
            f"max_grad_norm: expected a norm > 0, received {hyper.max_grad_norm}"
        )


def check_memory(config: RunConfig, num_pixels: int) -> None:
    """Checks that the reservoirs of all seeds fit in this machine's memory.

    Raises:
        UserError: they do not.
    """
    needed = (config.hyper.capacity or 0) * len(config.seeds) * num_pixels * 4
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise UserError(
            f"capacity: {config.hyper.capacity} rows for {len(config.seeds)} seeds "
            f"need {needed / 2**30:.0f} GiB of {present / 2**30:.0f} GiB of memory; "
            "choose a smaller one"
        )
