"""A person's own benchmark, method and network run as this project's do."""

import contextlib
import dataclasses
import doctest
import json

import chex
import equinox as eqx
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
from experiments import methods, networks, report, run_folder
from experiments.config import benchmarks, presets, request, settings
from experiments.config import run_config as config
from experiments.data import blurring, own, own_streams, targets
from experiments.methods import hyperparameters
from experiments.support import styles
from experiments.support.errors import UserError
from experiments.training import batches as feeding
from experiments.training import loop
from experiments.training.checkpoints import Checkpoint, Checkpoints
from experiments.training.inputs import DataForm

pytestmark = pytest.mark.usefixtures("registries")
QUIET = Console(quiet=True)
SIZES = {"num_tasks": 2, "rows_per_task": 20}


def clusters(shape=(6,), num_classes=4, count=80):
    """Rows about a point of their class, hardly apart enough to be learnt."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_classes, *shape))
    labels = np.arange(2 * count) % num_classes
    rows = centres[labels] + 0.3 * rng.normal(size=(2 * count, *shape))
    return own.from_arrays(rows[:count], labels[:count], rows[count:], labels[count:])


def register(name="clusters", stream="split", shape=(6,), **fields):
    if stream == "split":
        fields = {"classes_per_task": 2} | fields
    return benchmarks.register(
        name, lambda: clusters(shape), stream=stream, **SIZES | fields
    )


def sgd(problem, hyper, info=lambda loss: {"loss": loss}):
    """SGD on the incoming rows."""
    tx = optax.sgd(hyper.learning_rate)

    def observe(key, state, batch, batch_mask=None, remember=True):
        loss_fn = lambda w: lm.losses.masked_mean(problem.loss_fn(w, batch), batch_mask)
        loss, grads = jax.value_and_grad(loss_fn)(state.weights)
        updates, opt_state = tx.update(grads, state.opt_state)
        weights = optax.apply_updates(state.weights, updates)
        return lm.LearnerState(weights, opt_state), info(loss)

    init = lambda key, weights: lm.LearnerState(weights, tx.init(weights))
    return lm.Learner(init, observe)


HYPER = {"learning_rate": 0.1}


def run(tmp_path, benchmark="clusters", names="sgd", **options):
    options = {"seeds": 2, "console": QUIET, "out": tmp_path / "out"} | options
    return experiments.run(benchmark, names, **options)


def lines(found):
    text = (found.folder / "evaluations.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


# Methods ----------------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("info", "names"),
    [
        pytest.param(lambda loss: loss, ["value"], marks=SLOW),
        (lambda loss: {"b": {"loss": loss}, "a": loss > 0}, ["a", "b/loss"]),
        pytest.param(
            lambda loss: (loss, [jnp.stack([loss, loss])]), ["0", "1/0"], marks=SLOW
        ),
        pytest.param(lambda loss: None, [], marks=SLOW),
    ],
    ids=["array", "dict", "tuple", "nothing"],
)
def test_whatever_a_learner_reports_is_recorded(info, names, tmp_path):
    register()
    methods.register("sgd", lambda p, h: sgd(p, h, info), hyper=HYPER)
    (found,) = run(tmp_path)
    assert all(list(line["train"]) == names for line in lines(found))
    measured = [name for name in found.arrays if name.startswith("info_")]
    assert measured == [f"info_{name}" for name in names]
    assert all(found.arrays[name].shape == (2, 2) for name in measured)
    assert (found.accuracy[:, -1] > 0.5).all()


def test_a_checkpoint_keeps_names_of_nested_infos_and_weights(tmp_path):
    state = {"layer/bias": np.arange(3.0), "layer": {"bias": np.ones(2)}}
    history = {
        "accuracy": np.zeros((3, 2, 2)),
        "info_b/loss": np.arange(4.0).reshape(2, 2),
        "info_b": np.ones((2, 2)),
    }
    for saves in (True, False):
        with contextlib.closing(Checkpoints(tmp_path / "own", 0.0)) as checkpoints:
            if saves:
                checkpoints.save(Checkpoint(state, history))
            else:
                found = checkpoints.latest(state, pytest.fail)
    chex.assert_trees_all_equal(found, Checkpoint(state, history))


def test_a_seed_that_diverges_is_found_without_any_info(tmp_path):
    register()
    methods.register("sgd", lambda p, h: sgd(p, h, lambda loss: None), hyper=HYPER)
    assert run(tmp_path, learning_rate=1e38) == []
    summary = json.loads((tmp_path / "out/sgd/summary.json").read_text())
    assert summary["diverged_seeds"] == [0, 1]


def test_a_state_without_weights_is_one_error(tmp_path):
    register()
    learner = lm.Learner(lambda key, weights: {"weights": weights}, None)
    methods.register("mine", lambda p, h: learner)
    with pytest.raises(UserError, match="'mine': expected a state that is a Named"):
        run(tmp_path, names="mine")
    methods.register("mine", lambda p, h: None)
    with pytest.raises(
        UserError, match=r"expected a lamaml_jax.Learner, received None"
    ):
        run(tmp_path, names="mine")


def test_own_hyper_parameters_go_where_all_others_go(tmp_path):
    register()
    methods.register("sgd", sgd, hyper=HYPER | {"pull": 0.5, "rank": 2})
    assert settings.parse(["pull=1", "rank=3"]) == {"pull": 1.0, "rank": 3}
    with pytest.raises(UserError, match="rank: expected a whole number"):
        settings.parse(["rank=1.5"])
    asked = {"benchmark": "clusters", "method": ["sgd", "er"], "pull": 0.25}
    first, er = request.configs(request.make_request(asked))
    assert (first.hyper.pull, first.hyper.rank, first.hyper.batch_size) == (0.25, 2, 10)
    assert not hasattr(er.hyper, "pull")
    # numbers are arguments of the compiled program, as ours are
    assert hyperparameters.rates_of(first.hyper)["pull"] == 0.25
    (other,) = request.configs(
        request.make_request(asked | {"method": "sgd", "pull": 0.75})
    )
    assert config.shape_of(first) == config.shape_of(other)
    record = config.config_record(first)
    assert (record["pull"], record["rank"]) == (0.25, 2)
    (tmp_path / "config.json").write_text(json.dumps(record))
    (again,) = request.configs(
        request.make_request(request.read_file(tmp_path / "config.json"))
    )
    assert again == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "er"}, "method 'er': there is one of that name"),
        ({"name": "my/sgd"}, "method: expected a name of letters"),
        ({"hyper": {"capacity": 1.5}}, "capacity: expected a whole number"),
        ({"hyper": {"pull": None}}, "'pull': expected a bool, int, float or str"),
        ({"hyper": {"num_tasks": 3}}, "hyper-parameter 'num_tasks': choose another"),
        ({"hyper": {"a b": 3}}, "hyper-parameter 'a b': choose another"),
        ({"color": "nocolour"}, "color: matplotlib has none like 'nocolour'"),
        ({"hyper": {"rounds": 1.5}}, "'rounds': is of type int in another method"),
        ({"needs_task": True}, "unknown word 'needs_task'; did you mean needs_tasks"),
        ({"marker": "nomarker"}, "marker: matplotlib has none like 'nomarker'"),
    ],
)
def test_what_cannot_be_registered_is_an_error(options, message):
    options = {"name": "mine"} | options
    with pytest.raises(UserError, match=message):
        methods.register(options.pop("name"), sgd, **options)


def test_two_methods_may_share_a_hyper_parameter_of_one_type():
    methods.register("one", sgd, hyper={"pull": 0.5})
    methods.register("two", sgd, hyper={"pull": 0.1})
    with pytest.raises(UserError, match="'pull': is of type float in another method"):
        methods.register("three", sgd, hyper={"pull": 1})
    methods.register("two", sgd, hyper={"pull": 0.2})  # again, as in a notebook


def test_a_hyper_parameter_of_another_method_keeps_its_range():
    register()
    methods.register("sgd", sgd, hyper=HYPER | {"momentum": 0.5})
    asked = {"benchmark": "clusters", "method": "sgd", "momentum": 1.5}
    with pytest.raises(UserError, match="momentum: expected a share in"):
        request.configs(request.make_request(asked))


def test_own_methods_look_unlike_all_others():
    for n in range(12):
        methods.register(f"own-{n}", sgd)
    assert len(set(styles.STYLES.values())) == len(styles.STYLES)
    methods.register("mine", sgd, label="Mine", color="tab:red", marker="x")
    assert styles.NAMES["mine"] == "Mine"
    assert styles.STYLES["mine"] == styles.Style("tab:red", "x")


# Benchmarks -------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["split", "permutations"])
def test_feature_vectors_are_learnt(stream, tmp_path):
    register(stream=stream)
    (found,) = run(tmp_path, names="online", learning_rate=0.1)
    assert found.config["presets_from"] is not None
    # the chance of two classes, and of four
    chance = 0.5 if stream == "split" else 0.25
    assert (found.summary["learning_accuracy"] > 1.5 * chance).all()


def test_images_are_turned_for_convolutions_as_for_vectors():
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 2), np.uint8)
    shape = images.shape[1:]
    sizes = {"num_rows_available": 9, "num_tasks": 2, "rows_per_task": 3}
    pixel_map = benchmarks.STREAMS["rotations"](1, image_shape=shape, **sizes)
    pixel_map = jnp.asarray(pixel_map.pixel_map[1])
    form = DataForm(shape, 2, 255)
    scale = feeding.make_images(register(), form).scale
    flat = scale(jnp.asarray(images.reshape(3, -1)), pixel_map)
    whole = scale(jnp.asarray(images), pixel_map)
    np.testing.assert_array_equal(whole.reshape(3, -1), flat)


def test_colour_images_are_turned_and_convolved(tmp_path):
    register(stream="rotations", shape=(6, 5, 2), channels=(4,))
    (found,) = run(tmp_path, names="online", seeds=1)
    assert found.config["presets_from"].endswith("rotations")


def test_an_order_of_ones_own_is_what_every_seed_is_shown():
    labels = clusters().train_labels
    order = np.stack([np.flatnonzero(labels // 2 == t)[:20] for t in range(2)])
    tested = np.stack([np.flatnonzero(labels // 2 == t)[:9] for t in range(2)])
    made = benchmarks.register(
        "ordered",
        clusters(),
        stream=experiments.Stream(order, test_rows=tested),
        classes_per_task=2,
    )
    assert (made.num_tasks, made.rows_per_task) == (2, 20)
    drawn = benchmarks.load(made, (3, 4))
    np.testing.assert_array_equal(drawn.rows, np.stack([order, order]))
    np.testing.assert_array_equal(drawn.test_rows[1], tested)
    with pytest.raises(UserError, match=r"ordered: stream: .*no validation tasks"):
        benchmarks.load(made, (0,), evaluate_on="validation")
    wrong = dataclasses.replace(made, classes_per_task=1)
    with pytest.raises(UserError, match="task 0 has a row of class 1"):
        benchmarks.load(wrong, (0,))


def test_a_function_draws_for_each_seed(tmp_path):
    def draw(seed, source, *, num_tasks, rows_per_task, map_seed):
        rng = np.random.default_rng(seed)
        count = len(source.train_labels)
        return experiments.Stream(rng.integers(count, size=(num_tasks, rows_per_task)))

    made = register(stream=draw)
    rows = benchmarks.load(made, (0, 1)).rows
    assert (rows[0] != rows[1]).any()
    held = benchmarks.load(made, (0,), evaluate_on="validation")
    assert len(held.train_labels) + len(held.test_labels) == 80
    (found,) = run(tmp_path, names="online")
    assert found.config["stream"] == "clusters"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mnist-many"}, "benchmark 'mnist-many': there is one of that name"),
        (
            {"name": "rotations", "stream": lambda seed: None},
            "rotations: is the name of a stream",
        ),
        ({"stream": "spirals"}, "stream: expected one of rotations, permutations"),
        ({"classes_per_task": None}, "classes_per_task: expected for a split"),
        ({"num_tasks": None}, "clusters: num_tasks: expected a whole number"),
        ({"chanels": (3,)}, "unknown field 'chanels'; did you mean channels"),
        ({"eval_every": 0.5}, "clusters: eval_every: expected a whole number"),
        ({"stream": experiments.Stream([1, 2])}, r"expected rows \[T, R\]"),
    ],
)
def test_a_benchmark_that_cannot_be_is_an_error(options, message):
    with pytest.raises(UserError, match=message):
        register(**options)


def test_broken_data_are_one_error_before_any_training(tmp_path):
    def missing():
        return own.from_npz(tmp_path / "no.npz")

    benchmarks.register("broken", missing, stream="split", classes_per_task=2, **SIZES)
    with pytest.raises(UserError, match=r"data set 'broken': .*no\.npz"):
        run(tmp_path, "broken", names="er")
    benchmarks.register("broken", "digits", stream="rotations", **SIZES)
    with pytest.raises(UserError, match=r"unknown data set 'digit'; did you mean"):
        benchmarks.register("other", "digit", stream="rotations", **SIZES)


# Presets ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "passes", "nearest"),
    [
        ({"stream": "rotations"}, "single", "digits-rotations"),
        (
            {"stream": "rotations", "rows_per_task": 1500, "num_tasks": 15},
            "single",
            "mnist-rotations",
        ),
        ({"stream": "permutations", "num_tasks": 90}, "single", "mnist-many"),
        ({"stream": "split"}, "single", "fashion-mnist-split"),
        ({"stream": "split", "channels": (8,)}, "single", "cifar100-split"),
        ({"stream": "split"}, "multi", "cifar100-split"),
        ({"stream": lambda seed: None}, "single", "digits-rotations"),
    ],
)
def test_presets_are_those_of_the_nearest_stream(fields, passes, nearest):
    register(**{"shape": (6, 6, 1)} | fields)
    assert presets.taken_from("clusters", "lamaml", passes) == nearest
    (taken,) = presets.resolve("clusters", ["lamaml"], passes=passes)
    assert taken == presets.OFFICIAL[nearest, passes]["lamaml"]


def test_no_stream_of_the_kind_is_an_error():
    register(stream="permutations")
    with pytest.raises(UserError, match="no preset for method 'lamaml' on 'clusters'"):
        presets.taken_from("clusters", "lamaml", "multi")


@pytest.mark.slow
def test_where_presets_are_from_is_told_and_stored(tmp_path, capsys):
    register()
    methods.register("sgd", sgd, hyper=HYPER)
    er, own_one = run(tmp_path, names=["er", "sgd"], console=Console(), seeds=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "clusters has no presets for er: those of fashion-mnist-split, the" in said
    assert er.config["presets_from"] == "fashion-mnist-split"
    assert own_one.config["presets_from"] is None
    again = run(tmp_path, None, None, seeds=1, config=er.folder / "config.json")
    assert [each.folder for each in again] == [er.folder]


# Networks ---------------------------------------------------------------------------


class Linen(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))


class Nnx(nnx.Module):
    def __init__(self, form, rngs):
        self.layer = nnx.Linear(36, form.num_classes, rngs=rngs)

    def __call__(self, images):
        return self.layer(images.reshape(images.shape[0], -1))


class Equinox(eqx.Module):
    layer: eqx.nn.Linear

    def __init__(self, form, key):
        self.layer = eqx.nn.Linear(36, form.num_classes, key=key)

    def __call__(self, image):
        return self.layer(image.reshape(-1))


def pair(form):
    return networks.Pair(
        lambda key, images: {"w": jax.random.normal(key, (36, form.num_classes)) / 6},
        lambda weights, images: images.reshape(images.shape[0], -1) @ weights["w"],
    )


NETWORKS = {
    "linen": lambda form: Linen(form.num_classes),
    "nnx": networks.from_nnx(Nnx),
    "equinox": networks.from_equinox(Equinox),
    "pair": pair,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_any_library_is_trained(name, tmp_path):
    register(shape=(6, 6, 1))
    networks.register(name, NETWORKS[name])
    (found,) = run(tmp_path, names="online", network=name, learning_rate=0.1)
    assert found.config["network"] == name
    # 20 rows of two clusters, seen five times each; chance is a half
    assert (found.summary["learning_accuracy"] > 0.8).all()


@pytest.mark.slow
def test_step_sizes_are_named_after_the_weights_of_a_network_of_ones_own(tmp_path):
    register(shape=(6, 6, 1))
    networks.register("mine", networks.from_equinox(Equinox))
    options = {"capacity": 20, "glances": 1, "inner_steps": 1, "seeds": 1}
    (found,) = run(tmp_path, names="lamaml", network="mine", **options)
    assert found.summary["step_size_leaves"] == ["layer/bias", "layer/weight"]


class Normed(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = images.reshape(images.shape[0], -1)
        return nn.Dense(4)(nn.BatchNorm(use_running_average=False)(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda form: Normed(), "has state besides its weights, batch_stats"),
        (lambda form: Linen(3), r"expected logits \[\d+, 4\], .*received \[\d+, 3\]"),
        (lambda form: None, "expected a flax linen module or another pair"),
    ],
)
def test_a_network_that_cannot_be_is_an_error(make, message, tmp_path):
    register()
    networks.register("mine", make)
    with pytest.raises(UserError, match=f"network 'mine': {message}"):
        run(tmp_path, names="online", network="mine")


def test_an_unknown_network_is_an_error_with_a_hint(tmp_path):
    register()
    networks.register("small-net", pair)
    with pytest.raises(UserError, match="'smallnet'; did you mean small-net"):
        run(tmp_path, names="online", network="smallnet")


def test_oml_asks_which_layer_is_the_last(tmp_path):
    register(shape=(6, 6, 1))
    networks.register("mine", pair)
    with pytest.raises(UserError, match=r"'mine': does not say .* last layer"):
        run(tmp_path, names="oml", network="mine", capacity=20)
    networks.register("mine", pair, head_fn=lambda weights: {"w": True})
    options = {"capacity": 20, "glances": 1, "inner_steps": 1, "seeds": 1}
    (found,) = run(tmp_path, names="oml", network="mine", **options)
    assert np.isfinite(found.accuracy).all()


# Python -----------------------------------------------------------------------------


def test_a_complete_run_is_read_and_a_report_takes_it(tmp_path):
    register()
    methods.register("sgd", sgd, hyper=HYPER, label="Mine")
    (first,) = run(tmp_path)
    before = (first.folder / "arrays.npz").stat().st_mtime_ns
    (again,) = run(tmp_path)
    assert (again.folder / "arrays.npz").stat().st_mtime_ns == before
    np.testing.assert_array_equal(first.accuracy, again.accuracy)
    assert first.environment["command"].startswith("experiments.run('clusters'")
    made = report.make_report([first], tmp_path / "report", console=QUIET)
    assert "| Mine |" in made.table_md.read_text()


def test_python_and_the_command_line_give_the_same_configuration(tmp_path):
    register()
    seeds = np.arange(2, 4)
    (found,) = run(tmp_path, names="online", seeds=seeds, learning_rate=0.2, epochs=1)
    given = {"benchmark": "clusters", "method": ["online"], "seeds": 2}
    given |= {"first_seed": 2, "learning_rate": 0.2, "epochs": 1}
    (expected,) = request.configs(request.make_request(given))
    assert found.config == json.loads(json.dumps(config.config_record(expected)))


def test_a_folder_in_use_is_refused(tmp_path):
    register()
    folder = tmp_path / "out/online"
    with (
        run_folder.held([folder], lambda text: None),
        pytest.raises(UserError, match="is running in this folder"),
    ):
        run(tmp_path, names="online")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capasity": 3}, "unknown field 'capasity'; did you mean capacity"),
        ({"seeds": [0, 0]}, "seeds: each seed once"),
        ({"num_tasks": "two"}, "num_tasks: expected a whole number"),
        ({"names": "egr"}, "unknown method 'egr'"),
        (
            {"benchmark": "cluster"},
            "unknown benchmark 'cluster'; did you mean clusters",
        ),
        ({"out": "gs://bucket/x"}, "out: expected a path on this machine"),
    ],
)
def test_mistakes_are_those_of_the_command_line(options, message, tmp_path):
    register()
    with pytest.raises(UserError, match=message):
        run(tmp_path, **{"names": "online"} | options)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "module", [blurring, hyperparameters, loop, own, own_streams, targets]
)
def test_examples_in_docstrings_run(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
