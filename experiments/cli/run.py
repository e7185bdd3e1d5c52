"""The command ``run``."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.cli import options, starting, terminal
from experiments.support import stopping
from experiments.support.errors import UserError

if TYPE_CHECKING:  # jax is imported once devices are chosen
    from experiments.config.request import Request
    from experiments.training import loggers


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDoing(options.Doing):
    """Where and how ``run`` works."""

    out: Path | None = None
    """Folder of the results [default: runs/BENCHMARK, with -PASSES or -SETTING if they
    are not the default]"""
    tensorboard: bool = False
    """Also write event files to each run's folder."""
    logger: Annotated[list[str] | None, typer.Option(metavar="MODULE:FUNCTION")] = None
    """Also call this function with a run's folder and every new line of its
    evaluations.jsonl, as a dict; repeat it for several."""
    debug_checks: bool = False
    """If a seed diverges, find the line of code where its first NaN comes from."""
    mesh: Annotated[str | None, typer.Option(metavar="SEEDSxROWS")] = None
    """Groups of devices over which the seeds are spread, times devices in each group,
    which share the rows of support and query, such as 4x2 [default: a group per
    device]"""
    distributed: bool = False
    """Join the other processes of this run; each is started by the same command. On TPU
    pods and under SLURM nothing else is needed."""
    coordinator: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", envvar="JAX_COORDINATOR_ADDRESS"),
    ] = None
    """Where process 0 listens."""
    num_processes: Annotated[int | None, typer.Option(envvar="JAX_NUM_PROCESSES")] = (
        None
    )
    """Processes of this run."""
    process_id: Annotated[int | None, typer.Option(envvar="JAX_PROCESS_ID")] = None
    """This one's number, from 0."""


@options.takes(
    [*options.own_options(options.Words), *options.protocol_options()],
    RunDoing,
    [*options.size_options(), *options.hyper_options()],
)
def run(context: typer.Context, given: dict[str, Any], doing: RunDoing) -> None:
    """Train methods on a benchmark and report RA and BTI.

    Without options: La-MAML, C-MAML, ER and Online on digits-rotations, five seeds,
    in about 35 s on two cores, with no download.

    Sizes and hyper-parameters, the options from --num-tasks on, are the published ones
    unless given; `list BENCHMARK` shows them.
    """
    starting.load_plugins(doing.plugin, doing.devices)
    from experiments.config import request
    from experiments.data import sources
    from experiments.training import launch, placement

    if doing.debug_checks and doing.distributed:
        raise UserError("--debug-checks: not with --distributed; run it in one process")
    told = _loggers(doing)
    asked = _request(given, doing)
    planned = request.configs(asked)
    out = doing.out or Path("runs") / request.run_name(asked)
    sources.check_source(asked.benchmark.source, doing.data_dir)
    folders = [out / method for method, _ in asked.hypers]
    held = context.with_resource(contextlib.ExitStack())
    hearing = context.with_resource(contextlib.ExitStack())
    stop = hearing.enter_context(stopping.requests(terminal.tell))
    _begin(held, folders, doing)
    launch.tell_presets(planned, terminal.tell)
    diverged = _train(asked, folders, doing, told)
    if not placement.is_first_process():
        return
    stop.check("every run is complete; the report is not made yet")
    hearing.close()
    from experiments import report

    terminal.tell_diverged(diverged)
    report.make_report(folders, out / "report", console=terminal.console)
    if any(diverged.values()):
        raise typer.Exit(1)


def _loggers(doing: RunDoing) -> "tuple[loggers.Logger, ...]":
    """Finds what is called with every line of evaluations."""
    from experiments.training import loggers

    told = [loggers.load(text) for text in doing.logger or []]
    return (*told, *([loggers.tensorboard()] if doing.tensorboard else []))


def _request(given: dict[str, Any], doing: RunDoing) -> "Request":
    """Puts together what the file says, and before it what options do."""
    from experiments.config import request, settings

    stored = {} if doing.config is None else request.read_file(doing.config)
    named = terminal.words(given.get("method"))
    given |= {} if named is None else {"method": named}
    return request.make_request(stored | given | settings.parse(doing.settings or []))


def _begin(
    held: contextlib.ExitStack, folders: Sequence[Path], doing: RunDoing
) -> None:
    """Locks the folders and starts jax, in the order that several processes need."""
    from experiments.training import launch, placement

    def take() -> None:
        launch.take_folders(held, folders, doing.fresh, folders, terminal.tell)

    if not doing.distributed:
        take()
        starting.start_jax(doing.devices, doing.compile_cache)
        return
    processes = doing.coordinator, doing.num_processes, doing.process_id
    starting.start_jax(doing.devices, doing.compile_cache, processes)
    is_first = placement.is_first_process()
    terminal.console.quiet = not is_first
    if is_first:
        take()


def _train(
    asked: "Request", folders: Sequence[Path], doing: RunDoing, told: Sequence[Any]
) -> dict[Path, list[int]]:
    """Trains what is not complete; returns the seeds that diverged, by folder."""
    from experiments.config import request
    from experiments.training import launch, placement, sessions

    source, groups = launch.load(asked, folders, doing.data_dir)
    mesh = placement.chosen_mesh(doing.devices, doing.mesh, doing.distributed)
    todo = launch.incomplete(groups, terminal.console)
    if not todo:
        return {}
    name, out = request.run_name(asked), folders[0].parent
    terminal.console.print(f"[bold]{name}[/]: results in {out}", soft_wrap=True)
    watch = sessions.Watch(
        terminal.console, doing.checkpoint_every, tuple(told), doing.debug_checks
    )
    return sessions.run_groups(todo, source, mesh, watch)
