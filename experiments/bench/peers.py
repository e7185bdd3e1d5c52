"""La-MAML in plain PyTorch in turn with this library, after a check that both agree."""

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lamaml_jax as lm
from experiments.bench import timing
from experiments.bench.job import Job, shortened
from experiments.bench.results import Result
from experiments.bench.settings import Settings
from experiments.errors import UserError
from experiments.feeding import make_show
from experiments.hyperparameters import Hyperparameters
from experiments.models import Network
from experiments.train import make_problem

_SEEDS = (10, 100)
_QUICK_ROWS = 60
_CHAIN = 5
_TOLERANCE = 1e-4
"""Of the distance that a leaf's weights or step sizes have moved. Both sum up to 784
products per number in float32, in another order: after 5 updates of 10 inner steps that
was 1.5e-6 on MNIST Rotations. The least of the faults tried, a slope of 1 where relu of
a step size has 0, makes it 1e-3; the others, 0.4 and more."""
_NOTE = (
    "seeds: together; times are per meta-update of one seed, ratio the median over "
    "rounds of a row's time over that of lamaml_jax at one seed. The peer's rows are "
    "turned beforehand, ours in the loop. Products are full float32 in both. "
    f"difference: weights and step sizes against ours after {_CHAIN} meta-updates on "
    "the same rows, over the distance moved."
)


class DisagreementError(RuntimeError):
    """Two loops that are to be timed do not compute the same."""


class _Rows(NamedTuple):
    """The first task of the first seed's stream, as the network sees it."""

    images: np.ndarray
    """float32 [N, B, D]."""
    labels: np.ndarray
    """int32 [N, B]."""


def _rows(job: Job) -> _Rows:
    show = make_show(job.config, job.inputs.form)
    stream = jax.tree.map(lambda x: x[0], job.inputs.streams)

    @jax.jit
    def all_rows(shared, stream, seed):
        places, _ = show.epoch(stream, seed, 0, 0)
        batch = lambda place: show.rows(shared, stream, jax.random.key(0), place)[0]
        return jax.lax.map(batch, places)

    batches = all_rows(job.inputs.shared, stream, job.inputs.seeds[0])
    return _Rows(np.asarray(batches["image"]), np.asarray(batches["label"]))


def _chain(rows: _Rows, inner_steps: int) -> Iterator[tuple[Any, Any]]:
    """Support and query of successive updates; the query replays the batch before."""
    for n in range(1, _CHAIN + 1):
        support = tuple(x[n].reshape(inner_steps, -1, *x.shape[2:]) for x in rows)
        yield support, tuple(np.concatenate([x[n - 1], x[n]]) for x in rows)


def _leaves(tree: Any) -> list[np.ndarray]:
    """Matrix and bias of one layer after the other."""
    layers = tree["params"]
    names = [f"Dense_{n}" for n in range(len(layers))]
    return [np.asarray(layers[n][kind]) for n in names for kind in ("kernel", "bias")]


def _vector(leaves: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([leaf.ravel() for leaf in leaves])


def _our_chain(job: Job, weights: Any, rows: _Rows) -> tuple[Any, Any]:
    """Weights and step sizes after this library's meta-updates."""
    hyper, benchmark = job.config.hyper, job.config.benchmark
    model = Network(benchmark.hidden, job.inputs.form.num_classes)
    problem = make_problem(job.config, job.inputs.form, model.apply)
    tx = lm.lamaml(
        problem.loss_fn,
        step_size_init=hyper.step_size_init,
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
    as_batch = lambda x: {"image": jnp.asarray(x[0]), "label": jnp.asarray(x[1])}
    for support, query in _chain(rows, hyper.inner_steps):
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


class _Peer(NamedTuple):
    """One form of the PyTorch loop."""

    train: Callable[[], None]
    """The whole task once more, until the device is done."""
    difference: float


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"peers: PyTorch is needed, `pip install torch` ({error})"
        ) from error
    return torch


def _updates(
    peer: Any, torch: Any, device: str, widths: Sequence[int], hyper: Hyperparameters
) -> dict[str, Callable[..., Any]]:
    """Forms of the meta-update by name; all compute the same."""
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
        for name, form in sums.items()
    }
    if device == "cuda":
        graph = compiled(make(traced, sums=peer.batched_sums), mode="reduce-overhead")

        def replay(*args):
            # The next replay writes over the graph's own results.
            return tuple(x.clone() for x in graph(*args))

        updates["torch.compile, queries batched, CUDA graph"] = replay
    return updates


