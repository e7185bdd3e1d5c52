"""Five stored meta-updates: no change of library or jax may move them unseen.

Inputs are closed formulas, not random draws; the expected numbers were printed by this
computation once, and agreed to 1e-12 with the numpy loops of reference.py.
"""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import AS_USERS_DO
from processes import run as run_process

import lamaml_jax as lm

K, S, Q, D, H, Y = 3, 4, 6, 3, 5, 4


def loss_fn(weights, batch):
    inputs, labels = batch
    hidden = jnp.tanh(inputs @ weights["w1"] + weights["b1"][None, :])
    logits = hidden @ weights["w2"] + weights["b2"][None, :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def waves(shape, phase):
    size = int(np.prod(shape))
    return jnp.asarray(np.sin(1.7 * np.arange(size) + phase)).reshape(shape)


def labels(shape, phase):
    size = int(np.prod(shape))
    return jnp.asarray((3 * np.arange(size) + phase) % Y).reshape(shape)


def run(**options):
    """Weights' norm, mean step size and the losses after each of five updates."""
    weights = {
        "w1": waves((D, H), 0.1),
        "b1": waves((H,), 0.2) / 10,
        "w2": waves((H, Y), 0.3),
        "b2": waves((Y,), 0.4) / 10,
    }
    tx = lm.lamaml_transform(loss_fn, step_size_init=0.3, inner_steps=K, **options)
    zeros = optax.tree.zeros_like(weights)

    @jax.jit
    def step(weights, state, n):
        updates, state = tx.update(
            zeros,
            state,
            weights,
            support=(waves((K, S, D), 0.5) * jnp.cos(n), labels((K, S), 1)),
            query=(waves((Q, D), 0.7) * jnp.cos(n), labels((Q,), 2)),
        )
        weights = optax.apply_updates(weights, updates)
        norms = (optax.tree.norm(weights), optax.tree.norm(state.rule_state.step_sizes))
        info = state.info
        losses = (info.meta_loss, info.inner_losses[-1], info.alignment)
        return weights, state, jnp.stack(norms + losses)

    state, path = tx.init(weights), []
    for n in range(5):
        weights, state, numbers = step(weights, state, float(n))
        path.append(np.asarray(numbers))
    return np.stack(path)


# Per update: norm of the weights, norm of the step sizes, meta-loss, last inner loss,
# alignment.
GOLDEN = {
    "lamaml": [
        [
            4.15828642700295,
            1.97519485070979,
            1.64147291272461,
            1.80923650219437,
            -0.730934767792883,
        ],
        [
            4.156383531236,
            1.96490798800962,
            1.40348394841372,
            1.63692232313911,
            -0.915869420944145,
        ],
        [
            4.14391787148695,
            1.96082861762633,
            1.49705428152111,
            1.40784580484473,
            -0.605330689047175,
        ],
        [
            4.12736862703727,
            1.94467797228333,
            1.53780910585693,
            1.62009818562063,
            -0.701788348514016,
        ],
        [
            4.12968960661767,
            1.93160128071919,
            1.33954541937666,
            1.57506847506134,
            -0.787552182479171,
        ],
    ],
    "first_order_clipped": [
        [
            4.16619782176926,
            1.98244655290258,
            1.6043041261032,
            1.60688118333718,
            -0.619153400590171,
        ],
        [
            4.18062824493625,
            1.97466576803613,
            1.32361609829536,
            1.57267552660659,
            -0.810049224616367,
        ],
        [
            4.16234417453707,
            1.96816213913437,
            1.57597076546736,
            1.31629539666606,
            -0.571407125340803,
        ],
        [
            4.15309227797935,
            1.96048793150021,
            1.56327436149366,
            1.3439540366078,
            -0.466049505674938,
        ],
        [
            4.1691933451852,
            1.95314762537729,
            1.28442751586212,
            1.48605556052081,
            -0.536135041323479,
        ],
    ],
    "synchronous": [
        [
            4.16880318890498,
            1.96935050967439,
            1.64147291272461,
            1.80923650219437,
            -0.730934767792883,
        ],
        [
            4.16453819529453,
            1.95800854264626,
            1.48746328908995,
            1.62244972504205,
            -0.849308154501519,
        ],
        [
            4.16365297239642,
            1.95126674517821,
            1.39640356286416,
            1.44019561703811,
            -0.673502158848417,
        ],
        [
            4.159180774171,
            1.92613709376354,
            1.4662177130679,
            1.62927148420976,
            -0.72932181839774,
        ],
        [
            4.1589712962144,
            1.91029155358066,
            1.35690660907109,
            1.54858586622393,
            -0.75752591917422,
        ],
    ],
}

OPTIONS = {
    "lamaml": {},
    "first_order_clipped": {
        "first_order": True,
        "clip": 0.05,
        "rectify": False,
        "objective": "last",
    },
    "synchronous": {"weight_tx": optax.sgd(0.1), "step_size_tx": optax.sgd(0.35)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_five_meta_updates_give_the_stored_numbers(name, x64):
    got = run(**OPTIONS[name])
    # float64, some hundreds of operations that another version may order or fuse in
    # another way: 1e-10 is far above their rounding and far below any change of rule.
    np.testing.assert_allclose(got, GOLDEN[name], rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_numbers_are_the_same_when_compiled_as_users_do():
    """All other tests of numbers compile without XLA's optimisations."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", 0, "-p", "no:cacheprovider"]
    here = Path(__file__)
    files = [here, here.with_name("test_parity.py")]
    own = "own_ and (meta_gradients or named_variant)"
    chosen = ["-m", "slow or not slow", "-k", f"five_meta_updates or {own}"]
    done = run_process([*command, *files, *chosen], **AS_USERS_DO)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) == len(OPTIONS) + 8
