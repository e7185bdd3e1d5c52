"""Figures of a benchmark's runs; matplotlib is imported when the first is drawn."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import run_folder
from experiments.figures.accuracy import bars, curves, evaluated, matrices
from experiments.figures.common import DPI, RC, WIDTH_IN, Entry
from experiments.figures.compute import compute
from experiments.figures.scaling import scaling
from experiments.figures.training import alignment, anytime, probes, step_sizes

__all__ = [
    "DPI",
    "KINDS",
    "WIDTH_IN",
    "Entry",
    "alignment",
    "anytime",
    "bars",
    "compute",
    "curves",
    "evaluated",
    "matrices",
    "probes",
    "save",
    "scaling",
    "step_sizes",
    "write",
]

KINDS: dict[str, Callable[[str, Sequence[Entry]], Any | None]] = {
    "bars": bars,
    "curves": curves,
    "anytime": anytime,
    "tasks": matrices,
    "probes": probes,
    "step-sizes": step_sizes,
    "alignment": alignment,
    "compute": compute,
}
"""A kind returns None where no run has what it shows."""


def write(out_dir: Path, title: str, entries: Sequence[Entry]) -> list[Path]:
    """Draws what figures a benchmark has and writes them as PNG and SVG.

    Args:
        out_dir: an existing folder.
        title: the benchmark; begins the file names.
        entries: its runs, best first.

    Returns:
        The files; the same entries give the same bytes.

    Raises:
        RunFolderError: a file cannot be written.
    """
    from matplotlib import rc_context

    files = []
    with rc_context(RC):
        for kind, draw in KINDS.items():
            figure = draw(title, entries)
            if figure is not None:
                files += _save(figure, out_dir / f"{title}_{kind}")
    return files


def save(draw: Callable[[], Any], path: Path) -> list[Path]:
    """Draws one figure and writes it as PNG and SVG beside ``path``."""
    from matplotlib import rc_context

    with rc_context(RC):
        return _save(draw(), path)


def _save(figure: Any, path: Path) -> list[Path]:
    files = []
    for suffix in ("png", "svg"):
        file = path.with_name(f"{path.name}.{suffix}")
        buffer = io.BytesIO()
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(buffer, format=suffix, metadata=metadata)
        run_folder.write_file(file, buffer.getvalue())
        files.append(file)
    return files
