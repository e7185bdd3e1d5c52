"""Rows that are stored as they are, and augmented anew whenever they are shown."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import experiments
import lamaml_jax as lm
from experiments.config import benchmarks, request
from experiments.data import augmentation, own
from experiments.support.errors import UserError
from experiments.training import batch_keys, batches, inputs, one_seed

pytestmark = pytest.mark.usefixtures("registries")
SHAPE = (8, 8, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (120, *SHAPE)).astype(np.uint8)
LABELS = np.arange(120) % 4
IMAGES[..., 0] = 60 * LABELS[:, None, None]  # the class, in red


def register(**fields):
    fields = {"channels": (4,), "hidden": (), "raw_memory": True} | fields
    source = own.from_arrays(IMAGES[:80], LABELS[:80], IMAGES[80:], LABELS[80:])
    return benchmarks.register(
        "colours",
        source,
        stream="split",
        classes_per_task=2,
        num_tasks=2,
        rows_per_task=30,
        **fields,
    )


def config_of(method="er", **fields):
    register(**fields)
    asked = {"benchmark": "colours", "method": method, "setting": "agnostic"}
    (config,) = request.configs(request.make_request(asked | {"capacity": 12}))
    return config


def trained(config):
    """The first seed's state after the first task."""
    form = inputs.DataForm(SHAPE, 4, 255.0)
    fns = one_seed.make_functions(config, form, "cpu")
    data = benchmarks.load(config.benchmark, (0,))
    stream = inputs.StreamArrays(
        *(jnp.asarray(getattr(data, name)[0]) for name in inputs.StreamArrays._fields)
    )
    images = (jnp.asarray(getattr(data, name)) for name in inputs.IMAGES)
    shared = inputs.Shared(*images, task=jnp.int32(0))
    seen = inputs.Own(jnp.int32(0), stream, is_alive=jnp.bool_(True))
    seen = seen._replace(state=fns.init(shared, seen))
    return data, jax.jit(fns.train_task)(shared, seen).state


@pytest.mark.slow
@pytest.mark.parametrize("method", ["er", "lamaml"])
def test_a_memory_holds_rows_as_they_are_stored(method):
    data, state = trained(config_of(method, augment=("crop", "flip")))
    memory = state.reservoir if method == "er" else state.opt_state.reservoir
    found = np.asarray(memory.rows["image"])
    assert found.dtype == np.uint8
    shown = {image.tobytes() for image in data.train_images[data.rows[0, 0]]}
    assert {image.tobytes() for image in found} <= shown


@pytest.mark.parametrize(
    "method", ["er", pytest.param("lamaml", marks=pytest.mark.slow)]
)
def test_without_changes_it_is_the_same_training(method):
    mean = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    states = [
        trained(config_of(method, raw_memory=raw, **mean))[1] for raw in (False, True)
    ]
    for one, other in zip(*(jax.tree.leaves(s.weights) for s in states), strict=True):
        # float32 through some tens of updates, compiled in another order.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def prepare_of(augment=("crop", "flip", "brightness")):
    made = register(augment=augment)
    return batches.make_images(made, inputs.DataForm(SHAPE, 4, 255.0)).prepare


def test_an_image_is_changed_by_the_key_and_by_itself():
    prepare, key = prepare_of(), jax.random.key(0)
    first = prepare(key, jnp.asarray(IMAGES[:6]))
    again = prepare(key, jnp.asarray(IMAGES[5:1:-1]))
    np.testing.assert_array_equal(first[5:1:-1], again)
    other = prepare(jax.random.key(1), jnp.asarray(IMAGES[:6]))
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_that_differ_in_one_number_have_other_keys(dtype):
    images = np.repeat(IMAGES[:1], 200, axis=0).astype(dtype)
    images.reshape(200, -1)[np.arange(1, 200), np.arange(1, 192).repeat(2)[:199]] += 1
    images[100:] += 1
    keys = augmentation.keys_by_content(jax.random.key(3), jnp.asarray(images))
    words = {tuple(row) for row in np.asarray(jax.random.key_data(keys))}
    assert len(words) == len({image.tobytes() for image in images})


def test_every_batch_draws_changes_anew():
    prepare_with = prepare_of()
    example = jax.ShapeDtypeStruct(SHAPE, jnp.uint8)

    def make(key):
        prepare = partial(prepare_with, key)
        init = lambda key, weights: lm.LearnerState(weights, None)

        def observe(key, state, batch, batch_mask=None, remember=True):
            return state, (prepare(batch), prepare(batch))

        return lm.Learner(init, observe)

    learner = batch_keys.keyed_by_batch(make)
    state = learner.init(jax.random.key(0), jnp.zeros(()))
    assert example.shape == IMAGES.shape[1:]
    seen = [
        learner.observe(jax.random.key(step), state, jnp.asarray(IMAGES[:4]))[1]
        for step in (0, 0, 1)
    ]
    np.testing.assert_array_equal(*seen[0])  # within a batch's updates the same
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    assert all((a != b).any() for a, b in zip(seen[0][0], seen[2][0], strict=True))


@pytest.mark.slow
def test_an_online_run_augments_a_raw_memory_under_batchnorm(tmp_path):
    register(
        augment=("flip",),
        network="reduced-resnet18-batchnorm",
        channels=(10, 10),
        is_online=True,
        anytime_every=3,
    )
    (run,) = experiments.run(
        "colours", "derpp", seeds=1, out=tmp_path, console=Console(quiet=True)
    )
    assert run.config["raw_memory"] and np.isfinite(run.accuracy).all()


def test_a_method_that_predicts_with_its_rows_refuses():
    register()
    asked = {"benchmark": "colours", "method": "icarl"}
    with pytest.raises(UserError, match="raw_memory: method 'icarl' predicts with"):
        request.configs(request.make_request(asked))


@pytest.mark.parametrize("name", ["cifar100-online", "tinyimagenet-online"])
def test_online_benchmarks_of_pictures_keep_raw_rows(name):
    asked = {"benchmark": name, "method": ["er", "lamaml", "derpp", "cls_er", "pocl"]}
    for config in request.configs(request.make_request(asked)):
        assert config.benchmark.raw_memory and config.presets_from is None
