"""Linear probes: the features of any framework, the fit, and a run's accuracy."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from sklearn.linear_model import LogisticRegression

import experiments
from experiments import networks, run_folder
from experiments.config import benchmarks
from experiments.data import own
from experiments.report import columns, comparison
from experiments.report.entries import make_entries
from experiments.support.errors import UserError
from experiments.training import linear_probe

pytestmark = pytest.mark.usefixtures("registries")
D, Y = 6, 4


class Linen(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, rows, train):
        hidden = nn.relu(nn.BatchNorm(use_running_average=not train)(rows))
        hidden = nn.relu(nn.Dense(self.hidden, name="first")(hidden))
        return nn.Dense(Y, name="last")(hidden)


class Nnx(nnx.Module):
    def __init__(self, hidden, rngs):
        self.first = nnx.Linear(D, hidden, rngs=rngs)
        self.last = nnx.Linear(hidden, Y, rngs=rngs)

    def __call__(self, rows):
        return self.last(nnx.relu(self.first(rows)))


def equinox_of(hidden):
    return networks.from_equinox(
        lambda form, key: eqx.nn.MLP(D, Y, hidden, 1, jax.nn.relu, key=key)
    )


def head_of(*words):
    return lambda weights: jax.tree_util.tree_map_with_path(
        lambda path, _: any(word in jax.tree_util.keystr(path) for word in words),
        weights,
    )


# Features that are fewer, as many and more than the classes.
@pytest.mark.parametrize(
    ("framework", "hidden"),
    [("nnx", 3), ("nnx", Y), ("nnx", 9), ("equinox", Y), ("equinox", 5)],
)
def test_features_are_what_enters_the_last_layer(framework, hidden):
    make, head_fn, kernel = {
        "nnx": (
            networks.from_nnx(lambda form, rngs: Nnx(hidden, rngs)),
            head_of("last"),
            lambda w: (w["first/kernel/value"], w["first/bias/value"]),
        ),
        "equinox": (
            equinox_of(hidden),
            head_of("layers/1"),
            lambda w: (w["layers/0/weight"].T, w["layers/0/bias"]),
        ),
    }[framework]
    networks.register("mine", make, head_fn)
    network = networks.build("mine", networks.NetworkForm((D,), Y))
    rows = jax.random.normal(jax.random.key(0), (7, D))
    weights = network.init(jax.random.key(1), rows[:1])
    head = networks.head_fn_of("mine")(weights)
    found = linear_probe.last_inputs(network.apply, weights, head, Y, rows)
    matrix, bias = kernel(weights)
    expected = jax.nn.relu(rows @ matrix + bias[None])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_features_are_those_of_prediction():
    networks.register("mine", lambda form: Linen(9), head_of("last"))
    network = networks.build("mine", networks.NetworkForm((D,), Y))
    rows = 3 + jax.random.normal(jax.random.key(0), (7, D))
    weights = network.init(jax.random.key(1), rows[:1])
    averages = network.running.move(weights, network.running.init(), rows)
    predict = lambda weights, rows: network.running.predict(weights, averages, rows)
    head = networks.head_fn_of("mine")(weights)
    found = linear_probe.last_inputs(predict, weights, head, Y, rows)
    variables = {**weights, "batch_stats": averages}
    _, seen = Linen(9).apply(variables, rows, train=False, capture_intermediates=True)
    (before,) = seen["intermediates"]["first"]["__call__"]
    expected = jax.nn.relu(before)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("words", [(), ("first", "last")])
def test_a_last_layer_that_is_not_one_matrix_is_refused(words):
    networks.register(
        "mine", networks.from_nnx(lambda form, rngs: Nnx(Y, rngs)), head_of(*words)
    )
    network = networks.build("mine", networks.NetworkForm((D,), Y))
    weights = network.init(jax.random.key(1), jnp.zeros((1, D)))
    head = networks.head_fn_of("mine")(weights)
    with pytest.raises(UserError, match="linear_probe: expected a last layer of one"):
        linear_probe.last_inputs(network.apply, weights, head, Y, jnp.zeros((2, D)))


def test_the_fit_is_logistic_regression():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % Y
    features = rng.normal(size=(Y, D))[labels] * 1.5 + rng.normal(size=(400, D))
    features = (features * [1, 10, 0.1, 1, 1, 1] + [0, 5, 0, 1, 0, 0]).astype(
        np.float32
    )
    kernel, bias = linear_probe.fit(jnp.asarray(features), jnp.asarray(labels), Y)
    scaled = (features - features.mean(0)) / features.std(0)
    reference = LogisticRegression(C=1 / (400 * 1e-4), tol=1e-8, max_iter=10_000)
    expected = reference.fit(scaled, labels).predict_proba(scaled)
    found = jax.nn.softmax(features @ kernel + bias[None])
    assert 0.7 < (expected.argmax(1) == labels).mean() < 0.99
    np.testing.assert_allclose(found, expected, atol=2e-3)


def clusters():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % Y
    rows = 3 * rng.normal(size=(Y, D))[labels] + 0.3 * rng.normal(size=(400, D))
    return own.from_arrays(rows[:240], labels[:240], rows[240:], labels[240:])


def run(tmp_path, method="online", **options):
    benchmarks.register(
        "clusters",
        clusters,
        stream="split",
        classes_per_task=2,
        num_tasks=2,
        rows_per_task=80,
        **options.pop("fields", {}),
    )
    options = {"seeds": 2, "console": Console(quiet=True)} | options
    return experiments.run("clusters", method, out=tmp_path, **options)


@pytest.mark.slow
def test_a_run_tells_what_the_features_could_tell_apart(tmp_path):
    often = {"glances": 10, "learning_rate": 0.3}
    (found,) = run(tmp_path, setting="agnostic", linear_probe=True, **often)
    probed = found.arrays[run_folder.LINEAR_PROBE]
    assert probed.shape == (2, 2)
    assert (probed > 0.95).all()
    # The one head has forgotten some of the first classes.
    assert found.summary["retained_accuracy"].mean() < probed.mean() - 0.1
    np.testing.assert_allclose(found.summary[run_folder.LINEAR_PROBE], probed.mean(1))
    (entry,) = make_entries([found])
    assert columns.PROBE.text(entry).startswith(f"{100 * probed.mean():.1f}")
    assert "linear probe %" in columns.full_table([entry]).head
    assert "linear_probe_mean" in columns.comma_separated([entry])
    (table,) = map(comparison.accuracy_table, comparison.compare([entry]))
    assert table.head[-1] == "clusters-agnostic linear probe %"
    assert table.body[0][-1] == columns.PROBE.text(entry)


def test_without_it_nothing_is_said_of_it(tmp_path):
    (found,) = run(tmp_path, seeds=1)
    assert run_folder.LINEAR_PROBE not in found.arrays
    assert "linear probe %" not in columns.full_table(make_entries([found])).head
    assert "linear_probe" not in columns.comma_separated(make_entries([found]))


@pytest.mark.slow
def test_a_summary_that_disagrees_is_refused(tmp_path):
    (found,) = run(tmp_path, seeds=1, linear_probe=True)
    file = found.folder / "arrays.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays[run_folder.LINEAR_PROBE] = arrays[run_folder.LINEAR_PROBE] / 2
    np.savez(file, **arrays)
    with pytest.raises(run_folder.RunFolderError, match="gives linear_probe_accuracy"):
        run_folder.read(found.folder)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lamaml", "icarl", "cls_er", "iid"])
def test_every_kind_of_method_can_be_probed(method, tmp_path):
    (found,) = run(tmp_path, method, seeds=1, linear_probe=True)
    assert (found.summary[run_folder.LINEAR_PROBE] > 0.9).all()


@pytest.mark.slow
def test_a_network_of_ones_own_and_blurred_tasks(tmp_path):
    networks.register("mine", lambda form: Linen(32), head_of("last"))
    fields = {"network": "mine", "blur": 0.2}
    options = {"setting": "agnostic", "linear_probe": True, "fields": fields}
    (found,) = run(tmp_path, "er", **options)
    assert (found.summary[run_folder.LINEAR_PROBE] > 0.9).all()


def test_a_network_that_does_not_say_what_is_last_is_refused(tmp_path):
    networks.register("mine", lambda form: Linen(9))
    with pytest.raises(UserError, match="does not say which weights are its last"):
        run(tmp_path, fields={"network": "mine"}, linear_probe=True)
