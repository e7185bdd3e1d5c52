"""A pretrained backbone that stays as it is, and a head that learns a stream.

    python -m experiments.examples.frozen_backbone

A small network is trained on the digits 0 to 4. Its hidden layers are then frozen, and
a new head learns the digits 5 to 9 at four angles, one after the other, by La-MAML and
by plain SGD. Only the head has step sizes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lamaml_jax as lm
from experiments.examples.sgd import sgd_learner

FEATURES, HIDDEN, CLASSES, ANGLES = 64, 64, 5, 4
RATE, GLANCES = 0.03, 3


class Head(nn.Module):
    """Features [B, ``FEATURES``] to logits [B, ``CLASSES``]."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Applies two dense layers."""
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(HIDDEN)(features)))


class Backbone(nn.Module):
    """Images [B, 8, 8, 1] to features [B, ``FEATURES``]."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Applies one convolution and one dense layer."""
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(images))
        return nn.relu(nn.Dense(FEATURES)(x.reshape(x.shape[0], -1)))


def load_rows(first_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [N, 8, 8, 1] in [0, 1] and labels [N] of five digits, shuffled."""
    digits: Any = load_digits()
    labels = digits.target - first_class
    own = (labels >= 0) & (labels < CLASSES)
    order = np.random.default_rng(0).permutation(int(own.sum()))
    images = digits.images[own][order, :, :, None] / 16
    return images.astype(np.float32), labels[own][order].astype(np.int32)


def pretrain(key: lm.Key, num_steps: int = 300) -> lm.Params:
    """Trains backbone and a head on the digits 0 to 4; returns the backbone's weights.

    Args:
        key: consumed.
        num_steps: of Adam, on 64 rows each.
    """
    images, labels = map(jnp.asarray, load_rows(0))
    backbone, head = Backbone(), Head()
    backbone_key, head_key, rows_key = jax.random.split(key, 3)
    weights = {
        "backbone": backbone.init(backbone_key, images[:1]),
        "head": head.init(head_key, jnp.zeros((1, FEATURES))),
    }
    tx = optax.adam(1e-3)

    def loss_fn(weights, rows):
        features = backbone.apply(weights["backbone"], images[rows])
        logits: Any = head.apply(weights["head"], features)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
        return jnp.mean(losses)

    def step(carry, key):
        weights, state = carry
        rows = jax.random.randint(key, (64,), 0, len(labels))
        updates, state = tx.update(jax.grad(loss_fn)(weights, rows), state)
        return (optax.apply_updates(weights, updates), state), None

    keys = jax.random.split(rows_key, num_steps)
    (weights, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(
        (weights, tx.init(weights))
    )
    return weights["backbone"]


def make_logits(backbone_weights: lm.Params) -> Callable[..., jax.Array]:
    """Builds ``logits_fn(weights, images)`` of the head alone.

    The backbone's weights are constants in it: neither the inner loop nor the outer one
    moves them, and they have no step sizes.
    """
    backbone, head = Backbone(), Head()

    def logits_fn(weights: lm.Params, images: jax.Array) -> Any:
        return head.apply(weights, backbone.apply(backbone_weights, images))

    return logits_fn


def make_tasks() -> tuple[list[dict[str, jax.Array]], list[dict[str, jax.Array]]]:
    """Turns the digits 5 to 9 by quarters; returns training and test rows per task."""
    images, labels = load_rows(5)
    train, test = [], []
    for quarters in range(ANGLES):
        turned = np.rot90(images, quarters, axes=(1, 2))
        rows = {"image": jnp.asarray(turned), "label": jnp.asarray(labels)}
        train.append(
            jax.tree.map(lambda x: x[:300].reshape(30, 10, *x.shape[1:]), rows)
        )
        test.append(jax.tree.map(lambda x: x[600:], rows))
    return train, test


def make_lamaml(loss_fn: lm.LossFn) -> lm.Learner:
    """Builds La-MAML, with a reservoir of 100 rows."""
    example = {
        "image": jax.ShapeDtypeStruct((8, 8, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
    }
    tx = lm.lamaml(
        loss_fn,
        step_size_init=RATE,
        step_size_learning_rate=RATE,
        inner_steps=5,
        reservoir=lm.make_reservoir(100, example),
    )
    return lm.lamaml_learner(tx, glances=GLANCES)


def main() -> dict[str, jax.Array]:
    """Runs both learners; returns their accuracies on the four angles at the end."""
    logits_fn = make_logits(pretrain(jax.random.key(0)))

    def loss_fn(weights, batch):
        logits = logits_fn(weights, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    @jax.jit
    def accuracy(weights, rows):
        return lm.losses.accuracy(logits_fn(weights, rows["image"]), rows["label"])

    train, test = make_tasks()
    weights = Head().init(jax.random.key(1), jnp.zeros((1, FEATURES)))
    observe = jax.jit(lm.observe_stream, static_argnums=0)
    learners = {
        "La-MAML": make_lamaml(loss_fn),
        "SGD": sgd_learner(loss_fn, optax.sgd(RATE), GLANCES),
    }
    found = {}
    for name, learner in learners.items():
        state = learner.init(jax.random.key(2), weights)
        for task, batches in enumerate(train):
            key = jax.random.fold_in(jax.random.key(3), task)
            state, _ = observe(learner, key, state, batches)
        found[name] = jnp.stack([accuracy(state.weights, rows) for rows in test])
        shown = " ".join(f"{100 * float(value):5.1f}" for value in found[name])
        print(f"{name:8} accuracy % on the four angles: {shown}")
    return found


if __name__ == "__main__":
    main()
