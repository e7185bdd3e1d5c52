"""How good a network's last features are, whatever became of its last layer."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.config.run_config import RunConfig
from experiments.support.errors import UserError
from experiments.training.batches import labels_of, make_images, make_show
from experiments.training.evaluation import chunk_size_of
from experiments.training.inputs import DataForm, Own, Shared

_STEPS = 100
_WEIGHT_DECAY = 1e-4


class LastLayer(NamedTuple):
    """A network as it predicts, and which weights are its last layer."""

    logits_fn: Callable[[Any, lm.Params, jax.Array], jax.Array]
    """``(subject, weights, images [B, ...]) -> [B, Y]``; ``weights`` in the place of
    those of what is evaluated."""
    head_fn: Callable[[lm.Params], lm.Params]
    """``weights -> tree of bools``."""


def last_inputs(
    logits_fn: Callable[[lm.Params, jax.Array], jax.Array],
    weights: lm.Params,
    head: lm.Params,
    num_classes: int,
    images: jax.Array,
) -> jax.Array:
    """Returns what enters the last layer of a network, of any framework.

    That layer is linear: with matrices in the place of its own that select features,
    its outputs are those features. The layers below do not depend on the matrices and
    are computed once.

    Args:
        logits_fn: ``(weights, images [B, ...]) -> [B, Y]``.
        weights: of the network.
        head: tree like ``weights`` of bools, True in the last layer.
        num_classes: Y.
        images: [B, ...].

    Returns:
        [B, F] features.

    Raises:
        UserError: the last layer is not one matrix [F, Y] or [Y, F], and a bias.
    """
    leaves, tree = jax.tree.flatten(weights)
    is_head = jax.tree.leaves(head)
    matrices = [
        n for n, (x, own) in enumerate(zip(leaves, is_head, strict=True)) if own
    ]
    matrices = [n for n in matrices if leaves[n].ndim == 2]
    if len(matrices) != 1 or num_classes not in leaves[matrices[0]].shape:
        raise UserError(
            f"linear_probe: expected a last layer of one matrix with {num_classes} "
            "outputs; choose another network"
        )
    (place,) = matrices
    own = leaves[place]
    num_features = own.size // num_classes
    count = math.ceil(num_features / num_classes)
    selecting = jnp.eye(count * num_classes, dtype=own.dtype)[:num_features]
    selecting = jnp.moveaxis(selecting.reshape(num_features, count, num_classes), 1, 0)
    if own.shape != (num_features, num_classes):
        selecting = selecting.transpose(0, 2, 1)

    def outputs(matrix: jax.Array) -> jax.Array:
        replaced = [
            matrix if n == place else jnp.zeros_like(x) if is_head[n] else x
            for n, x in enumerate(leaves)
        ]
        return logits_fn(jax.tree.unflatten(tree, replaced), images)

    features = jax.vmap(outputs, out_axes=1)(selecting)
    return features.reshape(images.shape[0], -1)[:, :num_features]


def fit(features: jax.Array, labels: jax.Array, num_classes: int) -> Any:
    """Fits a linear classifier: cross-entropy and a small decay, by L-BFGS.

    Args:
        features: [N, F].
        labels: [N] classes.
        num_classes: Y.

    Returns:
        ``(kernel [F, Y], bias [Y])`` for the features as they are.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    inputs = (features - mean[None]) / std[None]

    def loss_fn(weights: Any) -> jax.Array:
        kernel, bias = weights
        logits = inputs @ kernel + bias[None]
        each = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return each.mean() + _WEIGHT_DECAY / 2 * jnp.sum(jnp.square(kernel))

    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss_fn)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        weights, state = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = tx.update(
            grad, state, weights, value=value, grad=grad, value_fn=loss_fn
        )
        return (optax.apply_updates(weights, updates), state), None

    start = jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes)
    (weights, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=_STEPS)
    kernel = weights[0] / std[:, None]
    return kernel, weights[1] - mean @ kernel


def make_linear_probe(
    config: RunConfig,
    form: DataForm,
    last_layer: LastLayer,
    weights_of: Callable[[Any], lm.Params],
) -> Callable[[Shared, Own], jax.Array]:
    """Builds what fits a linear classifier to all rows of a stream, and tests it.

    Args:
        config: what to run.
        form: sizes of the data.
        last_layer: of the network.
        weights_of: the weights in what is evaluated.

    Returns:
        A function of what seeds share and a seed's own, with what is evaluated as its
        state; its accuracies [T] are among all classes, whatever the setting.
    """
    plain = dataclasses.replace(config.benchmark, augment=(), raw_memory=False)
    show = make_show(dataclasses.replace(config, benchmark=plain), form)
    images_of = make_images(plain, form)
    chunk = chunk_size_of(config.benchmark)
    classes = form.num_classes

    def features_of(subject: Any, images: jax.Array) -> jax.Array:
        weights = weights_of(subject)
        logits_fn = partial(last_layer.logits_fn, subject)
        head = last_layer.head_fn(weights)
        return last_inputs(logits_fn, weights, head, classes, images)

    def in_chunks(fn: Callable[..., Any], *leaves: jax.Array) -> Any:
        """Maps a function of rows over all of them, a chunk at a time."""
        count = leaves[0].shape[0]
        size = min(chunk, count)
        padded = [jnp.pad(x, (0, -count % size), mode="edge") for x in leaves]
        done = jax.lax.map(lambda x: fn(*x), [x.reshape(-1, size) for x in padded])
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], done)

    def linear_probe(shared: Shared, own: Own) -> jax.Array:
        stream, subject = own.stream, own.state

        def train_rows(tasks: jax.Array, rows: jax.Array) -> tuple[jax.Array, ...]:
            key = jax.random.key(0)  # of changes, of which there are none
            batch, _ = show.rows(shared, own, key, {"task": tasks, "row": rows})
            return features_of(subject, batch["image"]), batch["label"]

        own_tasks = jnp.arange(stream.rows.shape[0])[:, None]
        tasks = jnp.broadcast_to(own_tasks, stream.rows.shape)
        tasks = stream.owners if stream.owners.size else tasks
        features, labels = jax.lax.map(
            lambda x: in_chunks(train_rows, *x), (tasks, stream.rows)
        )
        features = features.reshape(-1, features.shape[-1])
        kernel, bias = fit(features, labels.reshape(-1), classes)

        def accuracy(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            pixel_map, tested = inputs

            def hits(rows: jax.Array) -> jax.Array:
                images = images_of.scale(shared.test_images[rows], pixel_map)
                features = features_of(subject, images_of.normalise(images))
                predicted = jnp.argmax(features @ kernel + bias[None], axis=-1)
                return predicted == labels_of(own, shared.test_labels[rows])

            return jnp.mean(in_chunks(hits, tested))

        return jax.lax.map(accuracy, (stream.pixel_maps, stream.test_rows))

    return linear_probe