def _make_peers(
    job: Job, rows: _Rows, device: str
) -> tuple[dict[str, _Peer], list[str]]:
    """Builds and checks the PyTorch loops; also names those that cannot be compiled.

    Raises:
        UserError: PyTorch is missing.
        DisagreementError: a loop does not do what this library does.
    """
    torch = _torch()
    from experiments.bench import peer_torch as peer

    hyper, form = job.config.hyper, job.inputs.form
    widths = (rows.images.shape[-1], *job.config.benchmark.hidden, form.num_classes)
    model = Network(job.config.benchmark.hidden, form.num_classes)
    weights = model.init(jax.random.key(0), jnp.zeros((1, widths[0])))
    begin = _leaves(weights)
    rate = np.float32(hyper.step_size_init)
    starts = begin, [np.full_like(leaf, rate) for leaf in begin]
    ours = [_leaves(tree) for tree in _our_chain(job, weights, rows)]
    ends = np.cumsum([leaf.size for leaf in begin])[:-1]
    put = lambda x: torch.tensor(x, device=device)
    as_rows = lambda x: (put(x[0]), put(x[1]).long())

    def check(name, update):
        state = tuple(put(_vector(leaves)) for leaves in starts)
        for support, query in _chain(rows, hyper.inner_steps):
            state = update(*state, as_rows(support), as_rows(query))
        found = [np.split(vector.cpu().numpy(), ends) for vector in state]
        flat = [[leaf.ravel() for leaf in leaves] for leaves in (*starts, *ours)]
        value = max(
            difference(s, e, r)
            for s, e, r in zip(flat[:2], flat[2:], found, strict=True)
        )
        if not value <= _TOLERANCE:
            raise DisagreementError(
                f"{name} is not the same algorithm: after {_CHAIN} meta-updates "
                f"weights or step sizes differ by {value:.1e} of their movement, "
                f"expected at most {_TOLERANCE:.0e}"
            )
        return value

    all_rows = as_rows(rows)
    updates = _updates(peer, torch, device, widths, hyper)
    # Every loop starts with replay at hand, so that its queries have one shape.
    filled = peer.start(put(_vector(begin)), hyper, widths[0])
    peer.train_rows(filled, updates["torch"], hyper, *(x[:1] for x in all_rows))

    def train(learner, update):
        peer.train_rows(learner, update, hyper, *all_rows)
        if device == "cuda":
            torch.cuda.synchronize()

    peers, failed = {}, []
    for name, update in updates.items():
        learner = copy.copy(filled)
        learner.memory = type(filled.memory)(*(x.clone() for x in filled.memory))
        learner.generator = torch.Generator(device).manual_seed(1)
        learner.random = copy.copy(filled.random)
        form = functools.partial(train, learner, update)
        try:
            peers[name] = _Peer(form, check(name, update))
            form()
        except DisagreementError:
            raise
        except Exception as error:
            # A compiler may be missing, or not know the device: the others still count.
            if "compile" not in name:
                raise
            peers.pop(name, None)
            failed.append(f"{name} failed: {repr(error)[:200]}")
    return peers, failed


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Products in float32 in all threads; some devices would take fewer bits."""
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def _device() -> str:
    """Where PyTorch runs, the kind of device that jax has.

    Raises:
        UserError: PyTorch cannot use that kind.
    """
    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend != "gpu" or not _torch().cuda.is_available():
        raise UserError(f"peers: PyTorch cannot use the {backend} that jax uses")
    return "cuda"


def measure(settings: Settings) -> Sequence[Result]:
    """Measures La-MAML's meta-update in PyTorch and in this library, in turn.

    Raises:
        UserError: PyTorch is missing or on another kind of device, or the benchmark is
            not one whose peer is written: a perceptron, first order.
        DisagreementError: they do not compute the same.
    """
    if settings.benchmark.channels or settings.benchmark.classes_per_task:
        raise UserError(
            f"peers: {settings.benchmark.name} has no peer, use mnist-rotations"
        )
    torch, device = _torch(), _device()
    benchmark = settings.benchmark
    if settings.quick:
        benchmark = shortened(benchmark, _QUICK_ROWS)
    with _full_precision():
        make_job = lambda seeds: Job(
            benchmark, range(seeds), settings.data_dir, devices=1, **settings.overrides
        )
        jobs = {1: make_job(1)}
        peers, failed = _make_peers(jobs[1], _rows(jobs[1]), device)
        if device == "cuda":
            jobs |= {seeds: make_job(seeds) for seeds in _SEEDS}
    works = {(name, 1): peer.train for name, peer in peers.items()}
    works |= {
        ("lamaml_jax", n): (lambda job=job: job.train(0, 1)) for n, job in jobs.items()
    }
    timings = timing.alternate(works, settings.rounds)
    ours, updates = timings["lamaml_jax", 1], jobs[1].updates(1)
    rows = [
        {
            "loop": name,
            "seeds": seeds,
            "ms_per_meta_update": 1e3
            * timing.median_wall_s(timings[name, seeds])
            / (updates * seeds),
            "cpu_ms_per_meta_update": 1e3
            * timing.median_cpu_s(timings[name, seeds])
            / (updates * seeds),
            "meta_updates_per_s": updates
            * seeds
            / timing.median_wall_s(timings[name, seeds]),
            "ratio": timing.median_ratio(timings[name, seeds], ours) / seeds,
            "difference": peers[name].difference if name in peers else None,
        }
        for name, seeds in works
    ]
    kind = jax.devices()[0].device_kind
    cores = len(os.sched_getaffinity(0))
    title = (
        f"La-MAML on {benchmark.name} in turn with PyTorch {torch.__version__} "
        f"({kind}; {cores} cores, {torch.get_num_threads()} threads of PyTorch)"
    )
    return [Result(title, rows, " ".join([_NOTE, *failed]))]
