"""A visit to a machine that is lent for minutes: works in order, each keeps its record.

    python -m experiments.bench.visit PLAN.yaml OUT --seconds 600

runs the commands of a plan, one stage after the other and the works of a stage side by
side, and packs what they wrote after each, so that nothing depends on the last one.
``--dry-run`` runs every command with the small sizes that the plan gives for it.

The arguments of ``python -m experiments`` or, where a work says so, another program
stand in the plan; ``{out}`` in them is a folder of the visit's own. A work with a list
``each`` is as many works, with ``{each}`` standing for one of the list.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

_GRACE_S = 3.0
_NOT_KEPT = ("checkpoints", "cache")


class _Running(NamedTuple):
    name: str
    process: subprocess.Popen[bytes]
    start: float
    end: float
    """When it is stopped."""


def read_plan(path: Path) -> list[dict[str, Any]]:
    """Returns the stages of a plan; every work is one process."""
    stages = YAML(typ="safe").load(path.read_text())
    for stage in stages:
        stage["works"] = [
            {
                name: value.replace("{each}", each) if isinstance(value, str) else value
                for name, value in work.items()
            }
            for work in stage["works"]
            for each in work.pop("each", [""])
        ]
    return stages


def _start(
    work: dict[str, Any], out: Path, shares: bool, dry_run: bool, end: float
) -> _Running:
    text = work["run"].format(out=out) + (" " + work.get("dry", "")) * dry_run
    command = shlex.split(text)
    if not work.get("program"):
        command = ["-m", "experiments", *command]
    log = (out / "logs" / f"{work['name']}.log").open("wb")
    # Where works share a card, none may take all of its memory at once.
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false" if shares else "true",
        **{name: str(value) for name, value in work.get("environment", {}).items()},
    }
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    now = time.monotonic()
    return _Running(work["name"], process, now, min(end, now + work["seconds"]))


def _signal(running: _Running, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.process.pid, number)


def _pack(out: Path) -> None:
    """Packs all but checkpoints; moved into place, so that a stop leaves the last."""
    part = out.parent / "kept.part"
    with tarfile.open(part, "w:gz", compresslevel=5) as archive:
        archive.add(
            out,
            out.name,
            filter=lambda info: None if Path(info.name).name in _NOT_KEPT else info,
        )
    os.replace(part, out.parent / "kept.tar.gz")


def _stage(
    works: list[dict[str, Any]],
    running: list[_Running],
    out: Path,
    at_once: int,
    dry_run: bool,
    end: float,
) -> None:
    """Runs works, and keeps those under way in ``running``, which is empty."""
    waiting = list(works)
    told: set[str] = set()
    while waiting or running:
        now = time.monotonic()
        while waiting and len(running) < at_once and now < end:
            running.append(_start(waiting.pop(0), out, at_once > 1, dry_run, end))
            print(f"{time.strftime('%T')} {running[-1].name} began", flush=True)
        if now >= end:
            waiting.clear()
        for each in list(running):
            status = each.process.poll()
            if status is None and now > each.end:
                if each.name not in told:
                    _signal(each, signal.SIGTERM)
                    told.add(each.name)
                elif now > each.end + _GRACE_S:
                    _signal(each, signal.SIGKILL)
            if status is not None:
                running.remove(each)
                took = now - each.start
                print(
                    f"{time.strftime('%T')} {each.name} ended after {took:.0f} s, "
                    f"status {status}",
                    flush=True,
                )
                _pack(out)
        time.sleep(0.1)


def main() -> None:
    """Reads the plan and runs it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--stages", nargs="*", help="names; all if not given")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    out = (options.out / "visit").resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds - 2 * _GRACE_S
    running: list[_Running] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for stage in read_plan(options.plan):
            if options.stages is None or stage["stage"] in options.stages:
                print(f"stage {stage['stage']}", flush=True)
                at_once = stage.get("at_once", 1)
                _stage(stage["works"], running, out, at_once, options.dry_run, end)
    finally:  # who stops the visit stops its works, which are sessions of their own
        for each in running:
            _signal(each, signal.SIGKILL)


if __name__ == "__main__":
    main()
