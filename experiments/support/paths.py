"""Folders and files are those of this machine, or mounted on it."""

import re
from pathlib import Path

from experiments.support.errors import UserError

# pathlib makes one slash of two, so gs://bucket is gs:/bucket by then; a single letter
# is a drive.
_ADDRESS = re.compile(r"(\w[\w+.-]+):/+")


def check_local(name: str, path: Path) -> None:
    """Checks that a path is no address of an object store or a server.

    Writes here are whole files or nothing, and a folder is locked while a run lives;
    object stores give neither a rename nor a lock.

    Args:
        name: of the option or variable that gave it.
        path: as given.

    Raises:
        UserError: it is one.
    """
    if match := _ADDRESS.match(str(path)):
        address = f"{match[1]}://{str(path)[match.end() :]}"
        raise UserError(
            f"{name}: expected a path on this machine, received {address!r}; mount it "
            "(gcsfuse, s3fs), or use a local folder and copy it"
        )
