"""The command line: parses, checks, then calls."""

import contextlib
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.support import naming, printing, stopping
from experiments.support.errors import UserError
from experiments.support.paths import check_local

app = typer.Typer(
    name=" ".join(naming.command()),
    help="Continual-learning benchmarks of La-MAML and its baselines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich cuts names of options where columns are few
)
data_app = typer.Typer(
    help="List and prepare data sets.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")
console = printing.LastingConsole()


class Acceptance(StrEnum):
    """Rules by which a full reservoir accepts a row."""

    exact = "exact"
    published = "published"


class Objective(StrEnum):
    """Query losses that make the meta-loss."""

    mean = "mean"
    last = "last"


class Setting(StrEnum):
    """Whether learners are told of tasks."""

    aware = "aware"
    agnostic = "agnostic"


class Precision(StrEnum):
    """What networks compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Passes(StrEnum):
    """Passes over each task, and whose presets."""

    single = "single"
    multi = "multi"


def local_only(param: typer.CallbackParam, value: Any) -> Any:
    """Refuses an option's path or paths if they are addresses of object stores."""
    for path in value if isinstance(value, list | tuple) else [value]:
        if path is not None:
            check_local(param.opts[0], path)
    return value


DataDir = Annotated[
    Path | None,
    typer.Option(
        callback=local_only,
        help="Folder of the prepared data sets [default: $TFDS_DATA_DIR or "
        "~/tensorflow_datasets]",
        show_default=False,
    ),
]


def _hyper(help_text: str) -> typer.models.OptionInfo:
    return typer.Option(help=help_text, show_default=False)


def use_devices(devices: int | None) -> None:
    """Imports jax with that many devices on a CPU; None for one per core."""
    from experiments.training import placement

    count = devices if devices is not None else os.cpu_count() or 1
    if count < 1:
        raise UserError(f"--devices: expected at least 1, received {count}")
    placement.use_cpu_devices(count)


def _load_plugins(plugin: list[str] | None, devices: int | None = None) -> None:
    """Imports a person's own files, which may compute with jax when they are."""
    if plugin:
        from experiments.config import plugins

        use_devices(devices)
        plugins.load(plugin)


def start_jax(devices: int | None, cache: bool, processes: Any = None) -> None:
    """Imports jax with one device per core on a CPU, and with its persistent cache.

    Args:
        devices: of each process, on a CPU; None for one per core.
        cache: whether to keep compiled programs.
        processes: arguments of ``placement.join_processes``, if there are several.
    """
    from experiments.training import placement

    use_devices(devices)
    if cache:
        import platformdirs

        placement.cache_compilations(platformdirs.user_cache_path("lamaml_jax") / "jax")
    if processes is not None:
        placement.join_processes(*processes)


def _tell(text: str) -> None:
    """Shows a sentence as it is."""
    console.print(text, soft_wrap=True, markup=False)


