"""La-MAML in plain PyTorch, to be timed beside this library.

The weights are one vector [P], and so are the step sizes: an update of all leaves is
one operation, and no norm, sum or index waits for the device.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from experiments.schema.hyperparameters import Hyperparameters

Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(weights [P] or [K, P], images, labels) -> gradient``, of the mean loss."""
Update = Callable[..., tuple[Any, Any]]
"""``(weights, step_sizes, support, query) -> weights, step_sizes``."""


def cross_entropy(
    widths: Sequence[int], weights: Tensor, images: Tensor, labels: Tensor
) -> Tensor:
    """Mean cross-entropy of a perceptron, in nats.

    Args:
        widths: inputs, hidden layers and outputs.
        weights: [P], matrix [in, out] and bias of one layer after the other; or those
            of K networks, [K, P].
        images: [B, in], for K networks [K, B, in].
        labels: [B], for K networks [K, B].
    """
    layers = list(itertools.pairwise(widths))
    sizes = [size for fan_in, out in layers for size in (fan_in * out, out)]
    parts = weights.split(sizes, dim=-1)
    affine = torch.addmm if weights.ndim == 1 else torch.baddbmm
    x = images
    for depth, layer in enumerate(layers):
        matrix = parts[2 * depth].unflatten(-1, layer)
        x = affine(parts[2 * depth + 1].unsqueeze(-2), x, matrix)
        if depth < len(layers) - 1:
            x = functional.relu(x)
    return functional.cross_entropy(x.flatten(0, -2), labels.flatten())


