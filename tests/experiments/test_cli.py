"""The command line: what it does, and one clear error for every mistake."""

import json
import os
import re
import sys
from pathlib import Path

import processes
import pytest
import typer
from compiling import AS_USERS_DO

import lamaml_jax
from experiments import methods
from experiments.cli import app as cli
from experiments.cli import listing, starting
from experiments.config import benchmarks
from experiments.support.cores import usable_cores

ROOT = Path(__file__).parents[2]
TINY = ["--seeds", "2", "--num-tasks", "2", "--rows-per-task", "20"]


def call(arguments, monkeypatch, capsys):
    """Runs the command line in this process; returns exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["experiments", *map(str, arguments)])
    monkeypatch.setattr(starting, "start_jax", lambda devices, cache: None)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code, out, " ".join(err.split())


def spawn(arguments, **environment):
    return processes.run(processes.experiments(*arguments), **environment)


@pytest.mark.slow
def test_run_makes_results_table_and_figures(tmp_path):
    done = spawn(
        ["run", *TINY, "-m", "lamaml", "-m", "online", "--out", tmp_path / "out"],
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        **AS_USERS_DO,
    )
    assert done.returncode == 0, done.stderr
    assert "La-MAML" in done.stdout
    summary = json.loads((tmp_path / "out/lamaml/summary.json").read_text())
    assert len(summary["retained_accuracy"]) == 2
    # Five glances of 10 inner rows and 10 queries of 20, per 10 rows; 100 rows of 64
    # pixels, label and task are kept.
    assert summary["cost"] == {
        "gradient_evaluations_per_row": 105,
        "memory_bytes": 100 * (64 + 2) * 4,
    }
    environment = json.loads((tmp_path / "out/lamaml/environment.json").read_text())
    assert environment["command"].startswith("python -m experiments run --seeds 2")
    assert environment["device_count"] == usable_cores()
    report = tmp_path / "out/report"
    assert (report / "table.md").stat().st_size > 0
    assert list(report.glob("*.png"))
    assert list((tmp_path / "cache").rglob("*")), "no compiled program was kept"
    other = ["run", *TINY, "-m", "lamaml", "--glances", "3", "--out", tmp_path / "out"]
    again = spawn(other)
    assert again.returncode == 2
    assert "another run, with glances 5 instead of 3" in " ".join(again.stderr.split())
    assert "Traceback" not in again.stderr
    assert json.loads((tmp_path / "out/lamaml/summary.json").read_text()) == summary


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="no processes bound to cores here"
)
def test_a_process_bound_to_a_core_has_one_device_and_records_one_core():
    core = min(os.sched_getaffinity(0))
    done = processes.run(
        [
            sys.executable,
            "-c",
            f"import os; os.sched_setaffinity(0, {{{core}}})\n"
            "from experiments.cli import starting; starting.use_devices(None)\n"
            "import jax; print(jax.device_count())\n"
            "from experiments.run_folder.environment import environment\n"
            "print(environment()['usable_cpu_count'])",
        ],
        PYTHONPATH=str(ROOT),
    )
    assert done.stdout.split() == ["1", "1"], done.stderr


MISTAKES = {
    "unknown benchmark": (["-b", "mnist"], "unknown benchmark 'mnist'"),
    "misspelt benchmark": (
        ["-b", "mnist_rotation"],
        "unknown benchmark 'mnist_rotation'; did you mean mnist-rotations?",
    ),
    "unknown method": (["-m", "sgd"], "unknown method 'sgd'; choose one of: lamaml,"),
    "misspelt method": (
        ["-m", "er,La-MAML"],
        "unknown method 'La-MAML'; did you mean lamaml?",
    ),
    "misspelt setting": (
        ["--set", "momentun=0.5"],
        "--set: expected NAME=VALUE, received 'momentun=0.5'; did you mean momentum?",
    ),
    "method twice by a comma": (["-m", "er,er"], "each method once"),
    "aware method agnostic": (
        ["-m", "gem", "--setting", "agnostic"],
        "'gem' needs task ids",
    ),
    "classes in common": (["-m", "icarl"], "needs tasks with classes of their own"),
    "classes per task": (
        ["--classes-per-task", "2"],
        "tasks of digits-rotations share",
    ),
    "passes without presets": (["--passes", "multi"], "no preset for method 'lamaml'"),
    "unknown setting": (["--set", "speed=1"], "--set: expected NAME=VALUE"),
    "no passes": (["--epochs", "0"], "epochs: expected 1 to"),
    "share above one": (
        ["-m", "vrmcl", "--set", "momentum=1.5"],
        "momentum: expected a share in [0, 1], received 1.5",
    ),
    "method twice": (["-m", "er", "-m", "er"], "each method once"),
    "no seeds": (["--seeds", "0"], "--seeds"),
    "negative seed": (["--first-seed", "-1"], "--first-seed"),
    "no tasks": (["--num-tasks", "0"], "num_tasks: expected 1 to"),
    "huge tasks": (["--num-tasks", "1000000000"], "num_tasks: expected 1 to"),
    "negative rows": (["--rows-per-task", "-5"], "rows_per_task: expected 1 to"),
    "too many rows": (["--rows-per-task", "9999"], "rows_per_task: expected at most"),
    "no batch": (["--batch-size", "0"], "batch_size: expected 1 to"),
    "huge batch": (["--batch-size", "1000000000"], "batch_size: expected 1 to 200"),
    "no capacity": (["--capacity", "0"], "capacity: expected 1 to"),
    "huge capacity": (["--capacity", "2000000000"], "capacity: 2000000000 rows"),
    "huge replay": (["--replay-size", "1000000000"], "replay_size: expected 1 to 100"),
    "K above B": (
        ["--inner-steps", "11"],
        "inner_steps: expected 1 to 10 (batch_size), received 11",
    ),
    "NaN rate": (["--step-size-init", "nan"], "step_size_init: expected a finite"),
    "quantity of another method": (
        ["-m", "online", "--step-size-init", "0.1"],
        "none of these methods has it: online",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_error_before_any_work(
    arguments, message, tmp_path, monkeypatch, capsys
):
    arguments = ["run", "--out", tmp_path / "out", *arguments]
    status, _, err = call(arguments, monkeypatch, capsys)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.json")), "work was begun"


def test_wrong_type_is_an_error(tmp_path, monkeypatch, capsys):
    arguments = ["run", "--glances", "many", "--out", tmp_path]
    status, _, err = call(arguments, monkeypatch, capsys)
    assert status == 2
    assert "--glances" in err


def test_missing_data_set_names_folder_and_command(tmp_path, monkeypatch, capsys):
    arguments = ["run", "-b", "mnist-rotations", "--data-dir", tmp_path / "data"]
    status, _, err = call([*arguments, "--out", tmp_path / "out"], monkeypatch, capsys)
    assert status == 2
    assert str(tmp_path / "data/mnist/3.0.1") in err
    assert "python -m experiments data prepare mnist" in err
    assert not (tmp_path / "out").exists()


def test_output_that_is_a_file_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("mine")
    status, _, err = call(["run", "--out", tmp_path / "out"], monkeypatch, capsys)
    assert status == 2
    assert "cannot be written" in err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--out", "gs://bucket/x"],
        ["run", "--data-dir", "gs://bucket/x"],
        ["run", "--config", "gs://bucket/x"],
        ["sweep", "--out", "gs://bucket/x"],
        ["report", ".", "gs://bucket/x"],
        ["report", ".", "--out", "gs://bucket/x"],
        ["data", "list", "--data-dir", "gs://bucket/x"],
        ["data", "prepare", "mnist", "--from", "gs://bucket/x"],
        ["bench", "--json", "gs://bucket/x"],
    ],
    ids=" ".join,
)
def test_an_address_is_refused_before_any_work(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(arguments, monkeypatch, capsys)
    assert status == 2
    option = arguments[-2] if arguments[-2].startswith("--") else "runs"
    assert f"{option}: expected a path on this machine" in err
    assert "received 'gs://bucket/x'" in err
    assert not list(tmp_path.iterdir())


def test_an_address_in_the_environment_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", "s3://bucket/data")
    arguments = ["run", "-b", "mnist-rotations", "--out", tmp_path / "y"]
    status, _, err = call(arguments, monkeypatch, capsys)
    assert status == 2
    assert "TFDS_DATA_DIR: expected a path on this machine" in err
    assert not (tmp_path / "y").exists()


def test_used_folder_that_is_no_run_is_never_overwritten(tmp_path, monkeypatch, capsys):
    (tmp_path / "er").mkdir()
    (tmp_path / "er/notes.txt").write_text("mine")
    status, _, err = call(
        ["run", "-m", "er", "--out", tmp_path, "--fresh"], monkeypatch, capsys
    )
    assert status == 2
    assert "holds something that is no run" in err
    assert (tmp_path / "er/notes.txt").read_text() == "mine"


def test_report_without_runs_is_an_error(tmp_path, monkeypatch, capsys):
    status, _, err = call(
        ["report", tmp_path, "--out", tmp_path / "r"], monkeypatch, capsys
    )
    assert status == 2
    assert "no run folder" in err


def test_list_shows_every_benchmark_and_what_every_method_is(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = call(["list"], monkeypatch, capsys)
    assert status == 0
    assert len(out.splitlines()) < 80
    assert max(map(len, out.splitlines())) <= 80
    said = " ".join(out.split())
    for name in (*benchmarks.BENCHMARKS, *methods.METHODS):
        assert f"\n{name} " in out
    for name in methods.METHODS:
        sentence, paper = listing.method_line(name)
        assert sentence.endswith(".") and paper, name
        assert f"{name} {sentence} {paper}" in said


@pytest.mark.parametrize("benchmark", benchmarks.BENCHMARKS)
def test_values_of_a_benchmark_are_shown_whole(benchmark, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = call(["list", benchmark], monkeypatch, capsys)
    assert status == 0
    for name in ("step_size_init", "step_size_learning_rate", "mean_learning_rate"):
        assert name in out
    assert "…" not in out


def test_list_of_one_benchmark_shows_its_hyper_parameters_only(monkeypatch, capsys):
    status, out, _ = call(["list", "cifar100-split"], monkeypatch, capsys)
    assert status == 0
    assert "cifar100-split, multi" in out
    assert "Hyper-parameters on mnist" not in out
    status, _, err = call(["list", "cifar"], monkeypatch, capsys)
    assert status == 2
    assert "unknown benchmark" in err


def test_data_list_shows_what_is_ready(tmp_path, monkeypatch, capsys):
    status, out, _ = call(["data", "list", "--data-dir", tmp_path], monkeypatch, capsys)
    assert status == 0
    rows = [line for line in out.splitlines() if "mnist" in line or "digits" in line]
    assert ["ready" in row for row in rows] == [True, False, False]
    assert all("missing" in row for row in rows[1:]), "a row of more than a line"
    assert str(tmp_path) in "".join(out.split())
    assert "data prepare NAME" in " ".join(out.split())


def test_version_is_the_librarys(monkeypatch, capsys):
    status, out, _ = call(["--version"], monkeypatch, capsys)
    assert status == 0
    assert out == f"lamaml_jax {lamaml_jax.__version__}\n"


HELP = ["run", "sweep", "report", "list", "bench", "data list", "data prepare"]


@pytest.mark.parametrize("command", HELP)
def test_help_names_every_option_whole_at_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = call([*command.split(), "--help"], monkeypatch, capsys)
    assert status == 0
    assert "Usage" in out
    assert max(map(len, out.splitlines())) <= 80
    told = typer.main.get_command(cli.app)
    for name in command.split():
        told = told.commands[name]
    options = [o for p in told.params for o in (*p.opts, *p.secondary_opts)]
    assert len(options) == len(set(options))
    for option in options:
        if option.startswith("-"):
            assert re.search(rf"{option}(?![\w…-])", out), option


def test_diverged_seeds_end_with_an_error_but_keep_the_results(
    tmp_path, monkeypatch, capsys
):
    arguments = ["run", *TINY, "-m", "online", "--learning-rate", "1e30"]
    status, _, err = call(
        [*arguments, "--max-grad-norm", "1e30", "--out", tmp_path], monkeypatch, capsys
    )
    assert status == 2  # with no seed left there is nothing to report either
    assert "online: seeds [0, 1] diverged" in err
    summary = json.loads((tmp_path / "online/summary.json").read_text())
    assert summary["diverged_seeds"] == [0, 1]
    assert summary["retained_accuracy"] == [None, None]
