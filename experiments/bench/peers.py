"""La-MAML in plain PyTorch in turn with this library, after a check that both agree."""

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lamaml_jax as lm
from experiments.bench import timing
from experiments.bench.job import Job, shortened
from experiments.bench.settings import Settings
from experiments.config import presets
from experiments.config.benchmarks import Benchmark
from experiments.networks import Network, convolution_for
from experiments.run_folder.measurements import Result
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.errors import UserError
from experiments.training.batches import make_show
from experiments.training.problem import make_problem

_SEEDS = (10, 100)
_FEW_ROWS = 60
"""Of a task, for a quick run, and where an update takes a part of a second."""
_CHAIN = 5
_TOLERANCE = 1e-4
"""Of the distance that a leaf's weights or step sizes have moved. Both sum up to 784
products per number in float32, in another order: after 5 updates of 10 inner steps that
was 1.5e-6 on MNIST Rotations. The least of the faults tried, a slope of 1 where relu of
a step size has 0, makes it 1e-3; the others, 0.4 and more."""
_CHECKED_RATE = 0.01
"""First step sizes of a network of convolutions while it is checked, 0.1 as published:
those overshoot, to query losses of thousands, and roundings part company (0.98 of the
movement after 5 updates). One update of that network is checked, for the same reason.
"""
_TOLERANCE_IMAGES = 1e-3
"""As above, of CIFAR-100's second order: one update had 3.3e-4 in the kernel of the
first convolution, 1.6e-4 and less elsewhere; first order in its place makes it 1.7."""
_NOTE = (
    "seeds: together; times are per meta-update of one seed, ratio the median over "
    "rounds of a row's time over that of lamaml_jax at one seed, which takes turns "
    "with each row by itself; its own times are those beside the first. The peer's "
    "rows are turned or cropped beforehand, ours in the loop. Products are full "
    "float32 in both. "
    f"difference: weights and step sizes against ours after {_CHAIN} meta-updates on "
    "the same rows (one of convolutions, at lower rates), over the distance moved."
)


class DisagreementError(RuntimeError):
    """Two loops that are to be timed do not compute the same."""


class _Rows(NamedTuple):
    """The first task of the first seed's stream, as the network sees it."""

    images: np.ndarray
    """float32 [N, B, D], or [N, B, H, W, C]."""
    labels: np.ndarray
    """int32 [N, B]."""


def _rows(job: Job) -> _Rows:
    show = make_show(job.config, job.inputs.form)
    own = jax.tree.map(lambda x: x[0], job.inputs.own)

    @jax.jit
    def all_rows(shared: Any, own: Any) -> Any:
        places, _ = show.epoch(shared, own, 0)
        batch = lambda place: show.rows(shared, own, jax.random.key(0), place)[0]
        return jax.lax.map(batch, places)

    batches = all_rows(job.inputs.shared._replace(task=np.int32(0)), own)
    return _Rows(np.asarray(batches["image"]), np.asarray(batches["label"]))


def _num_checked(job: Job) -> int:
    return 1 if job.config.benchmark.channels else _CHAIN


def _chain(job: Job, rows: _Rows) -> Iterator[tuple[Any, Any]]:
    """Support and query of successive updates; the query replays the batch before."""
    inner_steps = job.config.hyper.inner_steps
    assert inner_steps is not None, "La-MAML has some"
    for n in range(1, _num_checked(job) + 1):
        support = tuple(x[n].reshape(inner_steps, -1, *x.shape[2:]) for x in rows)
        yield support, tuple(np.concatenate([x[n - 1], x[n]]) for x in rows)


def _leaves(tree: Any) -> list[np.ndarray]:
    """Kernel and bias of one layer after the other, convolutions first."""
    layers = tree["params"]
    return [
        np.asarray(layers[f"{layer}_{n}"][kind])
        for layer in ("Conv", "Dense")
        for n in range(sum(name.startswith(layer) for name in layers))
        for kind in ("kernel", "bias")
    ]


def _network(job: Job) -> Network:
    benchmark = job.config.benchmark
    return Network(
        benchmark.hidden,
        job.inputs.form.num_classes,
        benchmark.channels,
        job.config.hyper.initializer,
        convolve=convolution_for(jax.default_backend()),
    )


