"""Seeds that were trained apart are one row of a report."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console
from stored_runs import entry_of, example, store_run

import experiments
from experiments import report, run_folder
from experiments.report import figures, provenance
from experiments.report.entries import make_entries
from experiments.report.joining import join_seeds
from experiments.run_folder.arrays import MEASURES


def whole_run():
    """A run of five seeds and three tasks with everything that can be measured."""
    draw = np.random.default_rng(0).random
    sizes = {"S": 5, "T": 3, "T+1": 4, "L": 2, "5": 5, "P": 6, "E": 3, "G": 4}
    measures = {
        name: draw([sizes[axis] for axis in axes])
        for group in MEASURES
        for name, axes in group.items()
    }
    accuracy = draw((5, 3, 3))
    run = entry_of(accuracy, "lamaml", leaves=("kernel", "bias")).run
    arrays = measures | {
        "accuracy": run.accuracy,
        "initial_accuracy": run.initial_accuracy,
        "seeds": run.seeds,
    }
    names = ("average_anytime_accuracy", "worst_case_accuracy", "linear_probe_accuracy")
    summary = run.summary | {name: draw(5) for name in names}
    return run._replace(arrays=arrays, summary=summary)


def part_of(run, *seeds):
    """The run as it would have been with these of its seeds."""
    of = lambda array: array[list(seeds)]
    summary = {
        name: of(value) if isinstance(value, np.ndarray) else value
        for name, value in run.summary.items()
    }
    by_seed = {
        name for group in MEASURES for name, axes in group.items() if "S" in axes
    }
    by_seed |= {"accuracy", "initial_accuracy", "seeds"}
    lost = [seed for seed in run.summary["diverged_seeds"] if seed in seeds]
    places = run.summary.get("diverged_at", {})
    return run._replace(
        config=run.config | {"seeds": list(seeds)},
        accuracy=of(run.accuracy),
        initial_accuracy=of(run.initial_accuracy),
        seeds=of(run.seeds),
        summary=summary
        | {
            "diverged_seeds": lost,
            "diverged_at": {str(s): places[str(s)] for s in lost if str(s) in places},
        },
        arrays={
            name: of(array) if name in by_seed else array
            for name, array in run.arrays.items()
        },
    )


def assert_same(found, expected):
    assert found.config == expected.config
    assert found.summary.keys() >= expected.summary.keys()
    for name, value in expected.summary.items():
        np.testing.assert_array_equal(found.summary[name], value, name)
    assert found.arrays.keys() >= expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, name)
    for name in ("accuracy", "initial_accuracy", "seeds"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("parts", [[(0, 1), (2, 3, 4)], [(3, 4), (2,), (0, 1)]])
def test_parts_of_a_run_are_the_run(parts):
    whole = whole_run()
    (joined,) = join_seeds([part_of(whole, *seeds) for seeds in parts])
    assert_same(joined.run, whole)
    firsts = [part.config["seeds"][0] for part in joined.parts]
    assert firsts == sorted(firsts)


def test_a_run_alone_is_left_as_it_is():
    whole = whole_run()
    (joined,) = join_seeds([whole])
    assert_same(joined.run, whole)
    assert joined.parts == (whole,)


def test_a_seed_that_diverged_is_named_whatever_part_it_is_in():
    whole = whole_run()
    lost = {"diverged_seeds": [3], "diverged_at": {"3": {"task": 1}}}
    whole = whole._replace(summary=whole.summary | lost)
    parts = [part_of(whole, 0, 1), part_of(whole, 2, 3, 4)]
    (found,) = make_entries(parts)
    (expected,) = make_entries([whole])
    assert report.columns.remark(found) == report.columns.remark(expected)
    assert "seed 3 in task 1 diverged" in report.columns.remark(found)
    np.testing.assert_array_equal(found.measure("task_alignment").shape[0], 4)


def apart(runs):
    """Labels of runs that are not joined."""
    return [entry.label for entry in make_entries(runs)]


def test_what_a_learner_told_may_have_other_names():
    """As it has where one part was made by an older version."""
    whole = whole_run()
    new = part_of(whole, 1)
    told = new.arrays | {"info_loss": np.full((1, 3), 0.5)}
    (joined,) = join_seeds([part_of(whole, 0), new._replace(arrays=told)])
    assert_same(joined.run, part_of(whole, 0, 1))


def test_a_seed_in_two_runs_keeps_all_of_them_apart():
    whole = whole_run()
    parts = [part_of(whole, 0, 1), part_of(whole, 1, 2), part_of(whole, 3, 4)]
    assert sorted(apart(parts)) == [
        "La-MAML (seeds 0-1)",
        "La-MAML (seeds 1-2)",
        "La-MAML (seeds 3-4)",
    ]


def test_settings_that_differ_keep_runs_apart():
    whole = whole_run()
    other = part_of(whole, 2, 3, 4)
    other = other._replace(config=other.config | {"glances": 7})
    found = apart([part_of(whole, 0, 1), other])
    assert sorted(found) == ["La-MAML (glances 5)", "La-MAML (glances 7)"]


@pytest.mark.parametrize("name", ["task_alignment", "probe_updates", "anytime_after"])
def test_measures_that_differ_keep_runs_apart(name):
    whole = whole_run()
    other = part_of(whole, 4)
    lacking = {k: v for k, v in other.arrays.items() if k != name}
    elsewhere = other.arrays | {name: other.arrays[name][..., :-1]}
    for arrays in (lacking, elsewhere):
        found = apart([part_of(whole, 0, 1), other._replace(arrays=arrays)])
        assert sorted(found) == ["La-MAML (seed 4)", "La-MAML (seeds 0-1)"]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Writes a report of ER's seeds 0 and 1-2, which ran on ``devices``."""

    def make(*devices):
        accuracy, initial = example()
        folders = [
            store_run(
                tmp_path / name,
                accuracy=accuracy[seeds],
                initial=initial[seeds],
                seeds=list(range(3))[seeds],
                environment={"device": device, "command": f"run {name}"},
            )
            for name, seeds, device in zip(
                ("one", "two"), (slice(0, 1), slice(1, 3)), devices, strict=True
            )
        ]
        console = Console(file=io.StringIO(), width=80)
        return report.make_report(folders, tmp_path / "out", console=console), folders

    monkeypatch.setattr(figures, "write", lambda *args: [])
    return make


