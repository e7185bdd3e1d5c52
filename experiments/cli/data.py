"""The commands of ``data``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from experiments.cli import terminal
from experiments.cli.options import DataDir, local_only
from experiments.support import naming, stopping
from experiments.support.errors import UserError

app = typer.Typer(
    help="List and prepare data sets.", no_args_is_help=True, rich_markup_mode=None
)


@app.command(name="list")
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
    terminal.console.print(table)
    if is_any_missing:
        terminal.console.print(
            f"Searched {data_dir or sources.default_data_dir()}. A missing one is "
            f"prepared by `{' '.join(naming.command())} data prepare NAME --from "
            "FOLDER`, with its original archives, or `--download`.",
            markup=False,
        )


@app.command()
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
    terminal.console.print(f"{name} is ready in {folder}")


@app.command()
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
    terminal.console.print(f"{name} is written to {folder}")
