"""What this library's updates come to on given rows, for a peer to be held against."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lamaml_jax as lm
from experiments.bench.job import Job
from experiments.networks import Network, convolution_for
from experiments.training.batches import make_show
from experiments.training.problem import make_problem

CHAIN = 5
"""Meta-updates of a perceptron that are compared."""


class Rows(NamedTuple):
    """The first task of the first seed's stream, as the network sees it."""

    images: np.ndarray
    """float32 [N, B, D], or [N, B, H, W, C]."""
    labels: np.ndarray
    """int32 [N, B]."""


def make_rows(job: Job) -> Rows:
    """Turns the first task of the first seed's stream into the network's inputs."""
    show = make_show(job.config, job.inputs.form)
    own = jax.tree.map(lambda x: x[0], job.inputs.own)

    @jax.jit
    def all_rows(shared: Any, own: Any) -> Any:
        places, _ = show.epoch(shared, own, 0)
        batch = lambda place: show.rows(shared, own, jax.random.key(0), place)[0]
        return jax.lax.map(batch, places)

    batches = all_rows(job.inputs.shared._replace(task=np.int32(0)), own)
    return Rows(np.asarray(batches["image"]), np.asarray(batches["label"]))


def num_checked(job: Job) -> int:
    """Meta-updates that are compared; one of convolutions, which part sooner."""
    return 1 if job.config.benchmark.channels else CHAIN


def chain(job: Job, rows: Rows) -> Iterator[tuple[Any, Any]]:
    """Support and query of successive updates; the query replays the batch before."""
    inner_steps = job.config.hyper.inner_steps
    assert inner_steps is not None, "La-MAML has some"
    for n in range(1, num_checked(job) + 1):
        support = tuple(x[n].reshape(inner_steps, -1, *x.shape[2:]) for x in rows)
        yield support, tuple(np.concatenate([x[n - 1], x[n]]) for x in rows)


def leaves_of(tree: Any) -> list[np.ndarray]:
    """Kernel and bias of one layer after the other, convolutions first."""
    layers = tree["params"]
    return [
        np.asarray(layers[f"{layer}_{n}"][kind])
        for layer in ("Conv", "Dense")
        for n in range(sum(name.startswith(layer) for name in layers))
        for kind in ("kernel", "bias")
    ]


def make_network(job: Job) -> Network:
    """Builds the benchmark's network, as its runs have it."""
    benchmark = job.config.benchmark
    return Network(
        benchmark.hidden,
        job.inputs.form.num_classes,
        benchmark.channels,
        job.config.hyper.initializer,
        convolve=convolution_for(jax.default_backend()),
    )


def our_chain(job: Job, weights: Any, rate: float, rows: Rows) -> tuple[Any, Any]:
    """Weights and step sizes after this library's meta-updates, from that rate on."""
    hyper: Any = job.config.hyper  # of La-MAML, which has every quantity below
    per_task = job.config.benchmark.classes_per_task
    apply_fn = cast(Callable[..., jax.Array], make_network(job).apply)
    problem = make_problem(job.config, job.inputs.form, apply_fn)
    tx = lm.lamaml(
        problem.loss_fn,
        step_size_init=rate,
        step_size_learning_rate=hyper.step_size_learning_rate,
        meta_tx=lm.clip_meta_grads(hyper.max_grad_norm),
        inner_steps=hyper.inner_steps,
        objective=hyper.objective,
        first_order=hyper.first_order,
        rectify=hyper.rectify,
        clip=hyper.inner_clip,
    )
    zeros, update = optax.tree.zeros_like(weights), jax.jit(tx.update)
    state = tx.init(weights)

    def as_batch(rows: Sequence[np.ndarray]) -> dict[str, jax.Array]:
        batch = {"image": jnp.asarray(rows[0]), "label": jnp.asarray(rows[1])}
        return batch | ({"task": batch["label"] // per_task} if per_task else {})

    for support, query in chain(job, rows):
        data = {"support": as_batch(support), "query": as_batch(query)}
        updates, state = update(zeros, state, weights, **data)
        weights = optax.apply_updates(weights, updates)
    return weights, optax.tree.get(state, "step_sizes")


def difference(
    start: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    received: Sequence[np.ndarray],
) -> float:
    """Largest relative difference of a leaf's movement: |e - r| / |e - s|."""
    norm = np.linalg.norm
    return max(
        float(norm(e - r) / norm(e - s))
        for s, e, r in zip(start, expected, received, strict=True)
    )
