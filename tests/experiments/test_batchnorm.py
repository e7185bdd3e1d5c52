"""Networks with running averages: BatchNorm of linen and nnx, whatever the method."""

import contextlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

import experiments
import lamaml_jax as lm
from experiments import methods, networks
from experiments.config import benchmarks
from experiments.data import own
from experiments.support.errors import UserError
from experiments.training import model_state
from experiments.training.checkpoints import Checkpoint, Checkpoints

pytestmark = pytest.mark.usefixtures("registries")

D, Y, H = 6, 4, 8
FORM = networks.NetworkForm((D,), Y)
# float32, the same operations compiled with others beside them: some units of 1e-7.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


class Linen(nn.Module):
    num_classes: int = Y

    @nn.compact
    def __call__(self, rows, train):
        x = nn.Dense(H)(rows)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.num_classes)(x)


class Nnx(nnx.Module):
    def __init__(self, form, rngs):
        self.first = nnx.Linear(D, H, rngs=rngs)
        self.norm = nnx.BatchNorm(H, momentum=0.9, rngs=rngs)
        self.last = nnx.Linear(H, form.num_classes, rngs=rngs)

    def __call__(self, rows):
        return self.last(nnx.relu(self.norm(self.first(rows))))


MAKERS = {"linen": lambda form: Linen(form.num_classes), "nnx": networks.from_nnx(Nnx)}


@pytest.fixture(params=MAKERS)
def network(request):
    networks.register(request.param, MAKERS[request.param])
    return networks.build(request.param, FORM)


def rows_of(seed, count=5, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), (count, D)) + scale


def by_hand(weights, averages, rows):
    """Moves Linen's averages; their variance is the biased one."""
    hidden = rows @ weights["params"]["Dense_0"]["kernel"]
    hidden += weights["params"]["Dense_0"]["bias"][None, :]
    seen = {"mean": hidden.mean(0), "var": hidden.var(0)}
    norm = averages["BatchNorm_0"]
    return {"BatchNorm_0": {name: 0.9 * norm[name] + 0.1 * seen[name] for name in seen}}


