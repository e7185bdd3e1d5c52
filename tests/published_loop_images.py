"""Second-order La-MAML, C-MAML and ER on images with a head per task, as a plain loop.

Shares no line of training code with the library and draws its own random numbers: the
memory is a Python list, batches, glances, shuffles and changes of images are drawn with
numpy, and the meta-loss is written down as it is defined and differentiated as a whole.
It says what the algorithm gives on a stream of the experiments, apart from how that is
built. The second argument is the number of tasks to learn:

    python tests/published_loop_images.py cifar100-split 1 cmaml 0 1 2 3
"""

import functools
import itertools
import random
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from published_loop import clipped, remember, with_replay


def initial_weights(rng, sizes) -> list[np.ndarray]:
    """Kaiming-normal weights and zero biases, [W1, b1, W2, b2, ...]."""
    weights = []
    for size in sizes:
        scale = np.sqrt(2 / np.prod(size[:-1]))
        weights.append((scale * rng.normal(size=size)).astype(np.float32))
        weights.append(np.zeros(size[-1], np.float32))
    return weights


def sizes_of(side, channels, hidden, num_classes) -> list[tuple[int, ...]]:
    """Shapes of the layers: 3x3 convolutions that halve the side, then dense ones."""
    widths = (3, *channels)
    side //= 2 ** len(channels)
    dense = (side * side * widths[-1], *hidden, num_classes)
    convolutions = [(3, 3, *pair) for pair in itertools.pairwise(widths)]
    return convolutions + list(itertools.pairwise(dense))


def logits_of(weights, images) -> jax.Array:
    x = images
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    for number, (matrix, bias) in enumerate(layers, 1):
        if matrix.ndim == 4:  # stride 2, a border of one zero: one product over patches
            height, width = x.shape[1:3]
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            taps = [
                x[:, i : i + height : 2, j : j + width : 2]
                for i in range(3)
                for j in range(3)
            ]
            patches = jnp.stack(taps, axis=3)
            x = jnp.einsum(
                "bhwtc,tcd->bhwd", patches, matrix.reshape(9, *matrix.shape[2:])
            )
            x = x + bias[None, None, None, :]
        else:
            x = x.reshape(len(x), -1) @ matrix + bias[None, :]
        if number < len(layers):
            x = jax.nn.relu(x)
    return x


def loss_of(weights, images, labels, per_task) -> jax.Array:
    """Mean over rows of the cross-entropy over the outputs of the row's own task.

    ``labels`` holds the class and the task of every row.
    """
    columns = per_task * labels[:, 1:] + jnp.arange(per_task)[None, :]
    own = jnp.take_along_axis(logits_of(weights, images), columns, axis=1)
    chosen = labels[:, :1] - columns[:, :1]
    log_p = own - jax.scipy.special.logsumexp(own, axis=1, keepdims=True)
    return -jnp.take_along_axis(log_p, chosen, axis=1).mean()


def meta_loss(weights, step_sizes, support, query, inner_clip, per_task) -> jax.Array:
    """Mean query loss after each inner step; ``support`` is a list of inner batches."""
    fast, losses = weights, []
    for batch in support:
        inner = jax.grad(loss_of)(fast, *batch, per_task=per_task)
        fast = [
            w - a * jnp.clip(g, -inner_clip, inner_clip)
            for w, a, g in zip(fast, step_sizes, inner, strict=True)
        ]
        losses.append(loss_of(fast, *query, per_task=per_task))
    return sum(losses, jnp.zeros(())) / len(losses)


GRADIENT = jax.jit(jax.grad(loss_of), static_argnames="per_task")
META_GRADIENT = jax.jit(
    jax.grad(meta_loss, argnums=(0, 1)), static_argnames=("inner_clip", "per_task")
)


def changed(rng, image) -> np.ndarray:
    """One training image in [0, 1], cropped, perhaps mirrored, and made brighter."""
    height, width = image.shape[:2]
    top, left = rng.integers(0, 9, size=2)
    image = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    return image[top : top + height, left : left + width][:, :: rng.choice([1, -1])]


def brightened(rng, image) -> np.ndarray:
    return np.clip(image * np.float32(rng.uniform(1 - 63 / 255, 1 + 63 / 255)), 0, 1)


def offer(memory, seen, capacity, rows) -> int:
    """Offers rows to the memory; returns how many it has been offered by then."""
    for row in rows:
        seen += 1
        remember(memory, seen, capacity, row)
    return seen


