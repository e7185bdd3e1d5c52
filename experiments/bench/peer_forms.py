"""The PyTorch loops that are timed: how each holds a network, and what moves it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.bench.job import Job
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.errors import UserError


class Held(NamedTuple):
    """How PyTorch holds a network, and what moves it."""

    put: Callable[[Sequence[np.ndarray]], Any]
    """Leaves in the order of ``leaves_of`` to what an update takes."""
    take: Callable[[Any], list[np.ndarray]]
    """And back."""
    updates: dict[str, Callable[..., Any]]
    """Forms of the meta-update by name, which all compute the same. Those that are
    compiled come last, in the order of the time that it takes."""


def import_torch() -> Any:
    """Imports PyTorch.

    Raises:
        UserError: it is missing.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"peers: PyTorch is needed, `pip install torch` ({error})"
        ) from error
    return torch


def updates_of(
    peer: Any, torch: Any, device: str, widths: Sequence[int], hyper: Hyperparameters
) -> dict[str, Callable[..., Any]]:
    """The forms of a perceptron's update."""
    plain = peer.make_gradient(widths)
    traced = peer.make_gradient(widths, traced=True)
    sums = {"": peer.looped_sums}
    if (
        device == "cuda"
    ):  # on a CPU twice as slow: copies of the weights leave its cache
        sums[", queries batched"] = peer.batched_sums
    make = functools.partial(peer.make_update, hyper=hyper)
    compiled = functools.partial(torch.compile, dynamic=False)
    updates = {f"torch{name}": make(plain, sums=form) for name, form in sums.items()}
    updates |= {
        f"torch.compile{name}": compiled(make(traced, sums=form))
        for name, form in reversed(sums.items())
    }
    if device == "cuda":
        graph = compiled(make(traced, sums=peer.batched_sums), mode="reduce-overhead")

        def replay(*args: Any) -> tuple[Any, ...]:
            # The next replay writes over the graph's own results.
            return tuple(x.clone() for x in graph(*args))

        updates["torch.compile, queries batched, CUDA graph"] = replay
    return updates


def perceptron(job: Job, torch: Any, device: str, begin: list[np.ndarray]) -> Held:
    """Holds a perceptron as one vector.

    Args:
        job: whose network it is.
        torch: the package.
        device: such as ``"cpu"``.
        begin: its leaves.
    """
    from experiments.bench import peer_torch

    form = job.inputs.form
    widths = (*form.image_shape, *job.config.benchmark.hidden, form.num_classes)
    ends = np.cumsum([leaf.size for leaf in begin])[:-1]

    def put(leaves: Sequence[np.ndarray]) -> Any:
        vector = np.concatenate([leaf.ravel() for leaf in leaves])
        return torch.tensor(vector, device=device)

    def take(vector: Any) -> list[np.ndarray]:
        parts = np.split(vector.cpu().numpy(), ends)
        return [p.reshape(leaf.shape) for p, leaf in zip(parts, begin, strict=True)]

    updates = updates_of(peer_torch, torch, device, widths, job.config.hyper)
    return Held(put, take, updates)


def convolutional(job: Job, torch: Any, device: str) -> Held:
    """Holds a network of convolutions as PyTorch's tensors, leaf by leaf."""
    from experiments.bench import peer_torch_images as peer

    benchmark, hyper = job.config.benchmark, job.config.hyper
    assert benchmark.classes_per_task is not None, "a head per task"
    sizes = peer.Sizes(len(benchmark.channels), benchmark.classes_per_task)
    turned = lambda x, axes: x.transpose(axes) if x.ndim == 4 else x

    def put(leaves: Sequence[np.ndarray]) -> tuple[Any, ...]:
        # [h, w, C, D] to [D, C, h, w]
        swapped = (np.ascontiguousarray(turned(x, (3, 2, 0, 1))) for x in leaves)
        return tuple(torch.tensor(x, device=device) for x in swapped)

    def take(tensors: Sequence[Any]) -> list[np.ndarray]:
        return [turned(x.detach().cpu().numpy(), (2, 3, 1, 0)) for x in tensors]

    plain, last = (peer.make_loss(sizes, channels_last=c) for c in (False, True))
    compiled = functools.partial(torch.compile, dynamic=False)
    updates = {
        "torch": peer.make_update(plain, hyper),
        "torch, channels last": peer.make_update(last, hyper),
        "torch.compile": compiled(peer.make_update(plain, hyper, traced=True)),
    }
    return Held(put, take, updates)
