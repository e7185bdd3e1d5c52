"""Visits to a lent machine: each work keeps its record whatever becomes of others."""

import signal
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from processes import ended, run, start
from ruamel.yaml import YAML
from typer.testing import CliRunner

from experiments.bench.visit import read_plan
from experiments.cli import app as command_line
from experiments.cli import run as run_command
from experiments.config import benchmarks, request
from experiments.config.run_config import anytime_after
from experiments.data import sources
from experiments.run_folder.environment import environment

ROOT = Path(__file__).parents[2]
PLAN = ROOT / "experiments/bench/visit.yaml"


def visit(plan, out, *options, seconds=60):
    """Runs a plan in a process of its own; returns what it printed and packed."""
    command = [sys.executable, "-m", "experiments.bench.visit", plan, out]
    process = run([*command, "--seconds", seconds, *options], PYTHONPATH=str(ROOT))
    assert process.returncode == 0, process.stderr
    with tarfile.open(out / "kept.tar.gz") as archive:
        return process.stdout, archive.getnames()


def write_plan(path, *stages):
    YAML(typ="safe").dump(list(stages), path)
    return path


def work(name, code, seconds=30, **other):
    return {
        "name": name,
        "program": True,
        "run": f"-c '{code}'",
        "seconds": seconds,
    } | other


@pytest.mark.slow
def test_a_work_that_fails_or_hangs_costs_no_other_its_record(tmp_path):
    write = 'open("{out}/NAME", "w").write("kept")'
    plan = write_plan(
        tmp_path / "plan.yaml",
        {
            "stage": "one",
            "at_once": 2,
            "works": [
                work("hangs", "import time; time.sleep(60)", seconds=1),
                work("fails", "import sys; sys.exit(3)"),
                work("first", write.replace("NAME", "first")),
            ],
        },
        {"stage": "two", "works": [work("second", write.replace("NAME", "second"))]},
    )
    start = time.monotonic()
    text, names = visit(plan, tmp_path)
    assert time.monotonic() - start < 30
    assert {"visit/first", "visit/second", "visit/logs/fails.log"} <= set(names)
    assert "fails ended" in text and "status 3" in text and "status -15" in text


@pytest.mark.slow
def test_a_visit_ends_in_time_and_leaves_checkpoints_behind(tmp_path):
    code = (
        'import os, time; os.makedirs("{out}/run/checkpoints"); '
        'open("{out}/run/line", "w"); time.sleep(60)'
    )
    works = [work("long", code, seconds=60), work("never", "print()")]
    plan = write_plan(tmp_path / "plan.yaml", {"stage": "one", "works": works})
    start = time.monotonic()
    text, names = visit(plan, tmp_path, seconds=10)
    assert time.monotonic() - start < 15
    assert "visit/run/line" in names and "visit/run/checkpoints" not in names
    assert "never began" not in text


@pytest.mark.slow
def test_a_visit_that_is_stopped_stops_its_works(tmp_path):
    code = "import time\nwhile True: print(flush=True); time.sleep(0.05)"
    stage = {"stage": "one", "works": [work("endless", code)]}
    plan = write_plan(tmp_path / "plan.yaml", stage)
    log = tmp_path / "visit/logs/endless.log"
    process = start([sys.executable, "-m", "experiments.bench.visit", plan, tmp_path])
    while not (log.is_file() and log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    ended(process, 128 + signal.SIGTERM)
    written = log.read_text()
    time.sleep(1)
    assert log.read_text() == written


@pytest.mark.slow
def test_a_dry_run_adds_the_small_sizes(tmp_path):
    code = "import sys; print(sys.argv[1:])"
    works = [work("small", code, dry="--tiny 2")]
    plan = write_plan(tmp_path / "plan.yaml", {"stage": "one", "works": works})
    visit(plan, tmp_path, "--dry-run")
    assert "['--tiny', '2']" in (tmp_path / "visit/logs/small.log").read_text()


def test_a_work_for_each_of_a_list_is_as_many_works(tmp_path):
    both = work("of-{each}", "print()", each=["one", "two"], dry="--only {each}")
    stage = {"stage": "one", "works": [both, work("last", "print()")]}
    (read,) = read_plan(write_plan(tmp_path / "plan.yaml", stage))
    assert [each["name"] for each in read["works"]] == ["of-one", "of-two", "last"]
    assert read["works"][1]["dry"] == "--only two" and read["works"][1]["seconds"] == 30


def test_the_plan_has_options_that_commands_know():
    runner = CliRunner(env={"COLUMNS": "300"})
    shown = {
        name: runner.invoke(command_line.app, [name, "--help"]).output
        for name in ("run", "bench")
    }
    names = set()
    for stage in read_plan(PLAN):
        for each in stage["works"]:
            words = f"{each['run']} {each['dry']}".split()
            unknown = [
                w for w in words if w.startswith("--") and w not in shown[words[0]]
            ]
            assert not unknown and each["name"] not in names
            names.add(each["name"])


class Asked(Exception):
    """Raised where training would start, with what the command asked for."""


def run_commands():
    return [
        pytest.param(each["run"].split(), each["dry"].split(), id=each["name"])
        for stage in read_plan(PLAN)
        for each in stage["works"]
        if each["run"].startswith("run ")
    ]


@pytest.fixture(scope="module")
def cifar100():
    """Its labels; one byte stands for all images."""
    train, test = np.repeat(np.arange(100), 500), np.repeat(np.arange(100), 100)
    byte, image = np.uint8(0), (32, 32, 3)
    return sources.Source(
        np.broadcast_to(byte, (len(train), *image)),
        train,
        np.broadcast_to(byte, (len(test), *image)),
        test,
        num_classes=100,
        max_value=255,
    )


@pytest.mark.parametrize("is_dry", [True, False])
@pytest.mark.parametrize("words, dry", run_commands())
def test_the_plan_has_sizes_that_the_data_can_serve(
    words, dry, is_dry, cifar100, monkeypatch
):
    def catch(asked, *_):
        raise Asked(asked)

    monkeypatch.setattr(run_command, "_begin", lambda *_: None)
    monkeypatch.setattr(run_command, "_train", catch)
    monkeypatch.setattr(sources, "check_source", lambda *_: None)
    caught = CliRunner().invoke(command_line.app, words + dry * is_dry).exception
    assert isinstance(caught, Asked), caught
    (config,) = request.configs(*caught.args, cifar100.num_classes)
    data = benchmarks.draw(config.benchmark, cifar100, config.seeds[:1])
    assert len(config.seeds) == 5 and data.rows.shape[1] == config.benchmark.num_tasks
    if config.benchmark.anytime_every is not None:
        assert len(anytime_after(config)) > 1


def test_records_name_the_commit_that_they_are_told(monkeypatch):
    monkeypatch.setenv("LAMAML_COMMIT", "0123abc")
    assert environment()["git_commit"] == "0123abc"
