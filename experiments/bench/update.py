"""The main job: La-MAML's meta-update against this machine's rates."""

import dataclasses
import math
import resource
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments import networks
from experiments.bench import timing
from experiments.bench.job import FEW_ROWS, Job, shortened
from experiments.bench.settings import Settings
from experiments.config import benchmarks
from experiments.config.run_config import num_meta_updates
from experiments.run_folder.measurements import Result
from experiments.schema.hyperparameters import Hyperparameters

_TASKS = 2
_FLOAT = 4


def _products(jaxpr: Any) -> Iterator[int]:
    """Multiplications of each product of matrices or convolution, in their order."""
    for equation in jaxpr.eqns:
        operands = [variable.aval.shape for variable in equation.invars]
        outputs = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            yield outputs * math.prod(operands[0][axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            channels = equation.params["dimension_numbers"].rhs_spec[0]
            yield outputs * math.prod(operands[1]) // operands[1][channels]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _products(inner)


def _layers(
    benchmark: benchmarks.Benchmark, image_shape: tuple[int, ...], num_classes: int
) -> list[int]:
    """Multiplications of each layer on one row, first layer first."""
    form = networks.NetworkForm(
        image_shape, num_classes, benchmark.hidden, benchmark.channels
    )
    network = networks.build(benchmark.network, form)
    image = jnp.zeros((1, *image_shape))
    weights = jax.eval_shape(network.init, jax.random.key(0), image)
    if network.running is None:
        return list(_products(jax.make_jaxpr(network.apply)(weights, image)))
    averages = jax.eval_shape(network.running.init)
    predict = network.running.predict
    return list(_products(jax.make_jaxpr(predict)(weights, averages, image)))


def flops_per_meta_update(
    benchmark: benchmarks.Benchmark,
    hyper: Hyperparameters,
    image_shape: tuple[int, ...],
    num_classes: int,
) -> float:
    """Counts the matrix products of one meta-update.

    A gradient costs two products per layer and row in the forward and the weights'
    backward pass, and one more per layer but the first. In first order an inner step
    takes one gradient on its share of the batch and one on the query; in second order
    it also takes the first again, and its product with a vector, which is twice a
    gradient.

    Args:
        benchmark: gives the network.
        hyper: gives batch, replay, inner steps and order.
        image_shape: inputs of the network.
        num_classes: outputs of the network.

    Returns:
        Floating-point operations.
    """
    layers = _layers(benchmark, image_shape, num_classes)
    per_row = 2 * (2 * sum(layers) + sum(layers[1:]))
    query = hyper.batch_size + (hyper.replay_size or 0)
    support = hyper.batch_size * (1 if hyper.first_order else 4)
    return per_row * (support + (hyper.inner_steps or 0) * query)


def bytes_per_meta_update(num_weights: int, inner_steps: int) -> float:
    """Counts what one first-order meta-update must read and write of the weights.

    If nothing stayed in a cache from one pass to the next, each inner step would read
    fast weights and step sizes and write the fast weights (3), read them for the query
    (1), write its gradient (1), and read it for the two sums (2). Around the steps,
    where those are unrolled: the three sums are written (3), and read for norms and
    alignment (5); step sizes move (3), then the weights (4), and the step sizes are
    described (4).

    Args:
        num_weights: of the network.
        inner_steps: K.

    Returns:
        Bytes.
    """
    return _FLOAT * num_weights * (7.0 * inner_steps + 19)


def _roofline(job: Job, settings: Settings, tasks: int) -> dict[str, Any]:
    config, form = job.config, job.inputs.form
    hyper = config.hyper
    flops = flops_per_meta_update(
        config.benchmark, hyper, form.image_shape, form.num_classes
    )
    weights = jax.tree.leaves(job.program.state.weights)
    num_weights = sum(math.prod(leaf.shape[1:]) for leaf in weights)
    moved = None
    if hyper.first_order:
        moved = bytes_per_meta_update(num_weights, hyper.inner_steps or 0)
    rates = {
        "matmul": timing.matmul_rate(),
        "copy": timing.copy_rate(_FLOAT * num_weights),
    }
    works = {"train": lambda: job.train(0, tasks)}
    works |= {name: rate.work for name, rate in rates.items()}
    timings = timing.alternate(works, settings.rounds)
    rows = settings.benchmark.rows_per_task
    whole = dataclasses.replace(
        config, benchmark=dataclasses.replace(config.benchmark, rows_per_task=rows)
    )
    num_seeds = len(job.inputs.own.seed)
    updates = job.updates(tasks) * num_seeds
    cpu_s = timing.median_cpu_s(timings["train"]) / updates
    products, copies = (
        rates[name].amount / timing.median_cpu_s(timings[name])
        for name in ("matmul", "copy")
    )
    return {
        "meta_updates_per_s": updates
        / timing.median_wall_s(timings["train"])
        * (len(config.seeds) / num_seeds),
        "cpu_ms_per_meta_update": 1e3 * cpu_s,
        "cpu_s_per_seed": cpu_s * num_meta_updates(whole),
        "compile_s": job.program.compile_s,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "mflop_per_meta_update": flops / 1e6,
        "matmul_gflop_per_cpu_s": products / 1e9,
        "percent_of_matmul_peak": 100 * flops / cpu_s / products,
        "mb_moved_per_meta_update": moved and moved / 1e6,
        "copy_gb_per_cpu_s": copies / 1e9,
        "ms_of_products_at_peak": 1e3 * flops / products,
        "ms_of_passes_at_copy_rate": moved and 1e3 * moved / copies,
    }


def _capacities(settings: Settings, tasks: int) -> Result:
    capacities = (200, 20_000)
    jobs = {
        capacity: Job(
            settings.benchmark,
            range(1),
            settings.data_dir,
            capacity=capacity,
            **settings.overrides,
        )
        for capacity in capacities
    }
    works = {
        capacity: (lambda job=job: job.train(0, tasks))
        for capacity, job in jobs.items()
    }
    timings = timing.alternate(works, settings.rounds)
    first = timings[capacities[0]]
    rows = [
        {
            "capacity": capacity,
            "ms_per_meta_update": 1e3
            * statistics.median(each.wall_s for each in timings[capacity])
            / jobs[capacity].updates(tasks),
            "ratio": timing.median_ratio(timings[capacity], first),
        }
        for capacity in capacities
    ]
    return Result("Whole meta-updates by capacity of the reservoir", rows)


def measure(settings: Settings) -> Sequence[Result]:
    """Measures La-MAML's training against the rates of the same process.

    Training stretches, matrix products and copies of arrays as large as the weights
    alternate; medians are reported. Memory traffic is counted in first order only.
    """
    tasks, benchmark = _TASKS, settings.benchmark
    if settings.quick or benchmark.channels:
        tasks, benchmark = 1, shortened(benchmark, FEW_ROWS)
    devices = jax.devices()
    job = Job(benchmark, range(len(devices)), settings.data_dir, **settings.overrides)
    title = f"La-MAML on {benchmark.name}, a seed on each of {len(devices)} "
    row = _roofline(job, settings, tasks)
    note = (
        "cpu_s_per_seed is for the whole stream; the last two rows are the least that "
        "arithmetic and memory traffic take, in milliseconds per meta-update"
    )
    title += f"devices ({devices[0].device_kind})"
    roofline = Result(title, [row], note)
    if settings.quick or benchmark.channels:
        return [roofline]
    return [roofline, _capacities(settings, tasks)]
