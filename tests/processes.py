"""Commands that tests run in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Of any one process: minutes more than it takes on a machine as busy as ours gets.
LONGEST_S = 600


def experiments(*arguments: object) -> list[object]:
    """The words of ``python -m experiments`` with these arguments."""
    return [sys.executable, "-m", "experiments", *arguments]


def start(
    command: Sequence[object], folder: Path = ROOT, **environment: str
) -> subprocess.Popen[str]:
    """Starts a command; its standard output and errors are one stream of text.

    Args:
        command: its words.
        folder: where it runs.
        **environment: variables beside those of this process.
    """
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], status: int = 0) -> str:
    """Waits for a process that must end with this status; returns what it printed."""
    text, _ = process.communicate(timeout=LONGEST_S)
    assert process.returncode == status, text
    return text


def run(
    command: Sequence[object],
    folder: Path = ROOT,
    encoding: str = "utf-8",
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, however that is, and keeps its errors apart.

    Args:
        command: its words.
        folder: where it runs.
        encoding: of what it prints.
        **environment: variables beside those of this process.
    """
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        encoding=encoding,
        timeout=LONGEST_S,
        check=False,
    )


def said(command: Sequence[object], folder: Path, path: Path) -> str:
    """Runs a command that must end well; returns what it printed, on one line.

    Args:
        command: its words.
        folder: where it runs.
        path: where Python looks for packages first.
    """
    done = run(command, folder, PYTHONPATH=str(path), COLUMNS="100")
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())