def _words(given: list[str] | None) -> list[str] | None:
    """Takes options that are repeated apart, and what commas join."""
    words = [word.strip() for text in given or [] for word in text.split(",")]
    return [word for word in words if word] or None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Drops what was not given, and turns choices into their words."""
    return {
        name: value.value if isinstance(value, StrEnum) else value
        for name, value in values.items()
        if value is not None
    }


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=local_only,
        help="Read options from this file: YAML, or the config.json of a run folder, "
        "which is run again. What is given here goes before what is there.",
        show_default=False,
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        "-m",
        help="Name from `list`; repeat it or join them by commas for several "
        "[default: lamaml, cmaml, er, online]",
        show_default=False,
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        help="Number of seeds, run side by side [default: 5]", show_default=False
    ),
]
FirstSeed = Annotated[
    int | None,
    typer.Option(help="The first of them [default: 0]", show_default=False),
]
StreamSeed = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Decides the tasks' angles or permutations for all seeds, as in the "
        "authors' protocol [default: each seed has its own]",
        show_default=False,
    ),
]
SettingOption = Annotated[
    Setting | None,
    typer.Option(
        "--setting",
        help="Aware: learners are told task ids, and a benchmark whose tasks have "
        "classes of their own has a head per task. Agnostic: one head over all "
        "classes, and no task id or boundary reaches the learner. "
        "[default: aware]",
        show_default=False,
    ),
]
PassesOption = Annotated[
    Passes | None,
    typer.Option(
        "--passes",
        help="Presets for one pass over each task (with glances) or for several "
        "[default: single]",
        show_default=False,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Start over, replacing earlier runs in that folder. Without it the same "
        "command goes on with what was interrupted, and leaves what is complete.",
    ),
]
CheckpointEvery = Annotated[
    float, typer.Option(min=0, help="Seconds between checkpoints at least.")
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        help="What networks compute in; weights are float32 [default: float32]",
        show_default=False,
    ),
]
CompileCache = Annotated[
    bool, typer.Option(help="Keep compiled programs for later runs.")
]
Devices = Annotated[
    int | None,
    typer.Option(
        help="Devices of each process on a CPU, or of all on accelerators "
        "[default: all there are]",
        show_default=False,
    ),
]
NumTasks = Annotated[
    int | None, _hyper("Tasks of the stream (fewer is not the benchmark).")
]
RowsPerTask = Annotated[int | None, _hyper("Training rows per task.")]
NetworkOption = Annotated[
    str | None,
    typer.Option(
        "--network",
        help="Name of a network that a plugin registers [default: the benchmark's]",
        show_default=False,
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE_OR_MODULE",
        help="First import this file of yours, which registers benchmarks, methods or "
        "networks; repeat it for several.",
        show_default=False,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other hyper-parameter that `list` shows, such as --set momentum=0.9; "
        "repeat it for several.",
        show_default=False,
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        import lamaml_jax as lm

        typer.echo(f"lamaml_jax {lm.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the version and end.",
        ),
    ] = False,
) -> None:
    """Continual-learning benchmarks of La-MAML and its baselines."""
    del version


@app.command()
def run(
    context: typer.Context,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            "-b",
            help="Name from `list` [default: digits-rotations]",
            show_default=False,
        ),
    ] = None,
    method: Methods = None,
    config: Config = None,
    seeds: Seeds = None,
    first_seed: FirstSeed = None,
    stream_seed: StreamSeed = None,
    setting: SettingOption = None,
    passes: PassesOption = None,
    probes: Annotated[
        bool | None,
        typer.Option(
            "--probes/--no-probes",
            help="Also take the accuracy at the fast and the slow weights about every "
            "25 meta-updates through the first five tasks.",
            show_default=False,
        ),
    ] = None,
    alignment: Annotated[
        bool | None,
        typer.Option(
            "--alignment/--no-alignment",
            help="Also take the cosines between the gradients of the tasks' losses.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=local_only,
            help="Folder of the results [default: runs/BENCHMARK, with -PASSES or "
            "-SETTING if they are not the default]",
            show_default=False,
        ),
    ] = None,
    fresh: Fresh = False,
    checkpoint_every: CheckpointEvery = 60.0,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", help="Also write event files to each run's folder."
        ),
    ] = False,
    logger: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Also call this function with a run's folder and every new line of "
            "its evaluations.jsonl, as a dict; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    debug_checks: Annotated[
        bool,
        typer.Option(
            "--debug-checks",
            help="If a seed diverges, find the line of code where its first NaN "
            "comes from.",
        ),
    ] = False,
    data_dir: DataDir = None,
    precision: PrecisionOption = None,
    compile_cache: CompileCache = True,
    devices: Devices = None,
    mesh: Annotated[
        str | None,
        typer.Option(
            metavar="SEEDSxROWS",
            help="Groups of devices over which the seeds are spread, times devices in "
            "each group, which share the rows of support and query, such as 4x2 "
            "[default: a group per device]",
            show_default=False,
        ),
    ] = None,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed",
            help="Join the other processes of this run; each is started by the same "
            "command. On TPU pods and under SLURM nothing else is needed.",
        ),
    ] = False,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="JAX_COORDINATOR_ADDRESS",
            help="Where process 0 listens.",
            show_default=False,
        ),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(
            envvar="JAX_NUM_PROCESSES",
            help="Processes of this run.",
            show_default=False,
        ),
    ] = None,
    process_id: Annotated[
        int | None,
        typer.Option(
            envvar="JAX_PROCESS_ID",
            help="This one's number, from 0.",
            show_default=False,
        ),
    ] = None,
    num_tasks: NumTasks = None,
    rows_per_task: RowsPerTask = None,
    classes_per_task: Annotated[
        int | None, _hyper("Classes per task, where tasks have their own.")
    ] = None,
    blur: Annotated[
        float | None, _hyper("Share of each task's rows shown in other tasks' time.")
    ] = None,
    eval_every: Annotated[
        int | None, _hyper("Evaluate on all tasks after every this many.")
    ] = None,
    batch_size: Annotated[int | None, _hyper("Rows per incoming batch.")] = None,
    glances: Annotated[int | None, _hyper("Updates per incoming batch.")] = None,
    epochs: Annotated[int | None, _hyper("Passes over each task.")] = None,
    capacity: Annotated[int | None, _hyper("Rows of the reservoir.")] = None,
    replay_size: Annotated[int | None, _hyper("Rows replayed per update.")] = None,
    acceptance: Annotated[
        Acceptance | None, _hyper("The reservoir's rule once it is full.")
    ] = None,
    inner_steps: Annotated[int | None, _hyper("Inner steps K.")] = None,
    step_size_init: Annotated[float | None, _hyper("Initial step sizes.")] = None,
    step_size_learning_rate: Annotated[
        float | None, _hyper("Learning rate of the step sizes (eta).")
    ] = None,
    learning_rate: Annotated[
        float | None, _hyper("Learning rate of the weights (not La-MAML).")
    ] = None,
    max_grad_norm: Annotated[float | None, _hyper("Clipping norm.")] = None,
    first_order: Annotated[
        bool | None, _hyper("Hold inner gradients constant, or differentiate them.")
    ] = None,
    objective: Annotated[
        Objective | None, _hyper("Meta-loss: mean over inner steps, or the last.")
    ] = None,
    network: NetworkOption = None,
    settings: Settings = None,
    plugin: Plugins = None,
) -> None:
    """Train methods on a benchmark and report RA and BTI.

    Without options: La-MAML, C-MAML, ER and Online on digits-rotations, five seeds,
    in about 35 s on two cores, with no download.

    Sizes and hyper-parameters, the options from --num-tasks on, are the published ones
    unless given; `list BENCHMARK` shows them.
    """
    given = _plain(
        {
            "benchmark": benchmark,
            "method": _words(method),
            "seeds": seeds,
            "first_seed": first_seed,
            "stream_seed": stream_seed,
            "setting": setting,
            "passes": passes,
            "probes": probes,
            "alignment": alignment,
            "precision": precision,
            "num_tasks": num_tasks,
            "rows_per_task": rows_per_task,
            "classes_per_task": classes_per_task,
            "blur": blur,
            "eval_every": eval_every,
            "batch_size": batch_size,
            "glances": glances,
            "epochs": epochs,
            "capacity": capacity,
            "replay_size": replay_size,
            "acceptance": acceptance,
            "inner_steps": inner_steps,
            "step_size_init": step_size_init,
            "step_size_learning_rate": step_size_learning_rate,
            "learning_rate": learning_rate,
            "max_grad_norm": max_grad_norm,
            "first_order": first_order,
            "objective": objective,
            "network": network,
        }
    )
    _load_plugins(plugin, devices)
    from experiments.config import request
    from experiments.data import sources
    from experiments.methods import hyperparameters
    from experiments.training import launch, loggers, placement, sessions
    from experiments.training.storing import Part

    if debug_checks and distributed:
        raise UserError("--debug-checks: not with --distributed; run it in one process")
    told = [loggers.load(text) for text in logger or []]
    if tensorboard:
        told.append(loggers.tensorboard())
    stored = {} if config is None else request.read_file(config)
    asked = request.make_request(stored | given | hyperparameters.parse(settings or []))
    planned = request.configs(asked)
    chosen = asked.benchmark
    sources.check_source(chosen.source, data_dir)
    name = request.run_name(asked)
    held = context.with_resource(contextlib.ExitStack())
    hearing = context.with_resource(contextlib.ExitStack())
    stop = hearing.enter_context(stopping.requests(_tell))
    out = out or Path("runs") / name
    folders = [out / method for method, _ in asked.hypers]
    if distributed:
        processes = coordinator, num_processes, process_id
        start_jax(devices, compile_cache, processes)
        console.quiet = not placement.is_first_process()
        if placement.is_first_process():
            launch.take_folders(held, folders, fresh, folders, _tell)
    else:
        launch.take_folders(held, folders, fresh, folders, _tell)
        start_jax(devices, compile_cache)
    launch.tell_presets(planned, _tell)
    source = sources.load_source(chosen.source, data_dir)
    groups = [
        [Part(each, folder)]
        for each, folder in zip(
            request.configs(asked, source.num_classes), folders, strict=True
        )
    ]
    device_mesh = placement.chosen_mesh(devices, mesh, distributed)
    todo = launch.incomplete(groups, console)
    diverged = {}
    if todo:
        console.print(f"[bold]{name}[/]: results in {out}", soft_wrap=True)
        watch = sessions.Watch(console, checkpoint_every, tuple(told), debug_checks)
        diverged = sessions.run_groups(todo, source, device_mesh, watch)
    if not placement.is_first_process():
        return
    stop.check("every run is complete; the report is not made yet")
    hearing.close()
    from experiments import report as reporting

    _tell_diverged(diverged)
    reporting.make_report(folders, out / "report", console=console)
    if any(diverged.values()):
        raise typer.Exit(1)


def _tell_diverged(diverged: dict[Path, list[int]]) -> None:
    """Names the seeds without a result."""
    for folder, lost in diverged.items():
        if lost:
            fail(f"{folder.name}: seeds {lost} diverged; their accuracies are left out")


@app.command()
def sweep(
    context: typer.Context,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            "-b",
            help="Name from `list`; repeat it for several [default: digits-rotations]",
            show_default=False,
        ),
    ] = None,
    method: Methods = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="NAME=VALUE,...",
            help="Values of a hyper-parameter that `list` shows; repeat it for "
            "several, of which every combination is tried.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    seeds: Seeds = None,
    first_seed: FirstSeed = None,
    stream_seed: StreamSeed = None,
    setting: SettingOption = None,
    passes: PassesOption = None,
    out: Annotated[
        Path, typer.Option(callback=local_only, help="Folder of the runs and tables.")
    ] = Path("sweeps"),
    fresh: Fresh = False,
    at_a_time: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Points trained side by side at most [default: all that share a "
            "compiled program]",
            show_default=False,
        ),
    ] = None,
    checkpoint_every: CheckpointEvery = 60.0,
    data_dir: DataDir = None,
    precision: PrecisionOption = None,
    compile_cache: CompileCache = True,
    devices: Devices = None,
    num_tasks: NumTasks = None,
    rows_per_task: RowsPerTask = None,
    network: NetworkOption = None,
    settings: Settings = None,
    plugin: Plugins = None,
) -> None:
    """Try grids of hyper-parameters on validation tasks, and rank them.

    Tasks are drawn anew and evaluated on a tenth of the training rows that is held out:
    no test row or test task is seen. Points that differ in numbers only (learning
    rates, clips, shares) are trained side by side in one compiled program. A sweep that
    was interrupted goes on by the same command. Each method's best point is written to
    best.json, for `run --config`.
    """
    given = _plain(
        {
            "benchmark": _words(benchmark),
            "method": _words(method),
            "seeds": seeds,
            "first_seed": first_seed,
            "stream_seed": stream_seed,
            "setting": setting,
            "passes": passes,
            "precision": precision,
            "num_tasks": num_tasks,
            "rows_per_task": rows_per_task,
            "network": network,
        }
    )
    _load_plugins(plugin, devices)
    from experiments.config import request
    from experiments.data import sources
    from experiments.methods import hyperparameters
    from experiments.report.leaderboard import leaderboard
    from experiments.training import launch, placement, sessions
    from experiments.training import sweep as sweeping
    from experiments.training.storing import Part

    stored = {} if config is None else request.read_file(config)
    tried = stored.get("grid", {}) | hyperparameters.parse_grid(grid or [])
    given |= hyperparameters.parse(settings or []) | {"grid": tried}
    points = sweeping.plan(stored | given)
    planned = []
    for point in points:
        planned += request.configs(point.asked)
        sources.check_source(point.asked.benchmark.source, data_dir)
    folders = [out / point.folder for point in points]
    by_method = list(dict.fromkeys(folder.parent for folder in folders))
    held = context.with_resource(contextlib.ExitStack())
    hearing = context.with_resource(contextlib.ExitStack())
    stop = hearing.enter_context(stopping.requests(_tell))
    launch.take_folders(held, folders, fresh, by_method, _tell)
    start_jax(devices, compile_cache)
    launch.tell_presets(planned, _tell)
    mesh = placement.make_mesh(devices)
    diverged = {}
    for name in dict.fromkeys(point.asked.benchmark.name for point in points):
        own = [point for point in points if point.asked.benchmark.name == name]
        source = sources.load_source(own[0].asked.benchmark.source, data_dir)
        stop.check(f"the points on {name} had not begun")
        parts = [
            Part(each, out / point.folder)
            for point in own
            for each in request.configs(point.asked, source.num_classes)
        ]
        todo = launch.incomplete(list(sweeping.groups(parts, at_a_time)), console)
        console.print(f"[bold]{name}[/]: {len(parts)} points; results in {out}")
        watch = sessions.Watch(console, checkpoint_every)
        diverged |= sessions.run_groups(todo, source, mesh, watch)
    stop.check("every point is complete; the leaderboard is not made yet")
    hearing.close()
    _tell_diverged(diverged)
    leaderboard(folders, out, console, plugin or [])


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(callback=local_only, help="Run folders, or their parents."),
    ],
    out: Annotated[
        Path, typer.Option(callback=local_only, help="Folder of tables and figures.")
    ] = Path("report"),
    benches: Annotated[
        list[Path] | None,
        typer.Option(
            "--bench",
            callback=local_only,
            help="Record of `bench --json`: its tables join the page, its scaling is "
            "drawn; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="What figures are written as beside PNG: svg, pdf, or svg,pdf.",
            show_default=False,
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Make tables and figures from any set of run folders; never trains."""
    _load_plugins(plugin)
    from experiments import report as reporting

    reporting.make_report(
        runs,
        out,
        benches=benches or [],
        formats=_words(formats) or [],
        console=console,
    )


