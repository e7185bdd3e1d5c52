"""The command ``bench``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli import starting, terminal
from experiments.cli.options import DataDir, local_only
from experiments.support.errors import UserError


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="update (the default), meta-gradient, cost, convolution, reservoir, "
            "stream, compile, scaling, accelerator, or all of these; peers (PyTorch in "
            "turn with this library).",
        ),
    ] = None,
    benchmark: Annotated[
        str, typer.Option("--benchmark", "-b", help="Name from `list`.")
    ] = "mnist-rotations",
    rounds: Annotated[
        int, typer.Option(help="Rounds in which works take turns; medians count.")
    ] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smallest sizes, to see that all works.")
    ] = False,
    data_dir: DataDir = None,
    devices: Annotated[
        int | None,
        typer.Option(help="Devices to use [default: all]"),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            callback=local_only,
            help="Also write the results here, beside those of other names.",
        ),
    ] = None,
) -> None:
    """Measure speed and memory, as medians of works that take turns."""
    from experiments import bench as benching
    from experiments.bench.settings import Settings
    from experiments.config import benchmarks
    from experiments.data import sources

    names = names or ["update"]
    if "all" in names:
        names = [n for n in benching.BENCHES if n not in benching.OPTIONAL]
    for name in names:
        if name not in benching.BENCHES:
            known = ", ".join([*benching.BENCHES, "all"])
            raise UserError(f"unknown bench {name!r}; choose of: {known}")
    if rounds < 1:
        raise UserError(f"--rounds: expected at least 1, received {rounds}")
    chosen = benchmarks.get_benchmark(benchmark)
    if not set(names) <= set(benching.WITHOUT_DATA):
        sources.check_source(chosen.source, data_dir)
    starting.start_jax(devices, cache=False)
    if json_file is not None and json_file.exists():
        benching.read(json_file)  # a file that is none of ours stops this at once
    for name in dict.fromkeys(names):
        keep = _keeper(name, json_file)
        settings = Settings(chosen, data_dir, rounds, quick, keep)
        with terminal.console.status(f"measuring {name}"):
            results = benching.measure(name, settings)
        benching.show(results, terminal.console)
        keep(results)


def _keeper(name: str, json_file: Path | None) -> Callable[[Sequence[Any]], None]:
    """Returns what writes the results of a bench, so far or all, where one asked."""
    from experiments import bench as benching
    from experiments.run_folder.environment import environment

    here = environment()

    def keep(results: Sequence[Any]) -> None:
        if json_file is not None:
            benching.write(json_file, {name: benching.Record(here, results)})

    return keep
