"""Regression on a sine whose phase drifts, without tasks or boundaries.

    python -m experiments.examples.drifting_sine

Prints the mean squared error over all phases seen, for La-MAML and for plain SGD with
the same number of updates.
"""

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.examples.sgd import sgd_learner

NUM_BATCHES, ROWS, GLANCES = 400, 10, 3
FULL_TURN = 2 * jnp.pi


def draw_rows(key: lm.Key, phase: jax.Array, num_rows: int) -> dict[str, jax.Array]:
    """Draws points of ``sin(x + phase)``.

    A network told x alone could not know the phase, so that it would have to forget;
    told both, it can learn all phases, if it does not forget the earlier ones.

    Args:
        key: consumed.
        phase: radians, scalar.
        num_rows: B.

    Returns:
        ``x`` [B, 3] (x in units of pi, sine and cosine of the phase) and ``y`` [B].
    """
    x = jax.random.uniform(key, (num_rows,), minval=-jnp.pi, maxval=jnp.pi)
    told = jnp.broadcast_to(jnp.stack([jnp.sin(phase), jnp.cos(phase)]), (num_rows, 2))
    inputs = jnp.concatenate([x[:, None] / jnp.pi, told], axis=1)
    return {"x": inputs, "y": jnp.sin(x + phase)}


def init_weights(key: lm.Key) -> list[tuple[jax.Array, jax.Array]]:
    """Draws the weights of a perceptron with two hidden layers."""
    sizes = (3, 64, 64, 1)
    keys = jax.random.split(key, len(sizes) - 1)
    normal = jax.nn.initializers.he_normal()
    return [
        (normal(k, (n, m)), jnp.zeros(m))
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def loss_fn(weights: lm.Params, batch: lm.Batch) -> jax.Array:
    """Squared errors [B]."""
    x = batch["x"]
    for kernel, bias in weights[:-1]:
        x = jax.nn.relu(x @ kernel + bias[None, :])
    kernel, bias = weights[-1]
    return ((x @ kernel + bias[None, :])[:, 0] - batch["y"]) ** 2


def make_lamaml() -> lm.Learner:
    """Builds La-MAML, with a reservoir of 100 rows."""
    example = {
        "x": jax.ShapeDtypeStruct((3,), jnp.float32),
        "y": jax.ShapeDtypeStruct((), jnp.float32),
    }
    tx = lm.lamaml(
        loss_fn,
        step_size_init=0.05,
        step_size_learning_rate=0.05,
        inner_steps=5,
        reservoir=lm.make_reservoir(100, example),
        replay_size=10,
    )
    return lm.lamaml_learner(tx, glances=GLANCES)


def make_sgd() -> lm.Learner:
    """Builds plain SGD on the incoming rows, at La-MAML's first rate."""
    tx = optax.chain(optax.clip_by_global_norm(2.0), optax.sgd(0.05))
    return sgd_learner(loss_fn, tx, GLANCES)


def mean_squared_error(learner: lm.Learner, seed: int | jax.Array) -> jax.Array:
    """Shows a learner one full turn of the phase, and tests it on all of it.

    Args:
        learner: from one of the functions above.
        seed: decides weights, rows and draws.

    Returns:
        Scalar mean over 32 phases of the squared error.
    """
    init_key, rows_key, run_key, test_key = jax.random.split(jax.random.key(seed), 4)
    phases = FULL_TURN * jnp.arange(NUM_BATCHES) / NUM_BATCHES
    keys = jax.random.split(rows_key, NUM_BATCHES)
    stream = jax.vmap(lambda key, phase: draw_rows(key, phase, ROWS))(keys, phases)
    state = learner.init(init_key, init_weights(init_key))
    state, _ = lm.observe_stream(learner, run_key, state, stream)
    keys, phases = jax.random.split(test_key, 32), FULL_TURN * jnp.arange(32) / 32
    tests = jax.vmap(lambda key, phase: draw_rows(key, phase, 64))(keys, phases)
    errors = jax.lax.map(lambda batch: loss_fn(state.weights, batch), tests)
    return jnp.mean(errors)


def main() -> dict[str, jax.Array]:
    """Runs both learners on five seeds; returns their errors, [5] each."""
    found = {}
    for name, learner in {"La-MAML": make_lamaml(), "SGD": make_sgd()}.items():
        run = jax.jit(jax.vmap(lambda seed, own=learner: mean_squared_error(own, seed)))
        found[name] = run(jnp.arange(5))
        mean, sd = jnp.mean(found[name]), jnp.std(found[name], ddof=1)
        print(f"{name:8} mean squared error {mean:.3f} ± {sd:.3f}")
    return found


if __name__ == "__main__":
    main()
