"""Networks with dropout: a key with every batch in training, none in prediction."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import experiments
import lamaml_jax as lm
from experiments import methods, networks
from experiments.config import benchmarks
from experiments.data import own
from experiments.support.errors import UserError
from experiments.training import batch_keys

pytestmark = pytest.mark.usefixtures("registries")

D, Y, H, RATE = 6, 4, 64, 0.5
FORM = networks.NetworkForm((D,), Y)


class Linen(nn.Module):
    num_classes: int = Y

    @nn.compact
    def __call__(self, rows, train):
        x = nn.relu(nn.Dense(H)(rows))
        x = nn.Dropout(RATE, rng_collection="noise", deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class Nnx(nnx.Module):
    def __init__(self, form, rngs):
        self.first = nnx.Linear(D, H, rngs=rngs)
        self.dropout = nnx.Dropout(RATE, rngs=rngs)
        self.last = nnx.Linear(H, form.num_classes, rngs=rngs)

    def __call__(self, rows):
        return self.last(self.dropout(nnx.relu(self.first(rows))))


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, form, key):
        keys = jax.random.split(key)
        self.first = eqx.nn.Linear(D, H, key=keys[0])
        self.dropout = eqx.nn.Dropout(RATE)
        self.last = eqx.nn.Linear(H, form.num_classes, key=keys[1])

    def __call__(self, row, key=None):
        return self.last(self.dropout(jax.nn.relu(self.first(row)), key=key))


MAKERS = {
    "linen": lambda form: Linen(form.num_classes),
    "nnx": networks.from_nnx(Nnx),
    "equinox": networks.from_equinox(Equinox),
}


@pytest.fixture(params=MAKERS)
def network(request):
    networks.register(request.param, MAKERS[request.param])
    return networks.build(request.param, FORM)


def rows_of(count=5):
    return jax.random.normal(jax.random.key(9), (count, D))


def test_training_draws_from_the_key_and_prediction_does_not(network):
    rows = rows_of()
    weights = network.init(jax.random.key(0), rows[:1])
    averages = network.running.init()
    assert not jax.tree.leaves(averages)
    one, again, other = (
        network.with_key(jax.random.key(seed)).apply(weights, rows)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert jnp.abs(one - other).max() > 1e-2
    predicted = network.running.predict(weights, averages, rows)
    keys = jax.random.split(jax.random.key(3), 4000)
    drawn = jax.vmap(lambda key: network.with_key(key).apply(weights, rows))(keys)
    # The last layer is linear: its mean over keys is its value without dropout.
    error = jnp.abs(drawn.mean(0) - predicted) / (drawn.std(0) / np.sqrt(4000))
    assert error.max() < 4.5


def test_a_learner_gets_a_key_with_every_batch(network):
    def make(key):
        apply = network.with_key(key).apply

        def observe(key, state, batch, batch_mask=None, remember=True):
            return state, apply(state.weights, batch)

        return lm.Learner(lambda key, weights: lm.LearnerState(weights, ()), observe)

    rows = rows_of()
    learner = batch_keys.keyed_by_batch(make)
    state = learner.init(jax.random.key(0), network.init(jax.random.key(0), rows[:1]))
    first, again, second = (
        learner.observe(jax.random.key(seed), state, rows)[1] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - second).max() > 1e-2


def clusters(count=120):
    rng = np.random.default_rng(0)
    labels = np.arange(2 * count) % Y
    rows = 3 * rng.normal(size=(Y, D))[labels]
    rows = rows + 0.3 * rng.normal(size=rows.shape)
    return own.from_arrays(rows[:count], labels[:count], rows[count:], labels[count:])


def run(tmp_path, names, network, **options):
    benchmarks.register(
        "clusters",
        clusters,
        stream="permutations",
        num_tasks=2,
        rows_per_task=100,
        network=network,
    )
    options = {"seeds": 2, "console": Console(quiet=True)} | options
    return experiments.run("clusters", names, out=tmp_path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen", "nnx", "equinox"])
def test_a_network_with_dropout_is_trained_and_evaluated(name, tmp_path):
    networks.register(name, MAKERS[name])
    (found,) = run(tmp_path, ["lamaml"], name)
    assert (found.summary["learning_accuracy"] > 0.6).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ewc", "mer", "gem", "derpp", "oml", "cls_er"])
def test_every_kind_of_method_trains_it(method, tmp_path):
    head_fn = lambda weights: jax.tree.map(lambda x: x.ndim < 2, weights)
    networks.register("linen", MAKERS["linen"], head_fn)
    (found,) = run(tmp_path, method, "linen", seeds=1)
    assert np.isfinite(found.accuracy).all()


@pytest.mark.slow
def test_probes_and_alignment_look_at_it(tmp_path):
    networks.register("linen", MAKERS["linen"])
    (found,) = run(tmp_path, "lamaml", "linen", seeds=1, probes=True, alignment=True)
    assert np.isfinite(found.arrays["probe_fast"]).all()
    assert np.isfinite(found.arrays["task_alignment"]).any()


def test_a_method_that_cannot_leave_it_out_says_so():
    with pytest.raises(UserError, match="by what the network gives in training"):
        methods.check_network("icarl", has_averages=False, has_mode=True)
    methods.check_network("ewc", has_averages=False, has_mode=True)


class Untold(nn.Module):
    @nn.compact
    def __call__(self, rows):
        return nn.Dense(Y)(nn.Dropout(RATE, deterministic=False)(rows))


class Keyless(Equinox):
    def __call__(self, row):
        return self.last(self.first(row))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda form: Untold(), "give its __call__ an argument `train`"),
        (networks.from_equinox(Keyless), "give its __call__ an argument `key`"),
        (
            lambda form: networks.Pair(lambda *given: {}, lambda *given: 0, draws=True),
            "does not say how it predicts without",
        ),
    ],
)
def test_dropout_that_cannot_be_left_out_is_refused(make, message):
    networks.register("mine", make)
    with pytest.raises(UserError, match=message):
        networks.build("mine", FORM).init(jax.random.key(0), jnp.zeros((1, D)))
