"""What a person sees of a run while it goes on."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_EVERY_S = 30.0


@contextlib.contextmanager
def show_step(name: str, console: Console) -> Iterator[None]:
    """Shows what goes on: a spinner, or a line where none can turn.

    Args:
        name: of the step, such as "compiling er".
        console: a terminal or a notebook, or anything else.
    """
    if console.is_terminal or console.is_jupyter:
        with console.status(name):
            yield
        return
    console.print(name, soft_wrap=True)
    yield


@contextlib.contextmanager
def show_progress(
    name: str, total: int, console: Console
) -> Iterator[Callable[[int, str], None]]:
    """Shows how many tasks are done: a bar, or lines where no bar can move.

    Args:
        name: of the method.
        total: number of tasks.
        console: a terminal or a notebook, which get a bar; anything else gets a line
            every half a minute at most, and one at the end.

    Yields:
        ``show(done, note)``.
    """
    if console.is_terminal or console.is_jupyter:
        columns = (
            TextColumn("[bold]{task.description:<8}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("tasks  {task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(name, total=total, note="")
            yield lambda done, note: progress.update(bar, completed=done, note=note)
        return
    latest = time.monotonic()

    def show(done: int, note: str) -> None:
        nonlocal latest
        now = time.monotonic()
        if done == total or now - latest >= _LINE_EVERY_S:
            console.print(f"{name}: {done}/{total} tasks  {note}", soft_wrap=True)
            latest = now

    yield show