def _our_chain(job: Job, weights: Any, rate: float, rows: _Rows) -> tuple[Any, Any]:
    """Weights and step sizes after this library's meta-updates, from that rate on."""
    hyper: Any = job.config.hyper  # of La-MAML, which has every quantity below
    per_task = job.config.benchmark.classes_per_task
    apply_fn = cast(Callable[..., jax.Array], _network(job).apply)
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

    for support, query in _chain(job, rows):
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

    name: str
    train: Callable[[], None] | None
    """The whole task once more, until the device is done; None if it failed."""
    difference: float | None
    failure: str = ""


class _Held(NamedTuple):
    """How PyTorch holds a network, and what moves it."""

    put: Callable[[Sequence[np.ndarray]], Any]
    """Leaves in the order of ``_leaves`` to what an update takes."""
    take: Callable[[Any], list[np.ndarray]]
    """And back."""
    updates: dict[str, Callable[..., Any]]
    """Forms of the meta-update by name, which all compute the same. Those that are
    compiled come last, in the order of the time that it takes."""


def _torch() -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"peers: PyTorch is needed, `pip install torch` ({error})"
        ) from error
    return torch


def _updates(
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


def _perceptron(job: Job, torch: Any, device: str, begin: list[np.ndarray]) -> _Held:
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

    updates = _updates(peer_torch, torch, device, widths, job.config.hyper)
    return _Held(put, take, updates)


def _convolutional(job: Job, torch: Any, device: str) -> _Held:
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
    return _Held(put, take, updates)


def _make_peers(job: Job, rows: _Rows, device: str) -> Iterator[_Peer]:
    """Builds and checks the PyTorch loops, each when it is asked for.

    Raises:
        UserError: PyTorch is missing.
        DisagreementError: a loop does not do what this library does.
    """
    torch = _torch()
    from experiments.bench import peer_torch as peer

    hyper, form = job.config.hyper, job.inputs.form
    weights = _network(job).init(jax.random.key(0), jnp.zeros((1, *form.image_shape)))
    begin = _leaves(weights)
    rate, tolerance = hyper.step_size_init, _TOLERANCE
    assert rate is not None, "La-MAML has one"
    if job.config.benchmark.channels:
        rate, tolerance = min(rate, _CHECKED_RATE), _TOLERANCE_IMAGES
        held = _convolutional(job, torch, device)
    else:
        held = _perceptron(job, torch, device, begin)
    starts = begin, [np.full_like(leaf, rate) for leaf in begin]
    ours = [_leaves(tree) for tree in _our_chain(job, weights, rate, rows)]
    put = lambda x: torch.tensor(x, device=device)
    as_rows = lambda x: (put(x[0]), put(x[1]).long())

    def check(name: str, update: Callable[..., Any]) -> float:
        state = tuple(map(held.put, starts))
        for support, query in _chain(job, rows):
            state = update(*state, as_rows(support), as_rows(query))
        found = map(held.take, state)
        value = max(
            difference(s, e, r) for s, e, r in zip(starts, ours, found, strict=True)
        )
        if not value <= tolerance:
            raise DisagreementError(
                f"{name} is not the same algorithm: after {_num_checked(job)} "
                f"meta-updates weights or step sizes differ by {value:.1e} of their "
                f"movement, expected at most {tolerance:.0e}"
            )
        return value

    all_rows = as_rows(rows)
    # Every loop starts with replay at hand, so that its queries have one shape.
    first_weights, first_rates = map(held.put, starts)
    filled = peer.start(first_weights, first_rates, hyper, form.image_shape, device)
    images, labels = (x[:1] for x in all_rows)
    peer.train_rows(filled, held.updates["torch"], hyper, images, labels)

    def train(learner: Any, update: Callable[..., Any]) -> None:
        peer.train_rows(learner, update, hyper, *all_rows)
        if device == "cuda":
            torch.cuda.synchronize()

    for name, update in held.updates.items():
        learner = copy.copy(filled)
        learner.memory = type(filled.memory)(*(x.clone() for x in filled.memory))
        learner.generator = torch.Generator(device).manual_seed(1)
        learner.random = copy.copy(filled.random)
        form = functools.partial(train, learner, update)
        try:
            made = _Peer(name, form, check(name, update))
            form()
        except DisagreementError:
            raise
        except Exception as error:
            # A compiler may be missing, or not know the device: the others still count.
            if "compile" not in name:
                raise
            made = _Peer(name, None, None, f"{name} failed: {repr(error)[:200]}")
        yield made


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Products in float32 in all threads; some devices would take fewer bits."""
    before = jax.config.values["jax_default_matmul_precision"]
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


def _has_peer(benchmark: Benchmark, hyper: Hyperparameters) -> bool:
    """A perceptron of one head in first order, or convolutions of many in second."""
    has_heads = benchmark.classes_per_task is not None
    return bool(benchmark.channels) == has_heads == (not hyper.first_order)


def measure(settings: Settings) -> Sequence[Result]:
    """Measures La-MAML's meta-update in PyTorch and in this library, in turn.

    Each loop takes turns with this library by itself, and is kept before the next one
    is built: what is compiled comes last, and may take minutes to compile.

    Raises:
        UserError: PyTorch is missing or on another kind of device, or the benchmark is
            not one whose peer is written.
        DisagreementError: they do not compute the same.
    """
    torch, device = _torch(), _device()
    benchmark, overrides = settings.benchmark, dict(settings.overrides)
    (hyper,) = presets.resolve(benchmark.name, ["lamaml"], overrides)
    if not _has_peer(benchmark, hyper):
        raise UserError(
            f"peers: {benchmark.name} has no peer, use mnist-rotations or "
            "cifar100-split"
        )
    if benchmark.channels:
        overrides["glances"] = 1
    if settings.quick or benchmark.channels:
        benchmark = shortened(benchmark, _FEW_ROWS)
    kind, cores = jax.devices()[0].device_kind, len(os.sched_getaffinity(0))
    title = (
        f"La-MAML on {benchmark.name} in turn with PyTorch {torch.__version__} "
        f"({kind}; {cores} cores, {torch.get_num_threads()} threads of PyTorch)"
    )
    rows: list[dict[str, Any]] = []
    failures: list[str] = []

    def results() -> list[Result]:
        return [Result(title, list(rows), " ".join([_NOTE, *failures]))]

    def take_turns(
        name: str,
        seeds: int,
        work: Callable[[], Any],
        difference: float | None = None,
    ) -> None:
        works = {"ours": lambda: job.train(0, 1), "row": work}
        timings = timing.alternate(works, settings.rounds)
        if not rows:
            rows.append(_row("lamaml_jax", 1, job, timings["ours"], timings["ours"]))
        rows.append(_row(name, seeds, job, timings["row"], timings["ours"], difference))
        settings.keep(results())

    make_job = lambda seeds: Job(
        benchmark, range(seeds), settings.data_dir, devices=1, **overrides
    )
    with _full_precision():
        job = make_job(1)
        more_seeds = _SEEDS if device == "cuda" and not benchmark.channels else ()
        for peer in _make_peers(job, _rows(job), device):
            if "compile" in peer.name and more_seeds:
                for seeds in more_seeds:
                    train = functools.partial(make_job(seeds).train, 0, 1)
                    take_turns("lamaml_jax", seeds, train)
                more_seeds = ()
            if peer.train is None:
                failures.append(peer.failure)
            else:
                take_turns(peer.name, 1, peer.train, peer.difference)
    return results()


def _row(
    name: str,
    seeds: int,
    job: Job,
    timings: Sequence[timing.Timing],
    ours: Sequence[timing.Timing],
    difference: float | None = None,
) -> dict[str, Any]:
    """A loop's line of the table."""
    updates = job.updates(1) * seeds
    wall_s, cpu_s = timing.median_wall_s(timings), timing.median_cpu_s(timings)
    return {
        "loop": name,
        "seeds": seeds,
        "ms_per_meta_update": 1e3 * wall_s / updates,
        "cpu_ms_per_meta_update": 1e3 * cpu_s / updates,
        "meta_updates_per_s": updates / wall_s,
        "ratio": timing.median_ratio(timings, ours) / seeds,
        "difference": difference,
    }
