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

_UPDATES_PER_PROBE = 25
_ALIGNMENT_ROWS = 100
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
    train_part: Callable[..., tuple[Any, Any]]
    """``train_part(shared, stream, seed, state, task, first) -> state, info``: the
    ``batches_per_part`` batches from ``first`` on of a task's first epoch; all parts in
    order are ``train_task`` of one epoch."""
    look_ahead: Callable[..., lm.Params]
    """``look_ahead(shared, stream, seed, state, task, index) -> fast_weights`` after
    the inner steps on batch ``index``, for methods that take inner steps."""
    alignment: Callable[..., jax.Array]
    """``alignment(shared, stream, weights) -> [T, T]``, cosines between the gradients
    of the tasks' losses."""


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


def _task_key(seed: jax.Array, task: jax.Array) -> lm.Key:
    return jax.random.fold_in(_keys_of(seed)[2], task)


def _positions(config: RunConfig, seed, task, epoch) -> tuple[jax.Array, jax.Array]:
    """Which rows an epoch shows: their tasks [R] and places within those [R]."""
    num_tasks, num_rows = config.benchmark.num_tasks, config.benchmark.rows_per_task
    places = jnp.arange(num_rows)
    if methods.METHODS[config.method].mixes_tasks:
        part = task * config.hyper.epochs + epoch
        order_key = jax.random.fold_in(_keys_of(seed)[2], part // num_tasks)
        order = jax.random.permutation(order_key, num_tasks * num_rows)
        chosen = order[(part % num_tasks) * num_rows + places]
        return chosen // num_rows, chosen % num_rows
    if config.hyper.epochs > 1:  # the first shows the stream's own order
        order_key = jax.random.fold_in(_task_key(seed, task), epoch)
        shuffled = jax.random.permutation(order_key, places)
        places = jnp.where(epoch == 0, places, shuffled)
    return jnp.broadcast_to(task, places.shape), places


class _Show(NamedTuple):
    """How rows of the stream reach a learner."""

    epoch: Callable[..., tuple[dict[str, jax.Array], jax.Array]]
    """``epoch(stream, seed, task, epoch)``: places of the rows of all batches, leaves
    [N, B], and their mask [N, B]."""
    rows: Callable[..., tuple[lm.Batch, lm.Key]]
    """``rows(shared, stream, key, places)``: one batch, and a key not used for it."""


def _make_show(config: RunConfig, form: DataForm) -> _Show:
    num_rows = config.benchmark.rows_per_task
    batch_size = config.hyper.batch_size
    padding = -num_rows % batch_size
    images_of = _make_images(config.benchmark, form)
    mixes = methods.METHODS[config.method].mixes_tasks

    def epoch(stream, seed, task, epoch):
        tasks, places = _positions(config, seed, task, epoch)
        batches = jax.tree.map(
            lambda x: jnp.pad(x, (0, padding), mode="edge").reshape(-1, batch_size),
            {"task": tasks, "row": stream.rows[tasks, places]},
        )
        mask = jnp.arange(num_rows + padding) < num_rows
        return batches, mask.reshape(-1, batch_size)

    def rows(shared, stream, key, places):
        tasks = places["task"]
        images = shared.train_images[places["row"]]
        if mixes:
            images = jax.vmap(lambda image, m: images_of.scale(image[None], m)[0])(
                images, stream.pixel_maps[tasks]
            )
        else:
            images = images_of.scale(images, stream.pixel_maps[tasks[0]])
        if images_of.augment is not None:
            augment_key, key = jax.random.split(key)
            images = images_of.augment(augment_key, images)
        labels = stream.label_maps[shared.train_labels[places["row"]]]
        batch = {"image": images_of.normalise(images), "label": labels}
        return batch | ({"task": tasks} if config.setting == "aware" else {}), key

    return _Show(epoch, rows)


def _make_train_fns(
    config: RunConfig, form: DataForm, learner: lm.Learner
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Builds ``train_task`` and ``train_part`` of ``TrainFns``."""
    hyper = config.hyper
    show = _make_show(config, form)
    has_padding = config.benchmark.rows_per_task % hyper.batch_size > 0

    def run(shared, stream, state, key, batches, mask, epoch, first=0):
        def observe(key, state, places, mask, remember=True):
            del remember
            rows, key = show.rows(shared, stream, key, places)
            return learner.observe(key, state, rows, mask, remember=epoch == 0)

        shown = lm.Learner(learner.init, observe)
        mask = mask if has_padding else None
        return lm.observe_stream(shown, key, state, batches, mask, first)

    def train_task(shared, stream, seed, state, task):
        task_key = _task_key(seed, task)

        def run_epoch(state, epoch):
            key = task_key
            if hyper.epochs > 1:
                key = jax.random.fold_in(task_key, hyper.epochs + epoch)
            shown = show.epoch(stream, seed, task, epoch)
            return run(shared, stream, state, key, *shown, epoch)

        if hyper.epochs == 1:
            state, info = run_epoch(state, 0)
        else:
            state, info = jax.lax.scan(run_epoch, state, jnp.arange(hyper.epochs))
        if learner.end_task is not None:
            end_key = jax.random.fold_in(task_key, 2**31 - 1)
            state = learner.end_task(end_key, state)
        return state, jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32)), info)

    def train_part(shared, stream, seed, state, task, first):
        places, mask = show.epoch(stream, seed, task, 0)
        places, mask = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, first, batches_per_part(config)),
            (places, mask),
        )
        key = _task_key(seed, task)
        state, info = run(shared, stream, state, key, places, mask, 0, first)
        return state, jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32)), info)

    return train_task, train_part


def _make_look_ahead(
    config: RunConfig, form: DataForm, problem: Problem
) -> Callable[..., lm.Params]:
    """Builds ``look_ahead`` of ``TrainFns``."""
    hyper = config.hyper
    show = _make_show(config, form)

    def look_ahead(shared, stream, seed, state, task, index):
        places, mask = show.epoch(stream, seed, task, 0)
        places, mask = jax.tree.map(lambda x: x[index], (places, mask))
        key = jax.random.fold_in(_task_key(seed, task), 2**30 + index)
        rows, key = show.rows(shared, stream, key, places)
        support, support_mask, _, _ = lm.split_support(
            key, rows, mask, hyper.inner_steps
        )
        fast_weights, _ = lm.adapt(
            problem.loss_fn,
            state.weights,
            step_sizes_of(state),
            support,
            support_mask,
            rectify=hyper.rectify,
            clip=hyper.inner_clip,
            first_order=True,
            adapt_mask=problem.head_fn if config.method == "oml" else None,
        )
        return fast_weights

    return look_ahead


def _make_alignment(
    config: RunConfig, form: DataForm, problem: Problem
) -> Callable[..., jax.Array]:
    """Builds ``alignment`` of ``TrainFns``, on the first training rows of each task."""
    images_of = _make_images(config.benchmark, form)
    num_tasks = config.benchmark.num_tasks
    num_rows = min(_ALIGNMENT_ROWS, config.benchmark.rows_per_task)

    def alignment(shared, stream, weights):
        def one(inputs):
            task, rows, pixel_map = inputs
            images = images_of.scale(shared.train_images[rows], pixel_map)
            labels = stream.label_maps[shared.train_labels[rows]]
            batch = {"image": images_of.normalise(images), "label": labels}
            return batch | {"task": jnp.full(num_rows, task)}

        rows = stream.rows[:, :num_rows]
        tasks = jnp.arange(num_tasks, dtype=jnp.int32)
        batches = jax.lax.map(one, (tasks, rows, stream.pixel_maps))
        return lm.diagnostics.gradient_alignment(problem.loss_fn, weights, batches)

    return alignment


def step_sizes_of(state: Any) -> lm.Params | None:
    """Returns the step sizes in a learner's state, or None if it has none."""
    return optax.tree.get(state, "step_sizes", None)


def batches_per_part(config: RunConfig) -> int:
    """Batches between two probes: about 25 meta-updates, a divisor of a task's."""
    num_batches = -(-config.benchmark.rows_per_task // config.hyper.batch_size)
    wanted = max(1, _UPDATES_PER_PROBE // config.hyper.glances)
    return max(n for n in range(1, wanted + 1) if num_batches % n == 0)


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
    train_task, train_part = _make_train_fns(config, form, learner)
    return TrainFns(
        init_weights,
        init,
        train_task,
        subject,
        evaluate,
        train_part,
        _make_look_ahead(config, form, problem),
        _make_alignment(config, form, problem),
    )
