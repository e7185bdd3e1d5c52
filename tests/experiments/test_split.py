"""Streams whose tasks have classes of their own, from labels to accuracies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamaml_jax as lm
from experiments.config import benchmarks, presets
from experiments.config.run_config import RunConfig
from experiments.data import streams
from experiments.data.source import Source
from experiments.networks import Network, head_mask
from experiments.support.errors import UserError
from experiments.training import batches as feeding
from experiments.training import loop, placement
from experiments.training import one_seed as train
from experiments.training.inputs import DataForm, place
from experiments.training.programs import compile_programs

NUM_CLASSES, PER_CLASS = 6, 20


def labels_of(per_class):
    """Shuffled labels; class c has ``per_class + c`` rows."""
    labels = np.repeat(np.arange(NUM_CLASSES), per_class + np.arange(NUM_CLASSES))
    return np.random.default_rng(0).permutation(labels).astype(np.int32)


TRAIN_LABELS, TEST_LABELS = labels_of(PER_CLASS), labels_of(4)


def _source():
    """Images of 8 x 8 x 3 whose colour tells the class, with noise."""
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 220, (NUM_CLASSES, 1, 1, 3))

    def images(labels):
        noise = rng.integers(0, 30, (len(labels), 8, 8, 3))
        return (noise + colours[labels]).astype(np.uint8)

    return Source(
        images(TRAIN_LABELS), TRAIN_LABELS, images(TEST_LABELS), TEST_LABELS, 6, 255
    )


SOURCE = _source()
SIZES = {
    "classes_per_task": 2,
    "num_tasks": 3,
    "rows_per_task": 30,
}


def test_tasks_own_consecutive_new_labels():
    stream = streams.split_stream(3, SOURCE, **SIZES)
    assert sorted(stream.label_map) == list(range(NUM_CLASSES))
    for task in range(3):
        for rows, labels in (
            (stream.rows, TRAIN_LABELS),
            (stream.test_rows, TEST_LABELS),
        ):
            new = stream.label_map[labels[rows[task]]]
            counts = np.bincount(new, minlength=NUM_CLASSES)
            own = counts[2 * task : 2 * task + 2]
            assert own.sum() == rows.shape[1] and len(set(own)) == 1


def test_rows_are_distinct_and_their_order_mixes_the_classes():
    stream = streams.split_stream(3, SOURCE, **SIZES)
    assert len(set(stream.rows.ravel())) == 90
    new = stream.label_map[TRAIN_LABELS[stream.rows[0]]]
    assert not (np.sort(new) == new).all()


def test_validation_rows_are_never_shown():
    kept = {
        seed: streams.split_stream(seed, SOURCE, **SIZES | {"rows_per_task": 36})
        for seed in (0, 1)
    }
    # 36 is all that is left of 2 x 20 rows with a tenth held out.
    assert all(len(set(stream.rows[0])) == 36 for stream in kept.values())
    with pytest.raises(ValueError, match=r"rows_per_task.*at most 36, received 38"):
        streams.split_stream(0, SOURCE, **SIZES | {"rows_per_task": 38})


def test_seeds_differ_and_a_map_seed_fixes_the_classes_only():
    one, two = (streams.split_stream(seed, SOURCE, **SIZES) for seed in (0, 1))
    assert not np.array_equal(one.label_map, two.label_map)
    fixed = streams.split_stream(1, SOURCE, **SIZES, map_seed=0)
    np.testing.assert_array_equal(fixed.label_map, one.label_map)
    assert not np.array_equal(fixed.rows, one.rows)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"classes_per_task": 4}, "classes_per_task: expected a divisor of the 6"),
        ({"classes_per_task": 0}, "classes_per_task: expected a divisor"),
        ({"num_tasks": 4}, "num_tasks: expected 1 to 3"),
        ({"rows_per_task": 31}, "rows_per_task: expected a multiple of the 2 classes"),
        ({"rows_per_task": 0}, "rows_per_task"),
        ({"num_classes": 7, "classes_per_task": 1}, "class 6 has no row"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(sizes, message):
    num_classes = sizes.get("num_classes", NUM_CLASSES)
    source = SOURCE._replace(num_classes=num_classes)
    sizes = {name: size for name, size in sizes.items() if name != "num_classes"}
    with pytest.raises(ValueError, match=message):
        streams.split_stream(0, source, **SIZES | sizes)


def test_fewer_classes_make_fewer_tasks():
    benchmark = benchmarks.get_benchmark("tinyimagenet-split")
    assert benchmarks.with_tasks_of(benchmark, 200).num_tasks == 40
    assert benchmarks.with_tasks_of(benchmark, 100).num_tasks == 20
    with pytest.raises(UserError, match="divisor of the 99 classes"):
        benchmarks.with_tasks_of(benchmark, 99)


def test_tasks_that_share_classes_are_left_alone():
    benchmark = benchmarks.get_benchmark("mnist-many")
    assert benchmarks.with_tasks_of(benchmark, 10) == benchmark


def tiny(method="lamaml", setting="aware", passes="single", **overrides):
    benchmark = dataclasses.replace(
        benchmarks.get_benchmark("cifar100-split"),
        num_tasks=3,
        rows_per_task=34,
        classes_per_task=2,
        channels=(8,),
        hidden=(16,),
        augment=("flip", "brightness"),  # a crop would black out half of 8 x 8
    )
    overrides = {"capacity": 30, "batch_size": 8, "inner_steps": 3} | overrides
    preset = presets.OFFICIAL[benchmark.name, passes][method]
    given = {k: v for k, v in overrides.items() if getattr(preset, k) is not None}
    (hyper,) = presets.resolve(benchmark.name, [method], given, passes)
    return RunConfig(benchmark, method, (0, 1), hyper, None, setting, passes)


def results(config):
    data = benchmarks.draw(config.benchmark, SOURCE, config.seeds)
    inputs = place(data, config.seeds, placement.make_mesh(1))
    (program,) = compile_programs([[config]], inputs)
    return list(loop.train(config, program, inputs))


def accuracies(config):
    return np.stack([result.accuracy for result in results(config)], axis=1)


@pytest.mark.slow
def test_two_runs_of_icarl_are_bit_identical():
    """The other methods' are compared as processes, in test_resume.py."""
    runs = [results(tiny("icarl")) for _ in range(2)]
    found = [([(r.accuracy, r.info) for r in run], run[-1].state) for run in runs]
    assert len(found[0][0]) == 4
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.slow
def test_lamaml_learns_a_split_with_a_head_per_task():
    matrix = accuracies(tiny())[:, 1:]
    learnt = np.diagonal(matrix, axis1=1, axis2=2)
    # Colours are easy; chance is one half.
    assert learnt.mean() > 0.8


