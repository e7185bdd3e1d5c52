"""From the command to the first meta-update, in new processes."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.bench.settings import Settings
from experiments.run_folder.measurements import Result
from experiments.support.errors import UserError

_ROOT = Path(__file__).parents[2]
_SCRIPT = """
import dataclasses, json, sys, time
start = time.perf_counter()
benchmark, data_dir, cache, methods = json.loads(sys.argv[1])
import PACKAGE, jax
from experiments.config import benchmarks, presets
from experiments.training import placement
from experiments.training.inputs import place
from experiments.training.programs import compile_programs
from experiments.config.run_config import RunConfig
from experiments.support.cores import usable_cores
placement.use_cpu_devices(usable_cores())
placement.cache_compilations(cache)
count = len(jax.devices())
imported = time.perf_counter()
seeds = tuple(range(count))
chosen = benchmarks.get_benchmark(benchmark)
source = benchmarks.sources.load_source(chosen.source, data_dir)
chosen = benchmarks.with_tasks_of(chosen, source.num_classes)
data = benchmarks.draw(chosen, source, seeds)
inputs = place(data, seeds, placement.make_mesh())
loaded = time.perf_counter()
configs = [
    RunConfig(chosen, method, seeds, hyper)
    for method, hyper in zip(methods, presets.resolve(benchmark, methods, {}))
]
programs = compile_programs([[config] for config in configs], inputs)
first = next(programs)
ready = time.perf_counter()
others = [program.compile_s for program in programs]
print(json.dumps({
    "import_s": imported - start,
    "data_s": loaded - imported,
    "compile_s": ready - loaded,
    "until_first_update_s": ready - start,
    "other_methods_compile_s": sum(others),
}))
"""


def _start(settings: Settings, cache: Path, methods: Sequence[str]) -> dict[str, float]:
    data_dir = settings.data_dir and str(settings.data_dir)
    arguments = json.dumps([settings.benchmark.name, data_dir, str(cache), methods])
    script = _SCRIPT.replace("PACKAGE", sys.modules["experiments"].__name__)
    done = subprocess.run(
        [sys.executable, "-c", script, arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"the measured process failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(settings: Settings) -> Sequence[Result]:
    """Measures a start with nothing compiled, and one with jax's persistent cache."""
    methods = ["lamaml"] if settings.quick else ["lamaml", "cmaml", "er", "online"]
    rows = []
    for count in range(1 if settings.quick else settings.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("cold", "warm"):
                found = _start(settings, Path(folder), methods)
                rows.append({"start": f"{name} {count + 1}", **found})
    note = f"{methods[0]} first; other methods: {', '.join(methods[1:]) or 'none'}"
    title = f"Starts of a run on {settings.benchmark.name}, all cores"
    return [Result(title, rows, note)]
