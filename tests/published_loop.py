"""First-order La-MAML as a loop over Python lists, in numpy.

Shares no line of training code with the library and draws its own random numbers:
batches, glances, memory, inner steps and both updates are written out one by one, with
the published acceptance rule. It says what the algorithm gives on a stream of the
experiments, apart from how it is built:

    python tests/published_loop.py mnist-rotations 0 1 2 3 4
"""

import itertools
import random
import sys
from pathlib import Path

import numpy as np
import threadpoolctl


def initial_weights(rng, widths) -> list[np.ndarray]:
    """Kaiming-normal weights and zero biases, [W1, b1, W2, b2, ...]."""
    weights = []
    for fan_in, fan_out in itertools.pairwise(widths):
        scale = np.sqrt(2 / fan_in)
        weights.append((scale * rng.normal(size=(fan_in, fan_out))).astype(np.float32))
        weights.append(np.zeros(fan_out, np.float32))
    return weights


def activations(weights, images) -> tuple[list[np.ndarray], np.ndarray]:
    layers = [images]
    for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        layers.append(np.maximum(layers[-1] @ matrix + bias, 0))
    return layers, layers[-1] @ weights[-2] + weights[-1]


def gradient(weights, images, labels) -> list[np.ndarray]:
    """Gradient of the mean softmax cross-entropy."""
    layers, logits = activations(weights, images)
    error = np.exp(logits - logits.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    grads = []
    for depth in reversed(range(len(layers))):
        grads = [layers[depth].T @ error, error.sum(axis=0), *grads]
        error = (error @ weights[2 * depth].T) * (layers[depth] > 0)
    return grads


def clipped(grads, max_norm=2.0) -> list[np.ndarray]:
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads))
    return [g * np.float32(min(1, max_norm / (norm + 1e-6))) for g in grads]


def remember(memory, seen, capacity, row) -> None:
    """Stores the row that is number ``seen`` (from 1), perhaps over an older one."""
    if len(memory) < capacity:
        memory.append(row)
    else:
        slot = random.randint(0, seen)
        if slot < capacity:
            memory[slot] = row


def with_replay(memory, images, labels, size) -> tuple[np.ndarray, np.ndarray]:
    old = [random.choice(memory) for _ in range(min(size, len(memory)))]
    rows = old + list(zip(images, labels, strict=True))
    return np.stack([x for x, _ in rows]), np.array([y for _, y in rows])


def lamaml_update(
    weights, step_sizes, images, labels, query, eta
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One meta-update; the inner batches are the single rows in their order."""
    fast, num_steps = weights, np.float32(len(labels))
    travelled = [np.zeros_like(w) for w in weights]
    weight_grads = [np.zeros_like(w) for w in weights]
    rate_grads = [np.zeros_like(w) for w in weights]
    for k in range(len(labels)):
        inner = gradient(fast, images[k : k + 1], labels[k : k + 1])
        fast = [
            w - np.maximum(a, 0) * g
            for w, a, g in zip(fast, step_sizes, inner, strict=True)
        ]
        travelled = [t + g for t, g in zip(travelled, inner, strict=True)]
        for i, at_query in enumerate(gradient(fast, *query)):
            weight_grads[i] += at_query / num_steps
            rate_grads[i] -= (travelled[i] * at_query * (step_sizes[i] > 0)) / num_steps
    step_sizes = [
        a - np.float32(eta) * g
        for a, g in zip(step_sizes, clipped(rate_grads), strict=True)
    ]
    weights = [
        w - np.maximum(a, 0) * g
        for w, a, g in zip(weights, step_sizes, clipped(weight_grads), strict=True)
    ]
    return weights, step_sizes


@threadpoolctl.threadpool_limits.wrap(limits=1)  # for rows this few, eight times faster
def run(data, index, hidden, *, hyper, seed) -> tuple[float, float]:
    """Learns stream ``index`` of ``data`` with La-MAML, or with plain SGD (Online).

    ``hyper`` are hyper-parameters of the experiments; without inner steps the batch is
    descended on alone. Returns RA and LA as fractions.
    """
    random.seed(seed)
    rng = np.random.default_rng(seed)
    num_pixels = data.train_images.shape[1]
    weights = initial_weights(rng, (num_pixels, *hidden, data.num_classes))
    rate = np.float32(hyper.step_size_init or 0)
    step_sizes = [np.full_like(w, rate) for w in weights]
    memory, seen, learnt = [], 0, []

    def turned(images, task) -> np.ndarray:
        background = np.zeros((len(images), 1), images.dtype)
        padded = np.concatenate([images, background], axis=1)
        turned = padded[:, data.pixel_maps[index, task]]
        return turned.astype(np.float32) / np.float32(data.max_value)

    def accuracy(task) -> float:
        _, logits = activations(weights, turned(data.test_images, task))
        return float(np.mean(logits.argmax(axis=1) == data.test_labels))

    for task, chosen in enumerate(data.rows[index]):
        all_images = turned(data.train_images[chosen], task)
        all_labels = data.train_labels[chosen]
        for start in range(0, len(chosen), hyper.batch_size):
            images = all_images[start : start + hyper.batch_size]
            labels = all_labels[start : start + hyper.batch_size]
            for glance in range(hyper.glances):
                if hyper.inner_steps is None:
                    step = clipped(gradient(weights, images, labels))
                    rate = np.float32(hyper.learning_rate)
                    weights = [w - rate * g for w, g in zip(weights, step, strict=True)]
                    continue
                order = rng.permutation(len(labels))
                images, labels = images[order], labels[order]
                query = with_replay(memory, images, labels, hyper.replay_size)
                eta = hyper.step_size_learning_rate
                weights, step_sizes = lamaml_update(
                    weights, step_sizes, images, labels, query, eta
                )
                for row in zip(images, labels, strict=True) if glance == 0 else ():
                    seen += 1
                    remember(memory, seen, hyper.capacity, row)
        learnt.append(accuracy(task))
    final = [accuracy(task) for task in range(len(learnt))]
    return float(np.mean(final)), float(np.mean(learnt))


def main(name, seeds) -> None:
    from experiments.config import benchmarks, presets

    benchmark = benchmarks.get_benchmark(name)
    data = benchmarks.load(benchmark, seeds)
    methods = ["lamaml", "online"]
    for method, hyper in zip(methods, presets.resolve(name, methods), strict=True):
        results = [
            run(data, i, benchmark.hidden, hyper=hyper, seed=seed)
            for i, seed in enumerate(seeds)
        ]
        retained, learnt = 100 * np.transpose(results)
        print(f"{method}: RA {retained.round(1)}, mean {retained.mean():.1f}", end="; ")
        print(f"LA mean {learnt.mean():.1f}", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(sys.argv[1], [int(seed) for seed in sys.argv[2:]])