def run(data, index, benchmark, num_tasks, *, hyper, seed) -> list[list[float]]:
    """Learns the first tasks of stream ``index`` of ``data``.

    ``hyper`` are hyper-parameters of the experiments. Without a learning rate of the
    step sizes they stay as they are, and without one of the weights these move at the
    step sizes. Without inner steps it is ER, whose memory is offered a batch after all
    glances. Returns the accuracy on every task after every task, as fractions.
    """
    random.seed(seed)
    rng = np.random.default_rng(seed)
    side, per_task = data.train_images.shape[1], benchmark.classes_per_task
    weights = initial_weights(
        rng, sizes_of(side, benchmark.channels, benchmark.hidden, data.num_classes)
    )
    is_er = hyper.inner_steps is None
    step_sizes = (
        [] if is_er else [np.full_like(w, hyper.step_size_init) for w in weights]
    )
    mean, std = np.float32(benchmark.mean), np.float32(benchmark.std)
    gradient = functools.partial(
        META_GRADIENT, inner_clip=hyper.inner_clip, per_task=per_task
    )
    memory, seen, accuracies = [], 0, []

    def shown(rows, task) -> tuple[np.ndarray, np.ndarray]:
        images = data.train_images[rows].astype(np.float32) / np.float32(data.max_value)
        images = np.stack([changed(rng, image) for image in images])
        if "brightness" in benchmark.augment:
            images = np.stack([brightened(rng, image) for image in images])
        labels = data.label_maps[index, data.train_labels[rows]]
        labels = np.stack([labels, np.full_like(labels, task)], axis=1)
        return (images - mean) / std, labels

    def accuracy(task) -> float:
        rows = data.test_rows[index, task]
        images = data.test_images[rows].astype(np.float32) / np.float32(data.max_value)
        first = per_task * task
        own = logits_of(weights, (images - mean) / std)[:, first : first + per_task]
        labels = data.label_maps[index, data.test_labels[rows]]
        return float(np.mean(first + np.argmax(own, axis=1) == labels))

    for task in range(num_tasks):
        for rows in data.rows[index, task].reshape(-1, hyper.batch_size):
            images, labels = shown(rows, task)
            for glance in range(hyper.glances):
                order = rng.permutation(len(labels))
                images, labels = images[order], labels[order]
                query = with_replay(memory, images, labels, hyper.replay_size)
                if glance == (hyper.glances - 1 if is_er else 0):
                    offered = list(zip(images, labels, strict=True))
                if is_er:
                    grads = [np.asarray(g) for g in GRADIENT(weights, *query, per_task)]
                    grads = clipped(grads, hyper.max_grad_norm)
                    rate = np.float32(hyper.learning_rate)
                    weights = [
                        w - rate * g for w, g in zip(weights, grads, strict=True)
                    ]
                    continue
                parts = np.split(np.arange(len(labels)), hyper.inner_steps)
                support = [(images[part], labels[part]) for part in parts]
                grads, rate_grads = gradient(weights, step_sizes, support, query)
                grads = clipped([np.asarray(g) for g in grads], hyper.max_grad_norm)
                if hyper.step_size_learning_rate is not None:
                    eta = np.float32(hyper.step_size_learning_rate)
                    rate_grads = [np.asarray(g) for g in rate_grads]
                    rate_grads = clipped(rate_grads, hyper.max_grad_norm)
                    step_sizes = [
                        a - eta * g for a, g in zip(step_sizes, rate_grads, strict=True)
                    ]
                if hyper.learning_rate is not None:
                    rates = [np.float32(hyper.learning_rate)] * len(weights)
                else:
                    rates = [np.maximum(a, 0) for a in step_sizes]
                weights = [
                    w - a * g for w, a, g in zip(weights, rates, grads, strict=True)
                ]
                if glance == 0:
                    seen = offer(memory, seen, hyper.capacity, offered)
            if is_er:
                seen = offer(memory, seen, hyper.capacity, offered)
        accuracies.append([accuracy(t) for t in range(task + 1)])
    return accuracies


def main(name, num_tasks, method, seeds) -> None:
    from experiments.config import benchmarks, presets

    benchmark = benchmarks.get_benchmark(name)
    for seed in seeds:
        source = benchmarks.sources.load_source(benchmark.source)
        own = benchmarks.with_tasks_of(benchmark, source.num_classes)
        data = benchmarks.draw(own, source, [seed])
        (hyper,) = presets.resolve(name, [method])
        start = time.process_time()
        results = run(data, 0, own, num_tasks, hyper=hyper, seed=seed)
        text = "; ".join(" ".join(f"{a:.3f}" for a in row) for row in results)
        took = time.process_time() - start
        print(f"{method} seed {seed}: {text}  ({took:.0f} CPU s)", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    name, num_tasks, method, *seeds = sys.argv[1:]
    main(name, int(num_tasks), method, [int(seed) for seed in seeds])