def sgd(network):
    tx = optax.sgd(0.1)

    def loss_fn(weights, batch):
        logits = network.apply(weights, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    def observe(key, state, batch, batch_mask=None, remember=True):
        loss, grads = jax.value_and_grad(lambda w: loss_fn(w, batch).mean())(
            state.weights
        )
        updates, opt_state = tx.update(grads, state.opt_state)
        weights = optax.apply_updates(state.weights, updates)
        return lm.LearnerState(weights, opt_state), loss

    init = lambda key, weights: lm.LearnerState(weights, tx.init(weights))
    return lm.Learner(init, observe)


def test_training_normalises_by_the_rows_and_prediction_by_averages(network):
    rows = rows_of(0)
    weights = network.init(jax.random.key(1), rows[:1])
    averages = network.running.init()
    together, alone = network.apply(weights, rows), network.apply(weights, rows[:2])
    assert jnp.abs(together[:2] - alone).max() > 1e-2
    together, alone = (
        network.running.predict(weights, averages, each) for each in (rows, rows[:2])
    )
    np.testing.assert_allclose(together[:2], alone, **ROUNDING)


@pytest.mark.slow
def test_averages_are_moved_after_each_batch():
    networks.register("linen", MAKERS["linen"])
    network = networks.build("linen", FORM)
    learner = model_state.carried(sgd(network), network.running, None)
    weights = network.init(jax.random.key(0), rows_of(0))
    state = learner.init(jax.random.key(1), weights)
    averages = network.running.init()
    chex.assert_trees_all_equal(state.averages, averages)
    for step in range(3):
        batch = {"image": rows_of(step), "label": jnp.arange(5) % Y}
        state, _ = learner.observe(jax.random.key(step), state, batch)
        averages = by_hand(state.weights, averages, batch["image"])
    chex.assert_trees_all_close(state.averages, averages, **ROUNDING)
    chex.assert_trees_all_equal(model_state.make_subject()(state)[1], state.averages)


def test_averages_are_those_of_the_weights_that_predict():
    networks.register("linen", MAKERS["linen"])
    network = networks.build("linen", FORM)
    doubled = lambda state: jax.tree.map(lambda x: 2 * x, state.weights)
    learner = model_state.carried(
        sgd(network), network.running, None, predicting=doubled
    )
    weights = network.init(jax.random.key(0), rows_of(0))
    state = learner.init(jax.random.key(1), weights)
    batch = {"image": rows_of(0), "label": jnp.arange(5) % Y}
    state, _ = learner.observe(jax.random.key(2), state, batch)
    subject = model_state.make_subject(doubled)(state)
    averages = by_hand(subject.weights, network.running.init(), batch["image"])
    chex.assert_trees_all_close(subject.averages, averages, **ROUNDING)
    chex.assert_trees_all_equal(subject.weights, doubled(state))


@pytest.mark.slow
def test_averages_see_what_is_replayed():
    networks.register("linen", MAKERS["linen"])
    network = networks.build("linen", FORM)
    example = {
        "image": jax.ShapeDtypeStruct((D,), jnp.float32),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
    }
    tx = lm.lamaml(
        lambda w, batch: optax.softmax_cross_entropy_with_integer_labels(
            network.apply(w, batch["image"]), batch["label"]
        ),
        step_size_init=0.0,
        step_size_learning_rate=0.0,
        reservoir=lm.make_reservoir(5, example),
        replay_size=5,
        inner_steps=1,
    )
    learner = model_state.carried(lm.lamaml_learner(tx), network.running, 5)
    weights = network.init(jax.random.key(0), rows_of(0))
    state = learner.init(jax.random.key(1), weights)
    same = jnp.tile(rows_of(0, 1), (5, 1))
    first = {"image": same, "label": jnp.zeros(5, jnp.int32)}
    later = {"image": rows_of(1), "label": jnp.arange(5) % Y}
    state, _ = learner.observe(jax.random.key(2), state, first)
    # The memory holds those rows by then: ten times the same.
    averages = by_hand(weights, network.running.init(), first["image"])
    chex.assert_trees_all_close(state.averages, averages, **ROUNDING)
    state, _ = learner.observe(jax.random.key(3), state, later, remember=False)
    averages = by_hand(weights, averages, jnp.concatenate([same, later["image"]]))
    chex.assert_trees_all_close(state.averages, averages, **ROUNDING)


def clusters(num_classes=Y, count=80):
    rng = np.random.default_rng(0)
    labels = np.arange(2 * count) % num_classes
    rows = 3 * rng.normal(size=(num_classes, D))[labels] + 5
    rows = rows + 0.3 * rng.normal(size=rows.shape)
    return own.from_arrays(rows[:count], labels[:count], rows[count:], labels[count:])


def run(tmp_path, names, network="linen", **options):
    benchmarks.register(
        "clusters",
        clusters,
        stream="permutations",
        num_tasks=2,
        rows_per_task=60,
        network=network,
    )
    options = {"seeds": 2, "console": Console(quiet=True)} | options
    return experiments.run("clusters", names, out=tmp_path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_a_network_with_averages_is_trained_and_evaluated(name, tmp_path):
    networks.register(name, MAKERS[name])
    found = run(tmp_path, ["er", "lamaml"], name)
    for each in found:
        # At random one in four is right; averages that did not move would give that.
        assert (each.summary["learning_accuracy"] > 0.6).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["cls_er", "cmaml", "derpp", "mir", "mer", "gem", "agem", "lor", "metabgd", "upgd"],
)
def test_every_method_that_can_trains_such_a_network(method, tmp_path):
    networks.register("linen", MAKERS["linen"])
    (found,) = run(tmp_path, method, seeds=1)
    assert np.isfinite(found.accuracy).all()


@pytest.mark.slow
def test_probes_look_at_fast_weights_with_the_averages(tmp_path):
    networks.register("linen", MAKERS["linen"])
    (found,) = run(tmp_path, "lamaml", seeds=1, probes=True)
    assert np.isfinite(found.arrays["probe_fast"]).all()


def test_a_checkpoint_holds_weights_and_averages(tmp_path, network):
    learner = model_state.carried(sgd(network), network.running, None)
    weights = network.init(jax.random.key(0), rows_of(0))
    state = jax.device_get(learner.init(jax.random.key(1), weights))
    with contextlib.closing(Checkpoints(tmp_path / "own", 0.0)) as checkpoints:
        checkpoints.save(Checkpoint(state, {"accuracy": np.zeros((1, 2, 2))}))
    with contextlib.closing(Checkpoints(tmp_path / "own", 0.0)) as checkpoints:
        found = checkpoints.latest(state, pytest.fail)
    chex.assert_trees_all_equal(found.state, state)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("icarl", "takes rows one by one"),
        ("ewc", "takes rows one by one"),
    ],
)
def test_methods_that_cannot_train_it_say_so(method, reason):
    with pytest.raises(UserError, match=f"method '{method}' {reason}"):
        methods.check_network(method, has_averages=True, has_mode=True)
    methods.check_network(method, has_averages=False, has_mode=False)


class Untold(nn.Module):
    @nn.compact
    def __call__(self, rows):
        return nn.Dense(Y)(nn.BatchNorm(use_running_average=False)(rows))


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, rows, train):
        return (
            nn.SpectralNorm(nn.Dense(Y))(rows, update_stats=train)
            + self.variable("counts", "rows", lambda: jnp.zeros((1, 1))).value
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda form: Untold(), "give its __call__ an argument `train`"),
        (lambda form: Spectral(), "counts, which runs do not carry"),
    ],
)
def test_what_is_not_carried_is_a_sentence(make, message):
    networks.register("mine", make)
    with pytest.raises(UserError, match=message):
        networks.build("mine", FORM).init(jax.random.key(0), jnp.zeros((1, D)))


def test_the_published_resnet_is_the_other_with_batchnorm():
    form = networks.NetworkForm((16, 16, 3), 10, channels=(20, 40, 80, 160))
    images = jax.random.uniform(jax.random.key(0), (3, 16, 16, 3))
    names = networks.REDUCED_RESNET, networks.REDUCED_RESNET_BATCHNORM
    group, batch = (networks.build(name, form) for name in names)
    assert group.running is None
    shapes = [
        jax.eval_shape(each.init, jax.random.key(1), images) for each in (group, batch)
    ]
    sizes = [sorted(x.size for x in jax.tree.leaves(each)) for each in shapes]
    assert sizes[0] == sizes[1]
    # 20 layers of BatchNorm, each with a mean and a variance.
    averages = jax.eval_shape(batch.running.init)
    assert len(jax.tree.leaves(averages)) == 40
    assert sum(sizes[1]) == 1_094_750
    logits = jax.eval_shape(batch.apply, shapes[1], images)
    assert logits.shape == (3, 10)
