"""Commands that tests run in processes of their own."""

import os
import subprocess


def said(command, folder, path):
    """Runs a command that must end well; returns what it printed, on one line.

    Args:
        command: its words.
        folder: where it runs.
        path: where Python looks for packages first.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(path), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())
