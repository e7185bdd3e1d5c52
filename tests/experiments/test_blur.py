"""Tasks whose boundaries blur: a share of each one's rows in the others' time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import experiments
from experiments.config import benchmarks, request
from experiments.data import own, streams
from experiments.data.blurring import blurred
from experiments.report import entries
from experiments.support.errors import UserError
from experiments.training import batches, inputs

T, R = 5, 24
SHARP = streams.Stream(
    np.random.default_rng(0).permutation(T * R).reshape(T, R).astype(np.int32),
    test_rows=np.arange(2 * T).reshape(T, 2),
)
# Where each row stands without blur.
TASK_OF = np.empty(T * R, int)
TASK_OF[SHARP.rows] = np.arange(T)[:, None]


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.8, 1.0])
def test_every_row_is_shown_once_and_owners_say_whose_it_is(share):
    found = blurred(3, SHARP, share)
    np.testing.assert_array_equal(np.sort(found.rows, axis=None), np.arange(T * R))
    np.testing.assert_array_equal(found.owners, TASK_OF[found.rows])
    assert found.rows.dtype == found.owners.dtype == np.int32
    np.testing.assert_array_equal(found.test_rows, SHARP.test_rows)


@pytest.mark.parametrize(
    ("share", "guests"), [(0.05, 1), (0.25, 6), (0.5, 12), (0.8, 19), (1, 24)]
)
def test_tasks_exchange_their_share_as_evenly_as_can_be(share, guests):
    owners = blurred(3, SHARP, share).owners
    counts = np.stack([np.bincount(each, minlength=T) for each in owners])
    np.testing.assert_array_equal(np.diagonal(counts), R - guests)
    np.testing.assert_array_equal(counts.sum(axis=0), R)
    others = counts[~np.eye(T, dtype=bool)]
    assert set(others) <= {guests // (T - 1), -(-guests // (T - 1))}


def test_rows_that_are_not_exchanged_stay_in_their_places():
    found = blurred(3, SHARP, 0.25)
    stays = found.owners == np.arange(T)[:, None]
    np.testing.assert_array_equal(found.rows[stays], SHARP.rows[stays])
    # Guests come at random places, not at an end of a task.
    assert len({tuple(np.flatnonzero(~each)) for each in stays}) == T


def test_a_seed_decides_and_no_share_changes_nothing():
    again, other = blurred(3, SHARP, 0.25), blurred(4, SHARP, 0.25)
    np.testing.assert_array_equal(again.rows, blurred(3, SHARP, 0.25).rows)
    assert (again.rows != other.rows).any()
    for share in (0, 0.4 / R):
        assert blurred(3, SHARP, share) is SHARP


def test_shares_that_cannot_be_are_errors():
    with pytest.raises(ValueError, match=r"blur: expected a share in \[0, 1\], rec"):
        blurred(0, SHARP, 1.5)
    with pytest.raises(ValueError, match="blur: expected several tasks"):
        blurred(0, streams.Stream(SHARP.rows[:1]), 0.5)


def clusters():
    """Rows about a point of their class."""
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 4
    rows = rng.normal(size=(4, 6))[labels] + 0.3 * rng.normal(size=(160, 6))
    return own.from_arrays(rows[:80], labels[:80], rows[80:], labels[80:])


def register(**fields):
    fields = {"stream": "split", "classes_per_task": 2} | fields
    return benchmarks.register(
        "clusters", clusters, num_tasks=2, rows_per_task=20, blur=0.25, **fields
    )


@pytest.mark.usefixtures("registries")
def test_an_own_split_blurs_and_its_sharp_form_shows_the_same_rows():
    made = register()
    found = benchmarks.load(made, (0, 1))
    sharp = benchmarks.load(dataclasses.replace(made, blur=0.0), (0, 1))
    assert (found.owners.shape, sharp.owners.shape) == ((2, 2, 20), (2, 2, 0))
    for name in ("label_maps", "test_rows"):
        np.testing.assert_array_equal(getattr(found, name), getattr(sharp, name))
    for mixed, apart in zip(found.rows, sharp.rows, strict=True):
        assert set(mixed.ravel()) == set(apart.ravel())
    labels = found.label_maps[0][found.train_labels[found.rows[0]]]
    np.testing.assert_array_equal(labels // 2, found.owners[0])
    held = benchmarks.load(made, (0,), evaluate_on="validation")
    assert (np.bincount(held.owners[0, 0]) == [15, 5]).all()


@pytest.mark.usefixtures("registries")
def test_an_order_of_ones_own_blurs_too():
    labels = clusters().train_labels
    order = np.stack([np.flatnonzero(labels // 2 == t)[:20] for t in range(2)])
    tested = np.stack([np.flatnonzero(labels // 2 == t)[:9] for t in range(2)])
    stream = experiments.Stream(order, test_rows=tested)
    made = benchmarks.register(
        "ordered", clusters(), stream=stream, classes_per_task=2, blur=0.5
    )
    found = benchmarks.load(made, (0, 1))
    assert (np.sort(found.rows, axis=None) == np.sort([order, order], axis=None)).all()
    assert (found.rows[0] != found.rows[1]).any()  # seeds differ in the exchange only


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("method", ["online", "iid"])
def test_a_guest_is_permuted_as_its_own_task_is(method):
    made = register(stream="permutations", classes_per_task=None)
    asked = {"benchmark": "clusters", "method": method, "batch_size": 7}
    (config,) = request.configs(request.make_request(asked))
    data = benchmarks.load(made, (5,))
    stream = inputs.StreamArrays(
        *(jnp.asarray(getattr(data, name)[0]) for name in inputs.StreamArrays._fields)
    )
    images = (jnp.asarray(getattr(data, name)) for name in inputs.IMAGES)
    shared = inputs.Shared(*images, task=jnp.int32(1))
    seen = inputs.Own(jnp.int32(5), stream)
    show = batches.make_show(config, inputs.DataForm((6,), 4, 1.0))
    places, mask = show.epoch(shared, seen, 0)
    for index in range(3):
        one = jax.tree.map(lambda x, index=index: x[index], places)
        rows, _ = show.rows(shared, seen, jax.random.key(0), one)
        for row in np.flatnonzero(mask[index]):
            number = int(one["row"][row])
            shown = np.argwhere(data.rows[0] == number)
            expected = [
                data.train_images[number][data.pixel_maps[0, data.owners[0, t, i]]]
                for t, i in shown
            ]
            found = np.asarray(rows["image"][row])
            assert any(np.array_equal(found, each) for each in expected)
    assert len(set(np.asarray(places["task"]).ravel())) == 2


@pytest.mark.usefixtures("registries")
def test_tasks_without_boundaries_have_no_ids():
    register()
    asked = {"benchmark": "clusters", "method": "er"}
    (config,) = request.configs(request.make_request(asked))
    assert config.setting == "agnostic"
    for wrong in ({"setting": "aware"}, {"alignment": True}):
        with pytest.raises(UserError, match="blur: tasks that show each other's rows"):
            request.configs(request.make_request(asked | wrong))
    with pytest.raises(UserError, match=r"blur: expected a share in \[0, 1\), rec"):
        request.configs(request.make_request(asked | {"blur": 1.0}))
    assert request.run_name(request.make_request(asked)) == "clusters-blur-0.25"


@pytest.mark.usefixtures("registries")
def test_a_run_on_blurred_tasks_ends_with_a_protocol_of_its_own(tmp_path):
    register()
    quiet = {"console": Console(quiet=True), "seeds": 1}
    options = {"learning_rate": 0.1, "out": tmp_path} | quiet
    (found,) = experiments.run("clusters", "online", **options)
    assert found.config["blur"] == 0.25
    # At random one in four is right.
    assert (found.summary["retained_accuracy"] > 0.4).all()
    assert entries.protocol(found.config) == "clusters-blur-0.25"