@app.command(name="list")
def list_(
    benchmark: Annotated[
        str | None, typer.Argument(help="Show the hyper-parameters on this one.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """List benchmarks and methods, or the published hyper-parameters on one."""
    _load_plugins(plugin)
    from experiments.cli import listing
    from experiments.config import benchmarks

    if benchmark is None:
        listing.show_names(console)
    else:
        listing.show_values(benchmarks.get_benchmark(benchmark).name, console)


@data_app.command(name="list")
def list_data(data_dir: DataDir = None) -> None:
    """Show which data sets are ready to use."""
    from experiments.data import sources

    table = Table(title="Data sets")
    table.add_column("data set")
    table.add_column("state")
    is_any_missing = False
    for name in sources.source_names():
        try:
            sources.check_source(name, data_dir)
            state = "ready"
        except sources.MissingError:
            state, is_any_missing = "missing", True
        except UserError as error:
            state = str(error)
        table.add_row(name, state)
    console.print(table)
    if is_any_missing:
        console.print(
            f"Searched {data_dir or sources.default_data_dir()}. A missing one is "
            f"prepared by `{app.info.name} data prepare NAME --from FOLDER`, with "
            "its original archives, or `--download`.",
            markup=False,
        )


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="Data set from `data list`.")],
    data_dir: DataDir = None,
    archives: Annotated[
        Path | None,
        typer.Option(
            "--from",
            callback=local_only,
            help="Folder with the data set's original archives.",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the archives from their home.")
    ] = False,
) -> None:
    """Prepare a data set from its archives, without TensorFlow."""
    from experiments.data import prepare as preparing

    stopping.exit_cleanly()
    folder = preparing.prepare(name, data_dir, archives, download)
    console.print(f"{name} is ready in {folder}")


@data_app.command()
def export(
    name: Annotated[str, typer.Argument(help="Data set from `data list`.")],
    to: Annotated[
        Path,
        typer.Option(
            callback=local_only, help="Folder to use as --data-dir elsewhere."
        ),
    ],
    data_dir: DataDir = None,
) -> None:
    """Write a prepared data set as plain arrays, to be read without TFDS."""
    from experiments.data import sources

    folder = sources.write_arrays(sources.load_source(name, data_dir), name, to)
    console.print(f"{name} is written to {folder}")


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="update (the default), meta-gradient, reservoir, stream, compile, "
            "scaling, or all of these; peers (PyTorch in turn with this library).",
            show_default=False,
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
        typer.Option(help="Devices to use [default: all]", show_default=False),
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
    from experiments.run_folder.environment import environment

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
    sources.check_source(chosen.source, data_dir)
    start_jax(devices, cache=False)
    if json_file is not None and json_file.exists():
        benching.read(json_file)  # a file that is none of ours stops this at once
    for name in dict.fromkeys(names):
        here = environment()

        def keep(results, name=name, here=here):
            if json_file is not None:
                record = benching.Record(here, results)
                benching.write(json_file, {name: record})

        settings = Settings(chosen, data_dir, rounds, quick, keep)
        with console.status(f"measuring {name}"):
            results = benching.measure(name, settings)
        benching.show(results, console)
        keep(results)


def fail(message: str) -> None:
    """Says on the terminal what went wrong."""
    errors = Console(stderr=True)
    errors.print("[bold red]error:[/]", Text(message), soft_wrap=True)


def main() -> None:
    """Runs the command line; a ``UserError`` is one line and exit status 2.

    A run that was stopped by a signal ends with 128 plus its number, 130 for Ctrl-C.
    """
    printing.never_fail()
    try:
        app()
    except UserError as error:
        fail(str(error))
        sys.exit(2)
    except stopping.Stopped as stop:
        same = "the same command" + " without --fresh" * ("--fresh" in sys.argv)
        text = Text(f"{stop}; {same} goes on from there")
        Console(stderr=True).print(text, soft_wrap=True)
        sys.exit(stop.status)
