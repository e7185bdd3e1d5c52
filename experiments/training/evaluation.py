"""What is measured of one seed: accuracies, fast weights, gradients, step sizes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.config.run_config import RunConfig, batches_per_task
from experiments.methods.lookahead import make_inner_tx
from experiments.methods.problem import Problem
from experiments.training.batches import DataForm, make_images, make_show, task_key

_UPDATES_PER_PROBE = 25
_ALIGNMENT_ROWS = 100
# Test rows that are evaluated at a time: their activations should stay in cache.
_TEST_CHUNK, _TEST_CHUNK_CONVOLUTIONS = 1000, 125


def make_look_ahead(
    config: RunConfig, form: DataForm, problem: Problem
) -> Callable[..., lm.Params]:
    """Builds ``look_ahead`` of ``TrainFns``."""
    hyper = config.hyper
    show = make_show(config, form)

    def look_ahead(shared, stream, seed, state, task, index):
        places, mask = show.epoch(stream, seed, task, 0)
        places, mask = jax.tree.map(lambda x: x[index], (places, mask))
        key = jax.random.fold_in(task_key(seed, task), 2**30 + index)
        rows, key = show.rows(shared, stream, key, places)
        support, support_mask, _, _ = lm.split_support(
            key, rows, mask, hyper.inner_steps
        )
        fast_weights, _ = lm.adapt(
            problem.loss_fn,
            state.weights,
            step_sizes_of(state),
            support,
            support_mask,
            rectify=hyper.rectify,
            clip=hyper.inner_clip,
            inner_tx=make_inner_tx(hyper),
            first_order=True,
            adapt_mask=problem.head_fn if config.method == "oml" else None,
        )
        return fast_weights

    return look_ahead


def make_alignment(
    config: RunConfig, form: DataForm, problem: Problem
) -> Callable[..., jax.Array]:
    """Builds ``alignment`` of ``TrainFns``, on the first training rows of each task."""
    images_of = make_images(config.benchmark, form)
    num_tasks = config.benchmark.num_tasks
    num_rows = min(_ALIGNMENT_ROWS, config.benchmark.rows_per_task)

    def alignment(shared, stream, weights):
        def one(inputs):
            task, rows, pixel_map = inputs
            images = images_of.scale(shared.train_images[rows], pixel_map)
            labels = stream.label_maps[shared.train_labels[rows]]
            batch = {"image": images_of.normalise(images), "label": labels}
            return batch | {"task": jnp.full(num_rows, task)}

        rows = stream.rows[:, :num_rows]
        tasks = jnp.arange(num_tasks, dtype=jnp.int32)
        batches = jax.lax.map(one, (tasks, rows, stream.pixel_maps))
        return lm.diagnostics.gradient_alignment(problem.loss_fn, weights, batches)

    return alignment


def step_sizes_of(state: Any) -> lm.Params | None:
    """Returns the step sizes in a learner's state, or None if it has none."""
    return optax.tree.get(state, "step_sizes", None)


def batches_per_part(config: RunConfig) -> int:
    """Batches between two probes: about 25 meta-updates, a divisor of a task's."""
    num_batches = batches_per_task(config)
    wanted = max(1, _UPDATES_PER_PROBE // config.hyper.glances)
    return max(n for n in range(1, wanted + 1) if num_batches % n == 0)


def make_evaluate(
    config: RunConfig,
    form: DataForm,
    scores_fn: Callable[[Any, jax.Array], jax.Array],
    weights_of: Callable[[Any], lm.Params],
    num_rows: int | None = None,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Builds ``evaluate`` of ``TrainFns``.

    Args:
        config: what to run.
        form: sizes of the data.
        scores_fn: ``(subject, images [B, ...]) -> [B, Y]``; the largest is predicted,
            among the task's own classes where heads are masked.
        weights_of: the weights in what is evaluated.
        num_rows: test rows of each task that are taken, evenly spread; None: all.

    Returns:
        Accuracies of all tasks, NaN where unwanted or if a weight is not finite.
    """
    benchmark = config.benchmark
    images_of = make_images(benchmark, form)
    chunk_size = _TEST_CHUNK if benchmark.is_flat else _TEST_CHUNK_CONVOLUTIONS
    is_masked = benchmark.classes_per_task is not None and config.setting == "aware"

    def evaluate(shared, stream, subject, wanted):
        test_rows = stream.test_rows
        if num_rows is not None:  # those of a class are neighbours
            test_rows = test_rows[:, :: max(test_rows.shape[1] // num_rows, 1)]
        num_test = test_rows.shape[1]
        chunk = min(chunk_size, num_test)
        padding = -num_test % chunk

        def accuracy(inputs):
            task, pixel_map, rows, is_wanted = inputs
            rows = jnp.pad(rows, (0, padding), constant_values=-1)

            def hits(rows):
                images = images_of.scale(shared.test_images[rows], pixel_map)
                scores = scores_fn(subject, images_of.normalise(images))
                if is_masked:
                    owner = jnp.arange(scores.shape[1]) // benchmark.classes_per_task
                    scores = jnp.where((owner == task)[None, :], scores, -jnp.inf)
                labels = stream.label_maps[shared.test_labels[rows]]
                return jnp.sum((jnp.argmax(scores, axis=-1) == labels) & (rows >= 0))

            def measure():
                return jnp.sum(jax.lax.map(hits, rows.reshape(-1, chunk))) / num_test

            return jax.lax.cond(is_wanted, measure, lambda: jnp.float32(jnp.nan))

        leaves = jax.tree.leaves(weights_of(subject))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
        tasks = jnp.arange(benchmark.num_tasks)
        accuracies = jax.lax.map(
            accuracy, (tasks, stream.pixel_maps, test_rows, wanted)
        )
        return jnp.where(finite, accuracies, jnp.nan), finite

    return evaluate
