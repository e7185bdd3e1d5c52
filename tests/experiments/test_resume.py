"""Interrupted runs that go on end as if they had not been interrupted."""

import dataclasses
import io
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import processes
import pytest
from rich.console import Console

from experiments import methods, run_folder
from experiments.config import benchmarks, presets
from experiments.config.run_config import RunConfig, config_record
from experiments.training import placement, sessions
from experiments.training.inputs import place
from experiments.training.programs import compile_programs
from experiments.training.storing import Part

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
CONFIGS = {
    "lamaml": {"probes": True, "alignment": True},
    "vrmcl": {},
    "derpp": {},
    "er_ace": {"anytime_every": 3},
    "cls_er": {"anytime_every": 3},
    "ewc": {},
    "iid": {},
}


def make_config(method, anytime_every=None, **options):
    benchmark = dataclasses.replace(
        benchmarks.BENCHMARKS["digits-rotations"],
        num_tasks=4,
        rows_per_task=40,
        hidden=(8,),
        anytime_every=anytime_every,
    )
    (hyper,) = presets.resolve("digits-rotations", [method], {})
    return RunConfig(benchmark, method, SEEDS, hyper, **options)


def make_inputs(config, num_devices=2):
    data = benchmarks.load(config.benchmark, config.seeds)
    return place(data, config.seeds, placement.make_mesh(num_devices))


# One in the quick tests; the programs of the others take longer to compile.
CASES = [
    pytest.param(name, marks=[] if name == "er_ace" else pytest.mark.slow)
    for name in CONFIGS
]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    config = make_config(request.param, **CONFIGS[request.param])
    inputs = make_inputs(config)
    (program,) = compile_programs([[config]], inputs)
    return config, program, inputs


def run(case, folder, text=None):
    config, program, inputs = case
    console = Console(file=text or io.StringIO(), width=200)
    parts = [Part(config, folder)]
    return sessions.run_group(parts, program, inputs, sessions.Watch(console, 0))


def interrupt(case, folder, num_tasks, monkeypatch):
    """Runs until the evaluation after ``num_tasks`` tasks is being written."""
    append = run_folder.append_evaluation

    def append_or_stop(path, record):
        append(path, record)
        if record["task"] == num_tasks - 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "append_evaluation", append_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run(case, folder)


def contents(folder):
    with np.load(folder / "arrays.npz") as arrays:
        found = {name: arrays[name] for name in arrays.files}
    return found, (folder / "evaluations.jsonl").read_text()


def assert_same(folder, other):
    (arrays, lines), (expected, expected_lines) = contents(folder), contents(other)
    assert arrays.keys() == expected.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], expected[name], err_msg=name)
    assert lines == expected_lines


def test_a_run_interrupted_twice_ends_bit_for_bit_the_same(case, tmp_path, monkeypatch):
    run(case, tmp_path / "whole")
    for num_tasks in (1, 3):  # before any checkpoint, and after two
        interrupt(case, tmp_path / "parts", num_tasks, monkeypatch)
    record = config_record(case[0])
    interrupted = run_folder.Progress.INTERRUPTED
    assert run_folder.progress(tmp_path / "parts", record) == interrupted
    text = io.StringIO()
    run(case, tmp_path / "parts", text)
    assert "goes on from task 2" in text.getvalue()
    assert_same(tmp_path / "parts", tmp_path / "whole")
    assert not (tmp_path / "parts/checkpoints").exists()
    environment = json.loads((tmp_path / "parts/environment.json").read_text())
    assert len(environment["resumed"]) == 2
    assert run_folder.progress(tmp_path / "parts", record).name == "COMPLETE"
    with pytest.raises(run_folder.RunFolderError, match="complete; give another --out"):
        run(case, tmp_path / "parts")


