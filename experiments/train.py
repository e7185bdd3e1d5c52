"""Pure functions that run one seed of a method on a benchmark."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments import benchmarks, methods
from experiments.augment import augment
from experiments.config import RunConfig
from experiments.data.streams import apply_pixel_map
from experiments.methods.problem import Problem
from experiments.models import Network, head_mask

# Test rows that are evaluated at a time: their activations should stay in cache.
_TEST_CHUNK, _TEST_CHUNK_CONVOLUTIONS = 1000, 125


class DataForm(NamedTuple):
    """Sizes of a benchmark's data that its programs are compiled for."""

    image_shape: tuple[int, ...]
    num_classes: int
    max_value: int


class TrainFns(NamedTuple):
    """Pure functions of one seed, as ``make_train`` builds them."""

    init_weights: Callable[..., lm.Params]
    """``init_weights(seed) -> weights``; the same for every method of an initializer.
    """
    init: Callable[..., Any]
    """``init(seed) -> state``."""
    train_task: Callable[..., tuple[Any, Any]]
    """``train_task(shared, stream, seed, state, task) -> state, info``."""
    subject: Callable[[Any], Any]
    """``subject(state)``: what is evaluated, the weights unless the method predicts
    with more."""
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    """``evaluate(shared, stream, subject, wanted [T]) -> accuracy [T], finite``."""


class Shared(NamedTuple):
    """Arrays on the device that all seeds read, as in ``BenchmarkData``."""

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


class StreamArrays(NamedTuple):
    """Arrays on the device with a leading seed axis, as in ``BenchmarkData``."""

    rows: jax.Array
    pixel_maps: jax.Array
    label_maps: jax.Array
    test_rows: jax.Array


class _Images(NamedTuple):
    """How stored images become the network's inputs."""

    scale: Callable[[jax.Array, jax.Array], jax.Array]
    """``(images uint8 [B, ...], pixel_map) -> [B, ...]`` in [0, 1]."""
    augment: Callable[[lm.Key, jax.Array], jax.Array] | None
    normalise: Callable[[jax.Array], jax.Array]


def _make_images(benchmark: benchmarks.Benchmark, form: DataForm) -> _Images:
    def scale(images, pixel_map):
        if pixel_map.shape[0]:
            images = apply_pixel_map(images, pixel_map)
        return images.astype(jnp.float32) / form.max_value

    def normalise(images):
        if not benchmark.mean:
            return images
        mean, std = (
            jnp.asarray(x, jnp.float32)[None, None, None, :]
            for x in (benchmark.mean, benchmark.std)
        )
        return (images - mean) / std

    names = benchmark.augment
    changes = (lambda key, images: augment(key, images, names)) if names else None
    return _Images(scale, changes, normalise)


def _make_problem(config: RunConfig, form: DataForm, model: Network) -> Problem:
    benchmark = config.benchmark
    classes_per_task = benchmark.classes_per_task
    example = {
        "image": jax.ShapeDtypeStruct(form.image_shape, jnp.float32),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
    }
    if config.setting == "aware":
        example["task"] = jax.ShapeDtypeStruct((), jnp.int32)

    def loss_fn(weights, batch):
        logits = model.apply(weights, batch["image"])
        if classes_per_task is not None and config.setting == "aware":
            return lm.losses.multi_head_cross_entropy(
                logits, batch["label"], batch["task"], classes_per_task
            )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    return Problem(
        loss_fn,
        example,
        model.apply,
        num_tasks=benchmark.num_tasks,
        rows_per_task=benchmark.rows_per_task,
        num_classes=form.num_classes,
        classes_per_task=classes_per_task,
        head_fn=head_mask,
    )


def _keys_of(seed: jax.Array) -> tuple[lm.Key, lm.Key, lm.Key]:
    """Keys of the initial weights, of the learner's start and of training."""
    init_key, learner_key, train_key = jax.random.split(jax.random.key(seed), 3)
    return init_key, learner_key, train_key


