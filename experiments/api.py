"""Runs from Python, with the words of the command line."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import run_folder
from experiments.config import plugins, request
from experiments.config.benchmarks import Benchmark
from experiments.data import sources
from experiments.run_folder import NothingToReportError, Run
from experiments.support import stopping
from experiments.support.paths import check_local
from experiments.training import launch, loggers, placement, sessions


def run(
    benchmark: str | Benchmark | None = None,
    methods: str | Sequence[str] | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    out: Path | str | None = None,
    fresh: bool = False,
    config: Path | str | None = None,
    plugin: str | Sequence[str] = (),
    checkpoint_every: float = 60.0,
    logger: Iterable[str | loggers.Logger] = (),
    debug_checks: bool = False,
    data_dir: Path | str | None = None,
    devices: int | None = None,
    mesh: str | None = None,
    console: Console | None = None,
    **fields: Any,
) -> list[Run]:
    """Trains methods on a benchmark, as ``python -m experiments run`` does.

    A run that was interrupted goes on, and a complete one is read and not repeated. The
    devices are those that jax has; on a CPU that is one, unless
    ``jax.config.update("jax_num_cpu_devices", n)`` says otherwise before jax is used.

    Args:
        benchmark: a name from ``list``, or what ``benchmarks.register`` returned.
        methods: names from ``list``.
        seeds: how many, or which.
        out: folder of the results; below ``runs`` if None.
        fresh: whether earlier runs there are replaced.
        config: a file as ``--config`` takes it.
        plugin: files or modules that are imported before.
        checkpoint_every: seconds between checkpoints at least.
        logger: functions, or MODULE:FUNCTION, called with every new line.
        debug_checks: whether the first NaN of a seed that diverges is looked for.
        data_dir: folder of the prepared data sets.
        devices: to use; all if None.
        mesh: SEEDSxROWS, as ``--mesh``.
        console: where progress is shown; ``Console(quiet=True)`` for nowhere.
        **fields: what a configuration file can say: sizes such as ``num_tasks``,
            ``network``, ``setting``, and hyper-parameters.

    Returns:
        The runs of the methods, in their order; those of which no seed has a result are
        told and left out. ``report.make_report`` takes them.

    Raises:
        UserError: what the command line ends with.
        Stopped: by Ctrl-C; the same call goes on.
    """
    console = Console() if console is None else console

    def tell(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    plugins.load([plugin] if isinstance(plugin, str) else plugin)
    given: dict[str, Any] = {
        "benchmark": benchmark.name if isinstance(benchmark, Benchmark) else benchmark,
        "method": [methods] if isinstance(methods, str) else methods and list(methods),
        "seeds": seeds if isinstance(seeds, int | None) else [int(s) for s in seeds],
        **fields,
    }
    stored = {} if config is None else request.read_file(Path(config))
    asked = request.make_request(stored | request.checked_fields(given))
    told = tuple(loggers.load(x) if isinstance(x, str) else x for x in logger)
    launch.tell_presets(request.configs(asked), tell)
    name = request.run_name(asked)
    place = Path("runs") / name if out is None else Path(out)
    data_dir = None if data_dir is None else Path(data_dir)
    for word, path in (("out", place), ("data_dir", data_dir)):
        if path is not None:
            check_local(word, path)
    sources.check_source(asked.benchmark.source, data_dir)
    folders = [place / method for method, _ in asked.hypers]
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopping.requests(tell))
        launch.take_folders(stack, folders, fresh, folders, tell)
        source, groups = launch.load(asked, folders, data_dir)
        todo = launch.incomplete(groups, console)
        if todo:
            device_mesh = placement.chosen_mesh(devices, mesh)
            watch = sessions.Watch(
                console,
                checkpoint_every,
                told,
                debug_checks,
                command=f"experiments.run({name!r}, ...)",
            )
            sessions.run_groups(todo, source, device_mesh, watch)
        stop.check("every run is complete")
        return _read(folders, tell)


def _read(folders: Sequence[Path], tell: Any) -> list[Run]:
    runs = []
    for folder in folders:
        try:
            runs.append(run_folder.read(folder))
        except NothingToReportError as error:
            tell(str(error))
    return runs