@pytest.fixture(scope="module")
def er():
    config = make_config("er")
    inputs = make_inputs(config)
    (program,) = compile_programs([[config]], inputs)
    return config, program, inputs


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(
    er, tmp_path, monkeypatch
):
    run(er, tmp_path / "whole")
    interrupt(er, tmp_path / "parts", 4, monkeypatch)
    assert sorted(p.name for p in (tmp_path / "parts/checkpoints").iterdir()) == [
        "2",
        "3",
    ]
    for path in (tmp_path / "parts/checkpoints/3").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:5])
    text = io.StringIO()
    run(er, tmp_path / "parts", text)
    assert "the checkpoint after task 3 is damaged" in text.getvalue()
    assert "goes on from task 2" in text.getvalue()
    assert_same(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_the_number_of_devices_may_change(er, tmp_path, monkeypatch):
    run(er, tmp_path / "whole")
    interrupt(er, tmp_path / "parts", 3, monkeypatch)
    config = er[0]
    inputs = make_inputs(config, num_devices=1)
    (program,) = compile_programs([[config]], inputs)
    run((config, program, inputs), tmp_path / "parts")
    # One device runs the same program for a seed, if XLA is so kind; allow a row.
    rows = config.benchmark.rows_per_task
    for name in ("accuracy", "initial_accuracy"):
        got, expected = (contents(tmp_path / f)[0][name] for f in ("parts", "whole"))
        np.testing.assert_allclose(got, expected, atol=1 / rows)


def test_another_configuration_is_refused_by_the_field(er, tmp_path, monkeypatch):
    interrupt(er, tmp_path, 2, monkeypatch)
    other = dataclasses.replace(
        er[0], hyper=dataclasses.replace(er[0].hyper, capacity=7), alignment=True
    )
    problem = "alignment False instead of True, capacity 100 instead of 7"
    with pytest.raises(run_folder.RunFolderError, match=problem):
        run_folder.progress(tmp_path, config_record(other))


def test_a_half_written_line_and_files_not_yet_there_are_no_obstacle(
    er, tmp_path, monkeypatch
):
    run(er, tmp_path / "whole")
    interrupt(er, tmp_path / "parts", 3, monkeypatch)
    with open(tmp_path / "parts/evaluations.jsonl", "a") as file:
        file.write('{"seed": 0, "ta')
    (tmp_path / "parts/environment.json").unlink()
    run(er, tmp_path / "parts")
    assert_same(tmp_path / "parts", tmp_path / "whole")
    run_folder.read(tmp_path / "parts")


def start(out, *options, num_tasks=12, within=()):
    sizes = ["--seeds", "2", "--num-tasks", num_tasks, "--checkpoint-every", "0"]
    command = processes.experiments("run", "-m", "er", *sizes, "--out", out)
    return processes.start([*within, *command, *options])


@pytest.mark.slow
def test_a_killed_process_goes_on_by_the_same_command(tmp_path):
    process = start(tmp_path)
    lines = tmp_path / "er/evaluations.jsonl"
    while process.poll() is None:
        if lines.is_file() and lines.read_text().count("\n") >= 8:
            break
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "er/summary.json").exists()
    text = processes.ended(start(tmp_path))
    assert "was interrupted, goes on from" in text
    first = contents(tmp_path / "er")
    assert "is complete" in processes.ended(start(tmp_path))
    assert "goes on" not in processes.ended(start(tmp_path, "--fresh"))
    second = contents(tmp_path / "er")
    assert first[1] == second[1]


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_numbers_are_the_same(tmp_path):
    """Also while a checkpoint is being written: one is, after every task."""
    num_tasks, kills, lives = 60, 0, 0
    processes.ended(start(tmp_path / "whole", num_tasks=num_tasks))
    rng = np.random.default_rng(0)
    lines = tmp_path / "parts/er/evaluations.jsonl"
    count = lambda: lines.read_bytes().count(b"\n") if lines.is_file() else 0
    while True:
        process = start(tmp_path / "parts", num_tasks=num_tasks)
        lives += 1
        before = count()
        # Half of the moments are while it starts, the others while it trains.
        if kills < 10 and lives % 2:
            time.sleep(rng.uniform(0, 6))
        elif kills < 10:
            while process.poll() is None and count() <= before:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.3))
        if kills == 10 or process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    assert kills == 10
    processes.ended(process)
    assert_same(tmp_path / "parts/er", tmp_path / "whole/er")
    assert not (tmp_path / "parts/er/checkpoints").exists()


# No file over 16 KiB can be written: the reservoir's no longer can.
LIMITED = ("bash", "-c", 'ulimit -f 16; exec "$@"', "bash")


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_once_it_is_not(tmp_path):
    processes.ended(start(tmp_path / "whole"))
    limited = start(tmp_path / "parts", "--no-compile-cache", within=LIMITED)
    text = processes.ended(limited, 2)
    # Not always the last line: orbax may tell of its closed event loop after it.
    assert any("a checkpoint cannot be written" in line for line in text.splitlines())
    assert "experiments/training/" not in text, "a traceback of ours"  # orbax's may be
    text = processes.ended(start(tmp_path / "parts"))
    assert "was interrupted, goes on from" in text
    assert_same(tmp_path / "parts/er", tmp_path / "whole/er")


@pytest.mark.slow
def test_two_runs_of_one_command_are_bit_identical(tmp_path):
    names = sorted(set(methods.METHODS) - {"icarl"})  # in test_split: it needs classes
    chosen = [word for name in names for word in ("-m", name)]
    sizes = ["--num-tasks", "2", "--rows-per-task", "40", "--seeds", "2"]
    for out in ("first", "second"):  # the second one finds compiled programs
        command = ["run", *chosen, *sizes, "--devices", "1", "--out", out]
        done = processes.run(
            processes.experiments(*command),
            tmp_path,
            PYTHONPATH=str(processes.ROOT),
            XDG_CACHE_HOME=str(tmp_path / "cache"),
        )
        assert done.returncode == 0, done.stderr
    for name in names:
        assert_same(tmp_path / "first" / name, tmp_path / "second" / name)
