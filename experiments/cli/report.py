"""The command ``report``."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli import starting, terminal
from experiments.cli.options import Plugins, local_only


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
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="What figures are written as beside PNG: svg, pdf, or svg,pdf.",
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Make tables and figures from any set of run folders; never trains."""
    starting.load_plugins(plugin)
    from experiments import report as reporting

    reporting.make_report(
        runs,
        out,
        benches=benches or [],
        formats=terminal.words(formats) or [],
        console=terminal.console,
    )
