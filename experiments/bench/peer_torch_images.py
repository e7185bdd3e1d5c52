"""La-MAML's second order on images in plain PyTorch, to be timed beside this library.

The meta-loss is differentiated as it is defined, by ``torch.autograd``, which keeps
every activation and so evaluates nothing twice.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from experiments.bench.peer_torch import Update, clipped
from experiments.schema.hyperparameters import Hyperparameters

Weights = Sequence[Tensor]
"""Kernel [D, C, 3, 3] and bias of each convolution, then matrix [in, out] and bias of
each dense layer."""
Loss = Callable[[Weights, Tensor, Tensor], Tensor]
"""``(weights, images [B, H, W, C], labels [B]) -> mean loss``, nats."""


class Sizes(NamedTuple):
    """What of a network and its heads its weights do not tell."""

    num_convolutions: int
    classes_per_task: int


def multi_head_loss(
    sizes: Sizes, weights: Weights, images: Tensor, labels: Tensor, channels_last: bool
) -> Tensor:
    """Mean cross-entropy of each row over the outputs of its own task, in nats.

    Args:
        sizes: of the network; task t owns the classes from ``t * classes_per_task``.
        weights: of all layers.
        images: [B, H, W, C].
        labels: [B].
        channels_last: how activations lie in memory; the numbers are the same.
    """
    x = images.permute(0, 3, 1, 2)
    if not channels_last:
        x = x.contiguous()
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    for kernel, bias in layers[: sizes.num_convolutions]:
        x = functional.relu(functional.conv2d(x, kernel, bias, stride=2, padding=1))
    x = x.permute(0, 2, 3, 1).flatten(1)
    *hidden, head = layers[sizes.num_convolutions :]
    for matrix, bias in hidden:
        x = functional.relu(torch.addmm(bias, x, matrix))
    logits = torch.addmm(head[1], x, head[0])
    heads = logits.unflatten(-1, (-1, sizes.classes_per_task))
    task = (labels // sizes.classes_per_task)[:, None, None]
    own = torch.take_along_dim(heads, task, 1).squeeze(1)
    return functional.cross_entropy(own, labels % sizes.classes_per_task)


def make_loss(sizes: Sizes, *, channels_last: bool) -> Loss:
    """Binds ``multi_head_loss`` to a network."""
    return functools.partial(multi_head_loss, sizes, channels_last=channels_last)


def _meta_loss(loss, gradient, clip, weights, step_sizes, support, query) -> Tensor:
    """The query loss at w_1 ... w_K on average."""
    fast, total = weights, torch.zeros((), device=query[0].device)
    for images, labels in zip(*support, strict=True):
        grads = gradient(fast, images, labels)
        steps = zip(fast, step_sizes, grads, strict=True)
        fast = tuple(w - a * g.clamp(-clip, clip) for w, a, g in steps)
        total = total + loss(fast, *query)
    return total / len(support[0])


def make_update(loss: Loss, hyper: Hyperparameters, *, traced: bool = False) -> Update:
    """Builds La-MAML's meta-update, second order, with the mean meta-loss.

    Args:
        loss: from ``make_loss``.
        hyper: rates and bounds; not rectified, with a bound on inner gradients.
        traced: by ``torch.func``, which ``torch.compile`` can follow through two
            derivatives, instead of ``torch.autograd``.

    Returns:
        Function of weights and step sizes (a tuple of tensors each), the support's
        images [K, S, H, W, C] and labels [K, S], and the query's.
    """
    eta, max_norm = hyper.step_size_learning_rate, hyper.max_grad_norm
    assert eta is not None, "La-MAML has one"

    def gradient(weights: Weights, images: Tensor, labels: Tensor) -> Weights:
        value = loss(weights, images, labels)
        return torch.autograd.grad(value, weights, create_graph=True)

    def meta_gradient(
        weights: Weights, step_sizes: Weights, support: Any, query: Any
    ) -> tuple[Weights, Weights]:
        weights, step_sizes = (
            tuple(x.detach().requires_grad_() for x in xs)
            for xs in (weights, step_sizes)
        )
        value = _meta_loss(
            loss, gradient, hyper.inner_clip, weights, step_sizes, support, query
        )
        grads = torch.autograd.grad(value, [*weights, *step_sizes])
        return grads[: len(weights)], grads[len(weights) :]

    if traced:
        meta_loss = functools.partial(
            _meta_loss, loss, torch.func.grad(loss), hyper.inner_clip
        )
        meta_gradient = torch.func.grad(meta_loss, argnums=(0, 1))

    def bounded(grads: Weights) -> Weights:
        flat = torch.cat([g.flatten() for g in grads])
        parts = clipped(flat, max_norm).split([g.numel() for g in grads])
        return [p.view_as(g) for p, g in zip(parts, grads, strict=True)]

    def update(
        weights: Weights, step_sizes: Weights, support: Any, query: Any
    ) -> tuple[Weights, Weights]:
        grads = map(bounded, meta_gradient(weights, step_sizes, support, query))
        weight_grads, rate_grads = grads
        with torch.no_grad():
            step_sizes = tuple(
                a - eta * g for a, g in zip(step_sizes, rate_grads, strict=True)
            )
            moves = zip(weights, step_sizes, weight_grads, strict=True)
            weights = tuple(w - a.relu() * g for w, a, g in moves)
        return weights, step_sizes

    return update
