"""Figures of a benchmark's runs; matplotlib is imported when the first is drawn."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import run_folder
from experiments.report.figures.accuracy import bars, curves, evaluated, matrices
from experiments.report.figures.common import DPI, RC, WIDTH_IN, Entry
from experiments.report.figures.compute import compute
from experiments.report.figures.scaling import scaling
from experiments.report.figures.training import alignment, anytime, probes, step_sizes

__all__ = [
    "DPI",
    "FORMATS",
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


FORMATS = ("svg", "pdf")
"""What figures can be written as beside PNG."""


def write(
    out_dir: Path, title: str, entries: Sequence[Entry], formats: Sequence[str] = ()
) -> list[Path]:
    """Draws what figures a benchmark has and writes them as PNG, and as asked.

    Args:
        out_dir: an existing folder.
        title: the benchmark; begins the file names.
        entries: its runs, best first.
        formats: of ``FORMATS``.

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
                files += _save(figure, out_dir / f"{title}_{kind}", formats)
    return files


def save(
    draw: Callable[[], Any], path: Path, formats: Sequence[str] = ()
) -> list[Path]:
    """Draws one figure and writes it as PNG, and in ``formats``, beside ``path``."""
    from matplotlib import rc_context

    with rc_context(RC):
        return _save(draw(), path, formats)


# Without a date, so that the same runs give the same bytes.
_METADATA = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def _save(figure: Any, path: Path, formats: Sequence[str]) -> list[Path]:
    files = []
    for suffix in dict.fromkeys(("png", *formats)):
        file = path.with_name(f"{path.name}.{suffix}")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=_METADATA.get(suffix))
        run_folder.write_file(file, buffer.getvalue())
        files.append(file)
    return files
