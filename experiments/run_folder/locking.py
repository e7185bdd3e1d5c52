"""Keeps a folder for one process at a time.

The lock is the operating system's own (flock, by ``filelock``), not a file whose
presence means "taken": the kernel gives it back the moment its process ends, however
it ends, so that a killed run leaves nothing that a person would have to remove, and no
process is ever taken for alive because another one got its number. Linux passes such
locks on to the server of NFS and of most cluster file systems, so that they hold
between hosts. Where a file system has none, ``filelock`` falls back to marker files
and breaks those of dead processes of the same host.

The empty lock file stays when the lock is given back: removing it would let two
processes lock two files of the same name. Who holds the lock is told by a file beside
it, which only a process that died leaves behind.
"""

import contextlib
import datetime
import json
import os
import shlex
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock

from experiments.run_folder import layout
from experiments.run_folder.layout import RunFolderError
from experiments.run_folder.writing import make_folder, unwritable, write_file

_PATIENCE_S = 1.0
"""How long a process that has just taken the lock may need to say who it is."""


@contextlib.contextmanager
def held(folders: Iterable[Path], tell: Callable[[str], None]) -> Iterator[None]:
    """Holds the locks of folders; refused before anything in them is touched.

    Args:
        folders: made if need be.
        tell: given a sentence about each process that died while it held a lock, and
            about a file system without locks.

    Yields:
        Nothing; the locks are given back afterwards.

    Raises:
        RunFolderError: another process holds one, or a folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(_held(Path(folder), tell))
        yield


@contextlib.contextmanager
def _held(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    make_folder(folder)
    lock = filelock.FileLock(folder / layout.LOCK, thread_local=False)
    try:
        with warnings.catch_warnings():  # of the fallback to marker files
            warnings.simplefilter("ignore")
            lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise _taken(folder) from error
    except NotImplementedError:
        tell(f"{folder}: this file system has no locks; start one process at a time")
    except OSError as error:
        raise unwritable(folder / layout.LOCK, error) from error
    holder = folder / layout.HOLDER
    try:
        if (dead := _read(holder)) is not None:
            tell(f"{folder}: {_describe(dead)} is gone; its run is taken over")
        record = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv),
        }
        write_file(holder, json.dumps(record).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _read(path: Path) -> dict[str, Any] | None:
    """Reads who holds, or held, a lock; {} if the file makes no sense."""
    try:
        found = json.loads(path.read_bytes())
    except OSError:
        return None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    pid, host, since = (holder.get(name, "?") for name in ("pid", "host", "since"))
    return f"process {pid} on {host}, which started there at {since},"


def _taken(folder: Path) -> RunFolderError:
    end = time.monotonic() + _PATIENCE_S
    while (holder := _read(folder / layout.HOLDER)) is None and time.monotonic() < end:
        time.sleep(0.02)
    who = "another process" if holder is None else _describe(holder)
    return RunFolderError(
        f"{folder}: {who} is running in this folder; nothing was touched. Wait for it "
        "or stop it, or give another --out"
    )


def clear(folder: Path) -> None:
    """Removes everything in a folder whose lock this process holds, but the lock.

    Raises:
        RunFolderError: something cannot be removed.
    """
    try:
        for path in Path(folder).iterdir():
            if path.name in (layout.LOCK, layout.HOLDER):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise unwritable(path, error) from error