def _positions(config: RunConfig, train_key, task_key, task, epoch):
    """Which rows an epoch shows: their tasks [R] and places within those [R]."""
    num_tasks, num_rows = config.benchmark.num_tasks, config.benchmark.rows_per_task
    places = jnp.arange(num_rows)
    if methods.METHODS[config.method].mixes_tasks:
        part = task * config.hyper.epochs + epoch
        order_key = jax.random.fold_in(train_key, part // num_tasks)
        order = jax.random.permutation(order_key, num_tasks * num_rows)
        chosen = order[(part % num_tasks) * num_rows + places]
        return chosen // num_rows, chosen % num_rows
    if config.hyper.epochs > 1:  # the first shows the stream's own order
        shuffled = jax.random.permutation(jax.random.fold_in(task_key, epoch), places)
        places = jnp.where(epoch == 0, places, shuffled)
    return jnp.broadcast_to(task, places.shape), places


def _make_train_task(
    config: RunConfig, form: DataForm, learner: lm.Learner
) -> Callable[..., tuple[Any, Any]]:
    benchmark, hyper = config.benchmark, config.hyper
    batch_size, num_rows = hyper.batch_size, benchmark.rows_per_task
    num_batches = -(-num_rows // batch_size)
    padding = num_batches * batch_size - num_rows
    images_of = _make_images(benchmark, form)
    mixes = methods.METHODS[config.method].mixes_tasks

    def make_rows(shared, stream, key, tasks, rows):
        images = shared.train_images[rows]
        if mixes:
            images = jax.vmap(lambda image, m: images_of.scale(image[None], m)[0])(
                images, stream.pixel_maps[tasks]
            )
        else:
            images = images_of.scale(images, stream.pixel_maps[tasks[0]])
        if images_of.augment is not None:
            images = images_of.augment(key, images)
        labels = stream.label_maps[shared.train_labels[rows]]
        batch = {"image": images_of.normalise(images), "label": labels}
        return batch | ({"task": tasks} if config.setting == "aware" else {})

    def train_task(shared, stream, seed, state, task):
        _, _, train_key = _keys_of(seed)
        task_key = jax.random.fold_in(train_key, task)

        def run_epoch(state, epoch):
            tasks, places = _positions(config, train_key, task_key, task, epoch)
            rows = stream.rows[tasks, places]
            batches = jax.tree.map(
                lambda x: jnp.pad(x, (0, padding), mode="edge").reshape(-1, batch_size),
                {"task": tasks, "row": rows},
            )
            mask = (jnp.arange(num_rows + padding) < num_rows).reshape(-1, batch_size)

            def observe(key, state, batch, mask, remember=True):
                row_key = key
                if images_of.augment is not None:
                    row_key, key = jax.random.split(key)
                rows = make_rows(shared, stream, row_key, batch["task"], batch["row"])
                return learner.observe(key, state, rows, mask, remember=epoch == 0)

            key = task_key
            if hyper.epochs > 1:
                key = jax.random.fold_in(task_key, hyper.epochs + epoch)
            return lm.observe_stream(
                lm.Learner(learner.init, observe),
                key,
                state,
                batches,
                mask if padding else None,
            )

        if hyper.epochs == 1:
            state, info = run_epoch(state, 0)
        else:
            state, info = jax.lax.scan(run_epoch, state, jnp.arange(hyper.epochs))
        if learner.end_task is not None:
            end_key = jax.random.fold_in(task_key, 2**31 - 1)
            state = learner.end_task(end_key, state)
        return state, jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32)), info)

    return train_task


def _make_evaluate(
    config: RunConfig,
    form: DataForm,
    scores_fn: Callable[[Any, jax.Array], jax.Array],
    weights_of: Callable[[Any], lm.Params],
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    benchmark = config.benchmark
    images_of = _make_images(benchmark, form)
    chunk_size = _TEST_CHUNK_CONVOLUTIONS if benchmark.channels else _TEST_CHUNK
    is_masked = benchmark.classes_per_task is not None and config.setting == "aware"

    def evaluate(shared, stream, subject, wanted):
        num_test = stream.test_rows.shape[1]
        chunk = min(chunk_size, num_test)
        padding = -num_test % chunk

        def accuracy(inputs):
            task, pixel_map, rows, is_wanted = inputs
            rows = jnp.pad(rows, (0, padding), constant_values=-1)

            def hits(rows):
                images = images_of.scale(shared.test_images[rows], pixel_map)
                scores = scores_fn(subject, images_of.normalise(images))
                if is_masked:
                    owner = jnp.arange(scores.shape[1]) // benchmark.classes_per_task
                    scores = jnp.where((owner == task)[None, :], scores, -jnp.inf)
                labels = stream.label_maps[shared.test_labels[rows]]
                return jnp.sum((jnp.argmax(scores, axis=-1) == labels) & (rows >= 0))

            def measure():
                return jnp.sum(jax.lax.map(hits, rows.reshape(-1, chunk))) / num_test

            return jax.lax.cond(is_wanted, measure, lambda: jnp.float32(jnp.nan))

        leaves = jax.tree.leaves(weights_of(subject))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
        tasks = jnp.arange(benchmark.num_tasks)
        accuracies = jax.lax.map(
            accuracy, (tasks, stream.pixel_maps, stream.test_rows, wanted)
        )
        return jnp.where(finite, accuracies, jnp.nan), finite

    return evaluate


def make_train(config: RunConfig, form: DataForm) -> TrainFns:
    """Builds the functions that run one seed of ``config``.

    Args:
        config: what to run.
        form: sizes of the data.

    Returns:
        Functions that can be jitted and mapped over seeds.

    Raises:
        UserError: hyper-parameters that do not fit together.
    """
    benchmark, hyper = config.benchmark, config.hyper
    model = Network(
        benchmark.hidden, form.num_classes, benchmark.channels, hyper.initializer
    )
    problem = _make_problem(config, form, model)
    learner = methods.make_learner(config.method, problem, hyper)
    make_scores = methods.METHODS[config.method].make_scores

    def init_weights(seed):
        return model.init(_keys_of(seed)[0], jnp.zeros((1, *form.image_shape)))

    def init(seed):
        return learner.init(_keys_of(seed)[1], init_weights(seed))

    if make_scores is None:
        subject = lambda state: state.weights
        evaluate = _make_evaluate(config, form, model.apply, lambda weights: weights)
    else:
        subject = lambda state: state
        scores_fn = make_scores(problem, hyper)
        evaluate = _make_evaluate(config, form, scores_fn, lambda state: state.weights)
    train_task = _make_train_task(config, form, learner)
    return TrainFns(init_weights, init, train_task, subject, evaluate)
