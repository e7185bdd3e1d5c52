"""What commands print, and words that they are given."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from experiments.support import printing

console = printing.LastingConsole()


def tell(text: str) -> None:
    """Shows a sentence as it is."""
    console.print(text, soft_wrap=True, markup=False)


def fail(message: str) -> None:
    """Says on the terminal what went wrong."""
    errors = Console(stderr=True)
    errors.print("[bold red]error:[/]", Text(message), soft_wrap=True)


def tell_diverged(diverged: Mapping[Path, list[int]]) -> None:
    """Names the seeds without a result, by the folder of their run."""
    for folder, lost in diverged.items():
        if lost:
            fail(f"{folder.name}: seeds {lost} diverged; their accuracies are left out")


def words(given: Sequence[str] | None) -> list[str] | None:
    """Takes words that are repeated apart, and what commas join; None if none is."""
    split = [word.strip() for text in given or [] for word in text.split(",")]
    return [word for word in split if word] or None