def test_the_table_has_one_row_and_the_page_tells_of_each_part(stored):
    files, folders = stored("cpu", "cpu")
    (row,) = csv.DictReader(io.StringIO(files.table_csv.read_text()))
    assert (row["label"], row["num_seeds"]) == ("ER", "3")
    assert float(row["ra_mean"]) == pytest.approx(65, abs=1e-4)
    assert float(row["ra_sd"]) == pytest.approx(5, abs=1e-4)
    assert row["folder"] == f"{folders[0]}, {folders[1]}"
    page = files.page.read_text()
    for text in ("ER, seed 0, CPU", "ER, seeds 1-2, CPU", "run one", "run two"):
        assert text in page
    assert "2 runs of 1 method" in page


def test_seconds_are_the_mean_over_all_seeds(stored):
    files, _ = stored("NVIDIA H200", "NVIDIA H200")  # 30 s for one seed, 30 s for two
    (row,) = csv.DictReader(io.StringIO(files.table_csv.read_text()))
    assert (row["train_s_per_seed"], row["device"]) == ("20.0", "NVIDIA H200")


def test_seconds_of_different_devices_are_not_averaged(stored):
    files, _ = stored("cpu", "NVIDIA H200")
    (row,) = csv.DictReader(io.StringIO(files.table_csv.read_text()))
    assert (row["train_s_per_seed"], row["device"]) == ("", "cpu, NVIDIA H200")


def test_a_run_that_is_whole_needs_no_seeds_in_its_line():
    (entry,) = make_entries([whole_run()])
    assert "seed" not in provenance.run_summary(entry, entry.parts[0])


def test_parts_are_read_from_a_folder_of_folders(tmp_path):
    accuracy, initial = example()
    for seed in range(3):
        part = accuracy[[seed]], initial[[seed]]
        store_run(tmp_path / f"seed-{seed}", "er", *part, seeds=[seed])
    runs, _ = report.make.read_runs([tmp_path])
    (entry,) = make_entries(runs)
    assert entry.num_used == 3
    assert len(run_folder.find([tmp_path])) == 3


def test_seeds_that_were_trained_apart_are_those_of_one_run(tmp_path):
    whole, *parts = [
        run
        for name, seeds in (("both", [0, 1]), ("one", [0]), ("two", [1]))
        for run in experiments.run(
            "digits-rotations", "er", seeds=seeds, out=tmp_path / name, num_tasks=2
        )
    ]
    (joined,) = join_seeds(parts)
    assert joined.run.config == whole.config
    np.testing.assert_array_equal(joined.run.accuracy, whole.accuracy)
