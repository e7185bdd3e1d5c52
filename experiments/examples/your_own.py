"""A data set, a network and a method of one's own, in one file that may lie anywhere.

From the command line, and from Python:

    lamaml list --plugin your_own.py
    lamaml run --plugin your_own.py -b own-digits -m averaged_er,er
    python your_own.py

In a checkout that is not installed ``lamaml`` is ``python -m experiments``.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import lamaml_experiments as experiments  # pyright: ignore[reportMissingImports]
import lamaml_jax as lm


# A data set: arrays of any shape, here grey images [8, 8]; `experiments.from_npz` and
# `experiments.from_folder` read files, `experiments.from_tfds` what TFDS has prepared.
# It is loaded when it is needed. Labels that are floats are targets of a regression;
# `register` is then told `loss="squared_error", metric="r2"`.
def data() -> Any:
    """Returns scikit-learn's digits, the last fifth of them for the test."""
    digits: Any = load_digits()
    images, labels = digits.images, digits.target
    return experiments.from_arrays(
        images[:1440], labels[:1440], images[1440:], labels[1440:], max_value=16
    )


experiments.benchmarks.register(
    "own-digits",
    data,
    stream="split",  # or "rotations", "permutations", a Stream, a function
    num_tasks=5,
    classes_per_task=2,
    rows_per_task=160,
    network="own-net",
    description="digits in 5 tasks of 2 classes, 160 rows each",
)


# A network: any flax linen module, or a pair of `init` and `apply`. One with BatchNorm
# has `__call__(images, train)`.
class Net(nn.Module):
    """A convolution and a hidden layer."""

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, 8, 8, 1] in [0, 1] to logits [B, Y]."""
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(images))
        x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


experiments.networks.register("own-net", lambda form: Net(form.num_classes))


# A method: a function from a problem to a learner.
class State(NamedTuple):
    """What the method carries; ``weights`` is what is evaluated."""

    weights: lm.Params
    working: lm.Params
    memory: lm.ReservoirState


def averaged_er(problem: Any, hyper: Any) -> lm.Learner:
    """Averaged ER: replay, predicting with a running average of the weights.

    References:
        Arani, Sarfraz and Zonooz, ICLR 2022, who take two such averages.
    """
    reservoir = lm.make_reservoir(hyper.capacity, problem.example)
    tx = optax.sgd(hyper.learning_rate)

    def init(key: lm.Key, weights: lm.Params) -> State:
        del key
        return State(weights, weights, reservoir.init())

    def observe(key, state, batch, batch_mask=None, remember: Any = True):
        if batch_mask is None:
            batch_mask = jnp.ones(batch["label"].shape[0], bool)
        sample_key, add_key = jax.random.split(key)
        old, old_mask = reservoir.sample(sample_key, state.memory, hyper.replay_size)
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, old)
        mask = jnp.concatenate([batch_mask, old_mask])
        loss_fn = lambda w: lm.losses.masked_mean(problem.loss_fn(w, rows), mask)
        loss, grads = jax.value_and_grad(loss_fn)(state.working)
        updates, _ = tx.update(grads, tx.init(state.working))
        working = optax.apply_updates(state.working, updates)
        average = lambda a, w: hyper.keep * a + (1 - hyper.keep) * w
        weights = jax.tree.map(average, state.weights, working)
        memory = reservoir.add(add_key, state.memory, batch, batch_mask & remember)
        info = {"loss": loss, "grad_norm": optax.tree.norm(grads)}  # any pytree
        return State(weights, working, memory), info

    return lm.Learner(init, observe)


experiments.methods.register(
    "averaged_er",
    averaged_er,
    # Names that there are already, and one of its own: all are options of --set, of
    # configuration files and of sweeps.
    hyper={
        "glances": 1,
        "learning_rate": 0.1,
        "capacity": 100,
        "replay_size": 10,
        "keep": 0.9,
    },
    label="Averaged ER",
    color="#D55E00",
)


if __name__ == "__main__":
    runs = experiments.run("own-digits", ["averaged_er", "er", "lamaml"], seeds=3)
    experiments.report.make_report(runs, "report")
