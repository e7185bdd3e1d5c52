"""Throughput by number of seeds and of devices."""

from collections.abc import Sequence

import jax

from experiments.bench import timing
from experiments.bench.job import Job, shortened
from experiments.bench.settings import Settings
from experiments.run_folder.measurements import Result

_SEEDS = (1, 5, 20, 100)
_ROWS = 20


def device_counts(available: int) -> list[int]:
    """Powers of two up to what there is, and all there is."""
    counts = [1 << n for n in range(available.bit_length()) if 1 << n <= available]
    return sorted({*counts, available})


def measure(settings: Settings) -> Sequence[Result]:
    """Measures La-MAML's meta-updates per second, seeds side by side.

    The rows of one device count and growing seeds show what batching gains; rows of one
    number of seeds and growing devices are strong scaling; rows of as many seeds as
    devices weak scaling. All cases take turns.
    """
    benchmark = shortened(settings.benchmark, _ROWS)
    counts = device_counts(len(jax.devices()))
    seeds = (1, 2) if settings.quick else _SEEDS
    cases = sorted(
        {(devices, n) for devices in counts for n in seeds}
        | {(devices, devices) for devices in counts}
    )
    cases = [(devices, n) for devices, n in cases if n >= devices]
    jobs = {
        (devices, n): Job(
            benchmark,
            range(n),
            settings.data_dir,
            devices=devices,
            **settings.overrides,
        )
        for devices, n in cases
    }
    works = {case: (lambda job=job: job.train(0, 1)) for case, job in jobs.items()}
    timings = timing.alternate(works, settings.rounds)
    rates = {
        case: job.updates(1) * case[1] / timing.median_wall_s(timings[case])
        for case, job in jobs.items()
    }
    rows = [
        {
            "devices": devices,
            "seeds": n,
            "meta_updates_per_s": rates[devices, n],
            "over_one_seed_on_one_device": rates[devices, n] / rates[1, 1],
            "cpu_ms_per_meta_update": 1e3
            * timing.median_cpu_s(timings[devices, n])
            / (jobs[devices, n].updates(1) * len(jobs[devices, n].inputs.own.seed)),
        }
        for devices, n in cases
    ]
    device = jax.devices()[0].device_kind
    return [Result(f"La-MAML on {benchmark.name}, seeds and devices ({device})", rows)]
