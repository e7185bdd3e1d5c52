"""The command line: its commands, and its two error exits."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from experiments.cli import bench, data, report, run, starting, sweep, terminal
from experiments.cli.options import Plugins
from experiments.support import naming, printing, stopping
from experiments.support.errors import UserError

app = typer.Typer(
    name=" ".join(naming.command()),
    help="Continual-learning benchmarks of La-MAML and its baselines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich cuts names of options where columns are few
)


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


app.command()(run.run)
app.command()(sweep.sweep)
app.command()(report.report)


@app.command(name="list")
def list_(
    benchmark: Annotated[
        str | None, typer.Argument(help="Show the hyper-parameters on this one.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """List benchmarks and methods, or the published hyper-parameters on one."""
    starting.load_plugins(plugin)
    from experiments.cli import listing
    from experiments.config import benchmarks

    if benchmark is None:
        listing.show_names(terminal.console)
    else:
        listing.show_values(benchmarks.get_benchmark(benchmark).name, terminal.console)


app.add_typer(data.app, name="data")
app.command()(bench.bench)


def main() -> None:
    """Runs the command line; a ``UserError`` is one line and exit status 2.

    A run that was stopped by a signal ends with 128 plus its number, 130 for Ctrl-C.
    """
    printing.never_fail()
    try:
        app()
    except UserError as error:
        terminal.fail(str(error))
        sys.exit(2)
    except stopping.Stopped as stop:
        same = "the same command" + " without --fresh" * ("--fresh" in sys.argv)
        text = Text(f"{stop}; {same} goes on from there")
        Console(stderr=True).print(text, soft_wrap=True)
        sys.exit(stop.status)
