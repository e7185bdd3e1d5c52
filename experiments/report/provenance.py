"""Where, when and how the runs of a report were made, in words."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from experiments.report.entries import Entry, seeds_text
from experiments.run_folder import Run

_NO_HYPERPARAMETERS = {"format_version", "benchmark", "method", "seeds", "description"}


def _date(environment: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(environment.get("started")))
    except ValueError:
        return None


def _day(date: datetime) -> str:
    return f"{date.day} {date:%B %Y}"


def date_text(environment: Mapping[str, Any]) -> str:
    """The day on which a run or a measurement began; "" if not known."""
    found = _date(environment)
    return "" if found is None else _day(found)


def commit_text(environment: Mapping[str, Any]) -> str:
    """The first digits of the commit; "" if not known."""
    return str(environment.get("git_commit") or "")[:7]


def device_text(environment: Mapping[str, Any]) -> str:
    """Device and processor with their numbers, as far as they are known."""
    device, count = environment.get("device"), environment.get("device_count")
    if device is None:
        return ""
    if str(device).lower() == "cpu":
        cores, usable = map(environment.get, ("cpu_count", "usable_cpu_count"))
        if not cores:
            return "CPU"
        processor = f"{environment.get('processor', '')} processor".strip()
        bound = "" if usable in (None, cores) else f", {usable} usable"
        return f"{processor} with {cores} cores{bound}"
    return f"{count} {device}" if count else str(device)


def versions_text(environment: Mapping[str, Any]) -> str:
    """Names and versions of what a run was made with."""
    versions = environment.get("versions", {})
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def hyperparameters_text(config: Mapping[str, Any]) -> str:
    """Everything that a run was told, where it was told something."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_value(value)}"
        for name, value in config.items()
        if name not in _NO_HYPERPARAMETERS and value not in (None, [], "")
    )


def environment_facts(environment: Mapping[str, Any]) -> dict[str, str]:
    """What is known of where a run or a measurement was made, by name."""
    facts = {
        "command": str(environment.get("command", "")),
        "date": date_text(environment),
        "commit": str(environment.get("git_commit") or ""),
        "device": device_text(environment),
        "versions": versions_text(environment),
    }
    return {name: text for name, text in facts.items() if text}


def run_facts(run: Run) -> dict[str, str]:
    """Command, date, commit, device, versions and hyper-parameters, by name."""
    return environment_facts(run.environment) | {
        "seeds": seeds_text(run.config["seeds"]).partition(" ")[2],
        "hyper-parameters": hyperparameters_text(run.config),
        "folder": str(run.folder),
    }


def run_summary(entry: Entry, run: Run) -> str:
    """One line that tells a run from others, and a part of an entry from its others."""
    environment = run.environment
    commit = commit_text(environment)
    parts = (
        entry.label,
        seeds_text(run.config["seeds"]) if len(entry.parts) > 1 else "",
        date_text(environment),
        commit and f"commit {commit}",
        device_text(environment),
    )
    return ", ".join(filter(None, parts))


def _listed(texts: Iterable[str]) -> str:
    *first, last = dict.fromkeys(filter(None, texts))
    return f"{', '.join(first)} and {last}" if first else last


def opening(entries: Sequence[Entry]) -> str:
    """Says how many runs a report holds, of when, and where they were made."""
    environments = [run.environment for entry in entries for run in entry.parts]
    methods = len({entry.method for entry in entries})
    benchmarks = len({entry.benchmark for entry in entries})
    plural = lambda number, word: f"{number} {word}{'s' * (number != 1)}"
    text = (
        f"{plural(len(environments), 'run')} of {plural(methods, 'method')} on "
        f"{plural(benchmarks, 'benchmark')}"
    )
    if dates := sorted(filter(None, map(_date, environments))):
        first, last = _day(dates[0]), _day(dates[-1])
        text += (
            f", made on {first}" if first == last else f", made from {first} to {last}"
        )
    if devices := [d for d in map(device_text, environments) if d]:
        text += f" on {_listed(sorted(devices))}"
    if commits := {c for c in map(commit_text, environments) if c}:
        text += f", at {plural(len(commits), 'commit')}"
    return text + ". How each was made is told under Runs."