@pytest.mark.slow
def test_agnostic_accuracy_is_over_all_classes():
    aware, agnostic = (
        accuracies(tiny("er", setting=s, glances=2))[:, 0]
        for s in ("aware", "agnostic")
    )
    # The untrained network is right by chance: one in two, or one in six, of 8 rows.
    assert aware.mean() > 0.3 > agnostic.mean()


@pytest.mark.slow
def test_multiple_passes_offer_rows_once_and_change_the_result():
    config = tiny("er", passes="multi", epochs=3)
    fns = train.make_functions(config, DataForm((8, 8, 3), 6, 255), "cpu")
    data = benchmarks.draw(config.benchmark, SOURCE, (0,))
    shared, own = place(data, (0,), placement.make_mesh(1))[-2:]
    own = jax.tree.map(lambda x: x[0], own)
    own = own._replace(state=fns.init(shared, own), is_alive=True)
    trained = jax.jit(fns.train_task)(shared._replace(task=0), own)
    assert trained.state.reservoir.num_seen == 34


def test_mixed_rows_cover_every_row_once_in_an_epoch():
    config = tiny("iid", passes="multi", epochs=2)
    shown = [
        feeding.positions(config, jnp.int32(0), jnp.int32(task), jnp.int32(epoch))
        for task in range(3)
        for epoch in range(2)
    ]
    flat = [np.asarray(tasks * 34 + places) for tasks, places in shown]
    for start in (0, 3):  # three parts make one epoch over all tasks
        one = np.concatenate(flat[start : start + 3])
        np.testing.assert_array_equal(np.sort(one), np.arange(3 * 34))
    assert not np.array_equal(flat[0], flat[3])


def test_evaluation_is_that_of_a_plain_loop():
    config = tiny("online")
    benchmark = config.benchmark
    data = benchmarks.draw(benchmark, SOURCE, (0, 1))
    fns = train.make_functions(config, DataForm((8, 8, 3), 6, 255), "cpu")
    weights = fns.init_weights(jnp.int32(1))
    images = (data.test_images / 255.0 - np.asarray(benchmark.mean)) / benchmark.std
    model = Network((16,), 6, (8,))
    logits = np.asarray(model.apply(weights, jnp.asarray(images, jnp.float32)))
    expected = []
    for task in range(3):
        rows = data.test_rows[1, task]
        own = logits[rows, 2 * task : 2 * task + 2]
        labels = data.label_maps[1][data.test_labels[rows]] - 2 * task
        expected.append((own.argmax(1) == labels).mean())
    np.testing.assert_allclose(accuracies(config)[1, 0], expected, atol=1e-6)


def test_head_mask_marks_the_last_dense_layer():
    weights = Network((16, 8), 6, (4,)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    mask = head_mask(weights)["params"]
    assert mask["Dense_2"] == {"kernel": True, "bias": True}
    others = {k: v for k, v in mask.items() if k != "Dense_2"}
    assert set(others) == {"Conv_0", "Dense_0", "Dense_1"}
    assert not any(jax.tree.leaves(others))


def test_oml_adapts_the_last_layer_only():
    config = tiny("oml")
    fns = train.make_functions(config, DataForm((8, 8, 3), 6, 255), "cpu")
    weights = fns.init_weights(jnp.int32(0))
    support = {
        "image": jnp.ones((2, 4, 8, 8, 3)),
        "label": jnp.zeros((2, 4), jnp.int32),
    }

    def loss_fn(weights, batch):
        logits = Network((16,), 6, (8,)).apply(weights, batch["image"])
        return -jax.nn.log_softmax(logits)[:, 0]

    rates = jax.tree.map(lambda w: jnp.full_like(w, 0.1), weights)
    fast, _ = lm.adapt(loss_fn, weights, rates, support, adapt_mask=head_mask)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), weights, fast)["params"]
    assert moved["Dense_1"] == {"kernel": True, "bias": True}
    assert not any(jax.tree.leaves({k: v for k, v in moved.items() if k != "Dense_1"}))
