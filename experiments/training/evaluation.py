"""Accuracies on test rows, inside the compiled program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments.config.benchmarks import Benchmark
from experiments.config.run_config import RunConfig
from experiments.data.targets import METRICS, Metric
from experiments.training.batches import labels_of, make_images
from experiments.training.inputs import DataForm, Own, Shared

# Test rows that are evaluated at a time: their activations should stay in cache.
_TEST_CHUNK, _TEST_CHUNK_CONVOLUTIONS = 1000, 125


def chunk_size_of(benchmark: Benchmark) -> int:
    """Test rows of a benchmark that are evaluated at a time."""
    return _TEST_CHUNK if benchmark.is_flat else _TEST_CHUNK_CONVOLUTIONS


class Evaluated(NamedTuple):
    """What an evaluation of one seed finds."""

    accuracy: jax.Array
    """[T] fractions, NaN where unwanted or if a weight is not finite."""
    finite: jax.Array
    """Whether all weights are."""


def _judged(
    metric: Metric, scores: jax.Array, labels: jax.Array, variance: jax.Array | None
) -> jax.Array:
    """What is averaged over rows, [B]: whether they are right, or a metric's values."""
    if metric.fn is None or variance is None:
        return jnp.argmax(scores, axis=-1) == labels
    return metric.fn(scores, labels, variance)


def _among(scores: jax.Array, task: jax.Array, own_classes: int) -> jax.Array:
    """Leaves the scores [B, Y] of a task's own classes alone."""
    owner = jnp.arange(scores.shape[1]) // own_classes
    return jnp.where((owner == task)[None, :], scores, -jnp.inf)


def make_evaluate(
    config: RunConfig,
    form: DataForm,
    scores_fn: Callable[[Any, jax.Array], jax.Array],
    weights_of: Callable[[Any], lm.Params],
    num_rows: int | None = None,
) -> Callable[[Shared, Own], Evaluated]:
    """Builds what takes the accuracies of one seed.

    Args:
        config: what to run.
        form: sizes of the data.
        scores_fn: ``(subject, images [B, ...]) -> [B, Y]``; the largest is predicted,
            among the task's own classes where heads are masked.
        weights_of: the weights in what is evaluated.
        num_rows: test rows of each task that are taken, evenly spread; None: all.

    Returns:
        A function of what seeds share, with the tasks that are wanted, and a seed's
        own, with what is evaluated as its state.
    """
    benchmark = config.benchmark
    images_of = make_images(benchmark, form)
    chunk_size = chunk_size_of(benchmark)
    own_classes = benchmark.classes_per_task if config.is_aware else None
    metric = METRICS[benchmark.metric]

    def evaluate(shared: Shared, own: Own) -> Evaluated:
        stream, subject = own.stream, own.state
        test_rows = stream.test_rows
        if num_rows is not None:  # those of a class are neighbours
            test_rows = test_rows[:, :: max(test_rows.shape[1] // num_rows, 1)]
        num_test = test_rows.shape[1]
        chunk = min(chunk_size, num_test)
        padding = -num_test % chunk

        def accuracy(inputs: tuple[Any, ...]) -> jax.Array:
            task, pixel_map, tested, is_wanted = inputs
            rows = jnp.pad(tested, (0, padding), constant_values=-1)
            variance = None
            if not metric.of_classes:
                variance = jnp.var(shared.test_labels[tested], axis=0)

            def hits(rows: jax.Array) -> jax.Array:
                images = images_of.scale(shared.test_images[rows], pixel_map)
                scores = scores_fn(subject, images_of.normalise(images))
                if own_classes is not None:
                    scores = _among(scores, task, own_classes)
                labels = labels_of(own, shared.test_labels[rows])
                values = _judged(metric, scores, labels, variance)
                return jnp.sum(jnp.where(rows >= 0, values, 0))

            def measure() -> jax.Array:
                return jnp.sum(jax.lax.map(hits, rows.reshape(-1, chunk))) / num_test

            return jax.lax.cond(is_wanted, measure, lambda: jnp.float32(jnp.nan))

        leaves = jax.tree.leaves(weights_of(subject))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
        tasks = jnp.arange(benchmark.num_tasks)
        accuracies = jax.lax.map(
            accuracy, (tasks, stream.pixel_maps, test_rows, shared.wanted)
        )
        return Evaluated(jnp.where(finite, accuracies, jnp.nan), finite)

    return evaluate
