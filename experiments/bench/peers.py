"""La-MAML in plain PyTorch in turn with this library, after a check that both agree."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing
from experiments.bench.job import FEW_ROWS, Job, shortened
from experiments.bench.ours import (
    CHAIN,
    Rows,
    chain,
    difference,
    leaves_of,
    make_network,
    make_rows,
    num_checked,
    our_chain,
)
from experiments.bench.peer_forms import (
    Held,
    convolutional,
    import_torch,
    perceptron,
)
from experiments.bench.settings import Settings
from experiments.config import presets
from experiments.config.benchmarks import Benchmark
from experiments.run_folder.measurements import Result
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.cores import usable_cores
from experiments.support.errors import UserError

_SEEDS = (10, 100)
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
    f"difference: weights and step sizes against ours after {CHAIN} meta-updates on "
    "the same rows (one of convolutions, at lower rates), over the distance moved."
)


class DisagreementError(RuntimeError):
    """Two loops that are to be timed do not compute the same."""


class _Peer(NamedTuple):
    """One form of the PyTorch loop."""

    name: str
    train: Callable[[], None] | None
    """The whole task once more, until the device is done; None if it failed."""
    difference: float | None
    failure: str = ""


def _as_rows(torch: Any, device: str, rows: Any) -> tuple[Any, Any]:
    """Puts images and labels on the device."""
    put = lambda x: torch.tensor(x, device=device)
    return put(rows[0]), put(rows[1]).long()


class _Checked(NamedTuple):
    """PyTorch's side of a comparison."""

    held: Held
    starts: tuple[list[np.ndarray], list[np.ndarray]]
    """Leaves of the weights and of the step sizes."""
    check: Callable[[str, Callable[..., Any]], float]
    """``check(name, update)`` returns the difference, or raises what is below."""


def _make_checked(job: Job, rows: Rows, torch: Any, device: str) -> _Checked:
    """Builds what holds the network, and what compares an update with ours.

    Raises:
        DisagreementError: by ``check``, where a loop does something else.
    """
    hyper, form = job.config.hyper, job.inputs.form
    model, images = make_network(job), jnp.zeros((1, *form.image_shape))
    weights = model.init(jax.random.key(0), images)
    begin = leaves_of(weights)
    rate, tolerance = hyper.step_size_init, _TOLERANCE
    assert rate is not None, "La-MAML has one"
    if job.config.benchmark.channels:
        rate, tolerance = min(rate, _CHECKED_RATE), _TOLERANCE_IMAGES
        held = convolutional(job, torch, device)
    else:
        held = perceptron(job, torch, device, begin)
    starts = begin, [np.full_like(leaf, rate) for leaf in begin]
    ours = [leaves_of(tree) for tree in our_chain(job, weights, rate, rows)]

    def check(name: str, update: Callable[..., Any]) -> float:
        state = tuple(map(held.put, starts))
        for pair in chain(job, rows):
            state = update(*state, *(_as_rows(torch, device, x) for x in pair))
        found = map(held.take, state)
        value = max(
            difference(s, e, r) for s, e, r in zip(starts, ours, found, strict=True)
        )
        if not value <= tolerance:
            raise DisagreementError(
                f"{name} is not the same algorithm: after {num_checked(job)} "
                f"meta-updates weights or step sizes differ by {value:.1e} of their "
                f"movement, expected at most {tolerance:.0e}"
            )
        return value

    return _Checked(held, starts, check)


def _make_peers(job: Job, rows: Rows, device: str) -> Iterator[_Peer]:
    """Builds and checks the PyTorch loops, each when it is asked for.

    Raises:
        UserError: PyTorch is missing.
        DisagreementError: a loop does not do what this library does.
    """
    torch = import_torch()
    from experiments.bench import peer_torch as peer

    hyper, image_shape = job.config.hyper, job.inputs.form.image_shape
    held, starts, check = _make_checked(job, rows, torch, device)
    all_rows = _as_rows(torch, device, rows)
    # Every loop starts with replay at hand, so that its queries have one shape.
    first_weights, first_rates = map(held.put, starts)
    filled = peer.start(first_weights, first_rates, hyper, image_shape, device)
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
    if backend != "gpu" or not import_torch().cuda.is_available():
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
    torch, device = import_torch(), _device()
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
        benchmark = shortened(benchmark, FEW_ROWS)
    kind, cores = jax.devices()[0].device_kind, usable_cores()
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
        for peer in _make_peers(job, make_rows(job), device):
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
