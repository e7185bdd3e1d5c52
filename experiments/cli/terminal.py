"""What commands share: what they print, and how jax is started."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from experiments.support import printing
from experiments.support.errors import UserError

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


def use_devices(devices: int | None) -> None:
    """Imports jax with that many devices on a CPU; None for one per core."""
    from experiments.training import placement

    count = devices if devices is not None else os.cpu_count() or 1
    if count < 1:
        raise UserError(f"--devices: expected at least 1, received {count}")
    placement.use_cpu_devices(count)


def load_plugins(plugin: list[str] | None, devices: int | None = None) -> None:
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
