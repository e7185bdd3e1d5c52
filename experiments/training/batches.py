"""How rows of a stream become batches, inside the compiled program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments import methods
from experiments.config import benchmarks
from experiments.config.run_config import RunConfig, batches_per_task
from experiments.data.augmentation import augment, augment_each, keys_by_content
from experiments.data.streams import apply_pixel_map
from experiments.training.inputs import DataForm, Own, Shared


class Images(NamedTuple):
    """How stored images become the network's inputs."""

    place: Callable[[jax.Array, jax.Array], jax.Array]
    """``(images [B, ...] as stored, pixel_map) -> [B, ...]`` of their dtype."""
    scale: Callable[[jax.Array, jax.Array], jax.Array]
    """``(images [B, ...] as stored, pixel_map) -> [B, ...]``, uint8 in [0, 1]."""
    augment: Callable[[lm.Key, jax.Array], jax.Array] | None
    normalise: Callable[[jax.Array], jax.Array]
    prepare: Callable[[lm.Key, jax.Array], jax.Array]
    """``(key, images as ``place`` leaves them)``: all that is left to do, changes drawn
    from the key and from each image."""


def make_images(benchmark: benchmarks.Benchmark, form: DataForm) -> Images:
    """Builds the steps from stored pixels to inputs that a benchmark asks for."""

    def place(images: jax.Array, pixel_map: jax.Array) -> jax.Array:
        if pixel_map.shape[0]:
            flat = images.reshape(images.shape[0], -1)
            images = apply_pixel_map(flat, pixel_map).reshape(images.shape)
        return images

    def scale(images: jax.Array, pixel_map: jax.Array) -> jax.Array:
        return place(images, pixel_map).astype(jnp.float32) / form.max_value

    def normalise(images: jax.Array) -> jax.Array:
        if not benchmark.mean:
            return images
        before = (None,) * (images.ndim - 1)
        mean, std = (
            jnp.asarray(x, jnp.float32)[*before, :]
            for x in (benchmark.mean, benchmark.std)
        )
        return (images - mean) / std

    names = benchmark.augment
    changes = (lambda key, images: augment(key, images, names)) if names else None

    def prepare(key: lm.Key, images: jax.Array) -> jax.Array:
        scaled = images.astype(jnp.float32) / form.max_value
        if names:
            scaled = augment_each(keys_by_content(key, images), scaled, names)
        return normalise(scaled)

    return Images(place, scale, changes, normalise, prepare)


def labels_of(own: Own, labels: jax.Array) -> jax.Array:
    """Returns labels as a seed's stream numbers them; real targets as they are."""
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return labels
    return own.stream.label_maps[labels]


def keys_of(seed: jax.Array) -> tuple[lm.Key, lm.Key, lm.Key]:
    """Keys of the initial weights, of the learner's start and of training."""
    init_key, learner_key, train_key = jax.random.split(jax.random.key(seed), 3)
    return init_key, learner_key, train_key


def task_key(seed: jax.Array, task: jax.Array) -> lm.Key:
    """Key of a task's training."""
    return jax.random.fold_in(keys_of(seed)[2], task)


def positions(
    config: RunConfig, seed: jax.Array, task: jax.Array, epoch: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Which rows an epoch shows: their tasks [R] and places within those [R]."""
    num_tasks, num_rows = config.benchmark.num_tasks, config.benchmark.rows_per_task
    places = jnp.arange(num_rows)
    if methods.METHODS[config.method].mixes_tasks:
        part = task * config.hyper.epochs + epoch
        order_key = jax.random.fold_in(keys_of(seed)[2], part // num_tasks)
        order = jax.random.permutation(order_key, num_tasks * num_rows)
        chosen = order[(part % num_tasks) * num_rows + places]
        return chosen // num_rows, chosen % num_rows
    if config.hyper.epochs > 1:  # the first shows the stream's own order
        order_key = jax.random.fold_in(task_key(seed, task), epoch)
        shuffled = jax.random.permutation(order_key, places)
        places = jnp.where(epoch == 0, places, shuffled)
    return jnp.broadcast_to(task, places.shape), places


class Show(NamedTuple):
    """How rows of the stream reach a learner."""

    epoch: Callable[..., tuple[dict[str, jax.Array], jax.Array]]
    """``epoch(shared, own, epoch)``: places of the rows of all batches of the task at
    hand, leaves [N, B], and their mask [N, B]."""
    rows: Callable[..., tuple[lm.Batch, lm.Key]]
    """``rows(shared, own, key, places)``: one batch, and a key not used for it."""


def make_show(config: RunConfig, form: DataForm) -> Show:
    """Builds the functions that show a run its rows."""
    num_rows = config.benchmark.rows_per_task
    batch_size = config.hyper.batch_size
    padding = batches_per_task(config) * batch_size - num_rows
    images_of = make_images(config.benchmark, form)
    mixes = methods.METHODS[config.method].mixes_tasks
    is_raw = config.benchmark.raw_memory

    def epoch(
        shared: Shared, own: Own, epoch: int | jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        tasks, places = positions(config, own.seed, shared.task, epoch)
        shown = {"task": tasks, "row": own.stream.rows[tasks, places]}
        if own.stream.owners.size:
            shown["task"] = own.stream.owners[tasks, places]
        batches = jax.tree.map(
            lambda x: jnp.pad(x, (0, padding), mode="edge").reshape(-1, batch_size),
            shown,
        )
        mask = jnp.arange(num_rows + padding) < num_rows
        return batches, mask.reshape(-1, batch_size)

    def rows(
        shared: Shared, own: Own, key: lm.Key, places: dict[str, jax.Array]
    ) -> tuple[lm.Batch, lm.Key]:
        tasks, stream = places["task"], own.stream
        images = shared.train_images[places["row"]]
        take = images_of.place if is_raw else images_of.scale
        if mixes or stream.owners.size:
            images = jax.vmap(lambda image, m: take(image[None], m)[0])(
                images, stream.pixel_maps[tasks]
            )
        else:
            images = take(images, stream.pixel_maps[tasks[0]])
        if images_of.augment is not None and not is_raw:
            augment_key, key = jax.random.split(key)
            images = images_of.augment(augment_key, images)
        labels = labels_of(own, shared.train_labels[places["row"]])
        shown = images if is_raw else images_of.normalise(images)
        batch = {"image": shown, "label": labels}
        return batch | ({"task": tasks} if config.is_aware else {}), key

    return Show(epoch, rows)
