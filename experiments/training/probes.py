"""What is seen of a seed beside accuracies: fast weights, gradients, step sizes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lamaml_jax as lm
from experiments.config.run_config import RunConfig, batches_per_task, with_rates
from experiments.methods.lookahead import make_inner_tx
from experiments.methods.problem import Problem
from experiments.training import placement
from experiments.training.batches import labels_of, make_images, make_show, task_key
from experiments.training.inputs import DataForm, Own, Shared

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_UPDATES_PER_PROBE = 25
_ALIGNMENT_ROWS = 100


def make_look_ahead(
    config: RunConfig, form: DataForm, problem: Problem
) -> Callable[[Shared, Own], lm.Params]:
    """Builds what returns the weights after the inner steps on batch ``first``."""
    show = make_show(config, form)

    def look_ahead(shared: Shared, own: Own) -> lm.Params:
        hyper: Any = with_rates(config, own.rates or {}).hyper
        state = own.state
        places, mask = show.epoch(shared, own, 0)
        places, mask = jax.tree.map(lambda x: x[shared.first], (places, mask))
        task = task_key(own.seed, shared.task)
        key = jax.random.fold_in(task, 2**30 + shared.first)
        rows, key = show.rows(shared, own, key, places)
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
) -> Callable[[Shared, Own], jax.Array]:
    """Builds what returns the cosines [T, T] between the gradients of tasks' losses.

    They are taken on the first training rows of each task, as a seed's weights see
    them.
    """
    images_of = make_images(config.benchmark, form)
    num_tasks = config.benchmark.num_tasks
    num_rows = min(_ALIGNMENT_ROWS, config.benchmark.rows_per_task)

    def alignment(shared: Shared, own: Own) -> jax.Array:
        stream = own.stream

        def one(inputs: tuple[jax.Array, ...]) -> lm.Batch:
            task, rows, pixel_map = inputs
            images = images_of.scale(shared.train_images[rows], pixel_map)
            labels = labels_of(own, shared.train_labels[rows])
            batch = {"image": images_of.normalise(images), "label": labels}
            return batch | {"task": jnp.full(num_rows, task)}

        rows = stream.rows[:, :num_rows]
        tasks = jnp.arange(num_tasks, dtype=jnp.int32)
        batches = jax.lax.map(one, (tasks, rows, stream.pixel_maps))
        return lm.diagnostics.gradient_alignment(
            problem.loss_fn, own.state.weights, batches
        )

    return alignment


def step_sizes_of(state: Any) -> lm.Params | None:
    """Returns the step sizes in a learner's state, or None if it has none."""
    return optax.tree.get(state, "step_sizes", None)


def batches_per_part(config: RunConfig) -> int:
    """Batches between two probes: about 25 meta-updates, a divisor of a task's."""
    num_batches = batches_per_task(config)
    wanted = max(1, _UPDATES_PER_PROBE // config.hyper.glances)
    return max(n for n in range(1, wanted + 1) if num_batches % n == 0)


def step_size_quantiles(state: Any) -> np.ndarray | None:
    """Summarises the step sizes of every leaf of the weights.

    Args:
        state: of a learner, over all seeds.

    Returns:
        [S, L, 5] quantiles at ``QUANTILES``, or None if there are no step sizes.
    """
    step_sizes = step_sizes_of(state)
    if step_sizes is None:
        return None
    leaves = [
        np.asarray(leaf) for leaf in jax.tree.leaves(placement.gather(step_sizes))
    ]
    flat = [leaf.reshape(len(leaf), -1) for leaf in leaves]
    quantiles = [np.quantile(leaf, QUANTILES, axis=1).T for leaf in flat]
    return np.stack(quantiles, axis=1)


def leaf_names(state: Any) -> list[str]:
    """Names what a step size each belongs to, such as ``Dense_0/kernel``."""
    step_sizes = step_sizes_of(state)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(step_sizes)]
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]
    return [name.removeprefix("params/") or "all weights" for name in names]