def make_gradient(widths: Sequence[int], *, traced: bool = False) -> Gradient:
    """Builds the gradient of ``cross_entropy``; ``torch.compile`` can trace either."""
    loss = functools.partial(cross_entropy, widths)
    if traced:
        return torch.func.grad(loss)

    def gradient(weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        weights = weights.detach().requires_grad_()
        return torch.autograd.grad(loss(weights, images, labels), weights)[0]

    return gradient


def clipped(grads: Tensor, max_norm: float) -> Tensor:
    """Scales a gradient whose norm is above ``max_norm``."""
    norm = torch.linalg.vector_norm(grads)
    return grads * (max_norm / (norm + 1e-6)).clamp(max=1)


def looped_sums(
    gradient: Gradient,
    weights: Tensor,
    rates: Tensor,
    support: Sequence[Tensor],
    query: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Inner steps, each followed by the query gradient at its fast weights.

    Returns:
        The sums over steps of q_j, and of D_j * q_j with D_j = d_1 + ... + d_j.
    """
    fast, travelled = weights.clone(), torch.zeros_like(weights)
    weight_sum, rate_sum = torch.zeros_like(weights), torch.zeros_like(weights)
    for images, labels in zip(*support, strict=True):
        direction = gradient(fast, images, labels)
        fast.addcmul_(rates, direction, value=-1)
        travelled += direction
        at_query = gradient(fast, *query)
        weight_sum += at_query
        rate_sum.addcmul_(travelled, at_query)
    return weight_sum, rate_sum


def batched_sums(
    gradient: Gradient,
    weights: Tensor,
    rates: Tensor,
    support: Sequence[Tensor],
    query: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The same sums, with the query gradients at all fast weights taken at once."""
    fast, fasts, directions = weights, [], []
    for images, labels in zip(*support, strict=True):
        directions.append(gradient(fast, images, labels))
        fast = torch.addcmul(fast, rates, directions[-1], value=-1)
        fasts.append(fast)
    num_steps = len(fasts)
    images, labels = (x.expand(num_steps, *x.shape) for x in query)
    # The mean over networks too, of which each gradient has one share
    at_query = num_steps * gradient(torch.stack(fasts), images, labels)
    travelled = torch.stack(directions).cumsum(0)
    return at_query.sum(0), (travelled * at_query).sum(0)


def make_update(gradient: Gradient, hyper: Hyperparameters, sums=looped_sums) -> Update:
    """Builds La-MAML's meta-update, first order, with the mean meta-loss.

    Args:
        gradient: from ``make_gradient``.
        hyper: rates and bounds; rectified and without a bound on inner gradients.
        sums: ``looped_sums`` or ``batched_sums``.

    Returns:
        Function of weights [P], step sizes [P], the support's images [K, S, in] and
        labels [K, S], and the query's [Q, in] and [Q].
    """
    eta, max_norm = hyper.step_size_learning_rate, hyper.max_grad_norm
    assert eta is not None, "La-MAML has one"

    def update(
        weights: Tensor,
        step_sizes: Tensor,
        support: Sequence[Tensor],
        query: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        c = 1 / len(support[0])
        rates = step_sizes.relu()
        weight_sum, rate_sum = sums(gradient, weights, rates, support, query)
        weight_grads = c * weight_sum
        rate_grads = -c * rate_sum * (step_sizes > 0)
        step_sizes = step_sizes - eta * clipped(rate_grads, max_norm)
        weights = weights - step_sizes.relu() * clipped(weight_grads, max_norm)
        return weights, step_sizes

    return update


class Memory(NamedTuple):
    """A reservoir on the device; the count of rows offered is the host's."""

    images: Tensor
    """[capacity, ...]."""
    labels: Tensor
    """[capacity]."""


@dataclasses.dataclass
class Learner:
    """What a run changes as it goes."""

    weights: Any
    """As the update takes them, and so are the step sizes."""
    step_sizes: Any
    memory: Memory
    generator: torch.Generator
    """Of shuffles and replayed rows, on the device."""
    random: random.Random
    """Of the reservoir's slots, on the host."""
    seen: int = 0
    """Rows offered to the memory."""


def start(
    weights: Any,
    step_sizes: Any,
    hyper: Hyperparameters,
    shape: Sequence[int],
    device: str,
) -> Learner:
    """Returns a learner with an empty memory of images of that shape."""
    assert hyper.capacity is not None, "La-MAML has one"
    memory = Memory(
        torch.zeros(hyper.capacity, *shape, device=device),
        torch.zeros(hyper.capacity, dtype=torch.int64, device=device),
    )
    generator = torch.Generator(device).manual_seed(0)
    return Learner(weights, step_sizes, memory, generator, random.Random(0))


def remember(learner: Learner, images: Tensor, labels: Tensor) -> None:
    """Offers rows to the reservoir, which keeps the n-th with p = capacity / n."""
    capacity = len(learner.memory.labels)
    for image, label in zip(images, labels, strict=True):
        slot = learner.seen
        learner.seen += 1
        if slot >= capacity:
            slot = learner.random.randrange(learner.seen)
        if slot < capacity:
            learner.memory.images[slot] = image
            learner.memory.labels[slot] = label


def _sizes(hyper: Hyperparameters) -> tuple[int, int, int]:
    """Inner steps, capacity and replayed rows, all of which La-MAML has."""
    sizes = hyper.inner_steps, hyper.capacity, hyper.replay_size
    assert None not in sizes
    return cast(tuple[int, int, int], sizes)


def train_rows(
    learner: Learner,
    update: Update,
    hyper: Hyperparameters,
    images: Tensor,
    labels: Tensor,
) -> int:
    """Learns rows of the stream in their order.

    Args:
        learner: changed in place.
        update: from ``make_update``.
        hyper: sizes.
        images: [N, B, ...], N batches on the device.
        labels: [N, B].

    Returns:
        Meta-updates done.
    """
    inner_steps, capacity, replay_size = _sizes(hyper)
    draws: dict[str, Any] = {"generator": learner.generator, "device": images.device}
    for rows in zip(images, labels, strict=True):
        num_rows = len(rows[1])
        for glance in range(hyper.glances):
            order = torch.randperm(num_rows, **draws)
            shuffled = [x[order] for x in rows]
            support = [x.unflatten(0, (inner_steps, -1)) for x in shuffled]
            stored = min(learner.seen, capacity)
            query = shuffled
            if stored:
                size = (min(replay_size, stored),)
                picked = torch.randint(stored, size, **draws)
                pairs = zip(learner.memory, shuffled, strict=True)
                query = [torch.cat([old[picked], new]) for old, new in pairs]
            learner.weights, learner.step_sizes = update(
                learner.weights, learner.step_sizes, support, query
            )
            if glance == 0:
                remember(learner, *shuffled)
    return len(images) * hyper.glances
