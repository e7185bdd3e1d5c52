"""What a person sees of a run while it goes on, and how they end it."""

import contextlib
import os
import signal
import threading
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
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A run was asked to stop, and has saved where it is."""

    def __init__(self, number: int):
        """Keeps the signal's number, for the exit status."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


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


@contextlib.contextmanager
def stop_requests(console: Console) -> Iterator[Callable[[], int]]:
    """Turns the first Ctrl-C or SIGTERM into a request, and the second into the end.

    Args:
        console: told that the run will stop.

    Yields:
        A function that returns the signal's number, or 0 if none has come. Outside of
        the main thread, where Python takes no signals, it always returns 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received = 0

    def handle(number: int, frame: object) -> None:
        del frame
        nonlocal received
        if received:
            os._exit(128 + number)
        received = number
        console.print("saving after this task; once more to stop at once")

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield lambda: received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
