import json
import os

import numpy as np
import pytest
from runs import ACCURACY, CONFIG, INITIAL, NAN, SEEDS, arrays, summary, write_run

from experiments import run_folder
from experiments.run_folder import NothingToReportError, RunFolderError

FILES = (
    "config.json",
    "environment.json",
    "evaluations.jsonl",
    "arrays.npz",
    "summary.json",
)


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "er")


def refuses(folder, file, text, kind=RunFolderError):
    with pytest.raises(kind) as caught:
        run_folder.read(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert file in message
    assert text in message
    assert ";" in message, "says what to do"


def edit(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_reads_back_as_written(folder):
    run = run_folder.read(folder)
    assert run.config == run_folder.layout.DEFAULTS | CONFIG
    assert run.environment == {"device": "cpu"}
    np.testing.assert_array_equal(run.accuracy, ACCURACY)
    np.testing.assert_array_equal(run.initial_accuracy, INITIAL)
    assert run.seeds.tolist() == SEEDS
    np.testing.assert_array_equal(run.summary["forward_transfer"], [0.4, NAN])
    assert run_folder.has_result(run).tolist() == [True, True]


MEASURES = {
    "probe_updates": np.array([25, 50, 75]),
    "probe_tasks": np.array([0, 0, 1]),
    "probe_slow": np.full((2, 3), 0.5),
    "probe_fast": np.full((2, 3), 0.4),
    "step_size_quantiles": np.full((2, 3, 4, 5), 0.1),
    "alignment_after": np.array([1, 2]),
    "task_alignment": np.full((2, 2, 2, 2), NAN),
}
LEAVES = {"step_size_leaves": ["a", "b", "c", "d"]}


def test_what_was_measured_is_read(tmp_path):
    folder = write_run(
        tmp_path, run_arrays=arrays(**MEASURES), run_summary=summary(**LEAVES)
    )
    run = run_folder.read(folder)
    for name, array in MEASURES.items():
        np.testing.assert_array_equal(run.arrays[name], array)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"probe_slow": np.ones((3, 3))}, "has probe_slow of shape (3, 3)"),
        ({"probe_fast": np.ones((2, 4))}, "has probe_fast of shape (2, 4)"),
        ({"probe_tasks": np.ones(3)}, "has probe_tasks of dtype float64"),
        ({"probe_fast": None}, "has no array probe_fast"),
        ({"step_size_quantiles": np.ones((2, 2, 4, 5))}, "has step_size_quantiles of"),
        ({"step_size_quantiles": np.ones((2, 3, 4))}, "has step_size_quantiles of"),
        ({"task_alignment": np.ones((2, 3, 2, 2))}, "has task_alignment of shape"),
        ({"alignment_after": None}, "has no array alignment_after"),
    ],
)
def test_measures_that_do_not_fit_are_refused(changes, text, tmp_path):
    measures = {k: v for k, v in (MEASURES | changes).items() if v is not None}
    folder = write_run(
        tmp_path, run_arrays=arrays(**measures), run_summary=summary(**LEAVES)
    )
    refuses(folder, "arrays.npz", text)


@pytest.mark.parametrize("leaves", [None, ["a"], ["a", "b", "c", 4], "abcd"])
def test_step_sizes_need_a_name_per_leaf(leaves, tmp_path):
    folder = write_run(
        tmp_path,
        run_arrays=arrays(**MEASURES),
        run_summary=summary(step_size_leaves=leaves),
    )
    refuses(folder, "summary.json", "has no name for each step size leaf")


def test_early_runs_of_one_head_rectified_their_step_sizes(tmp_path):
    folder = write_run(tmp_path, config=CONFIG | {"inner_steps": 5})
    assert run_folder.read(folder).config["rectify"] is True


def test_nan_is_null_in_json_and_nan_again_when_read(folder):
    for file in ("summary.json", "evaluations.jsonl"):
        text = (folder / file).read_text()
        assert "NaN" not in text
        assert "null" in text
    assert np.isnan(run_folder.read(folder).accuracy[1, 0, 1])


def test_only_the_five_files_remain(folder):
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)


def test_each_evaluation_is_one_line(folder):
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in lines] == [0, 0, 1, 1]
    assert json.loads(lines[1])["accuracy"] == [pytest.approx(0.9), None]


def test_a_torn_last_line_is_dropped_by_the_next_append(folder):
    path = folder / "evaluations.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    record = {"seed": 5, "task": 1, "accuracy": ACCURACY[1, 1]}
    run_folder.append_evaluation(folder, record)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    kind = NothingToReportError if name == "summary.json" else RunFolderError
    refuses(folder, name, "there is no" if kind is not RunFolderError else "is missing")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0, 0.5, 0.9])
def test_a_truncated_file_is_named(folder, name, part):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(part * len(data))])
    refuses(folder, name, "")


@pytest.mark.parametrize("name", FILES)
def test_bytes_that_are_not_text_are_refused(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] = 0xFF
    (folder / name).write_bytes(data)
    refuses(folder, name, "")


def test_no_altered_byte_of_the_arrays_changes_them_unnoticed(folder):
    path = folder / "arrays.npz"
    whole = path.read_bytes()
    for place in range(0, len(whole), 11):
        altered = bytearray(whole)
        altered[place] ^= 0x15
        path.write_bytes(altered)
        try:
            run = run_folder.read(folder)
        except RunFolderError as error:
            assert "arrays.npz" in str(error)
        else:  # a byte that carries nothing, such as a time stamp
            np.testing.assert_array_equal(run.accuracy, ACCURACY)
            np.testing.assert_array_equal(run.initial_accuracy, INITIAL)


def test_a_shape_altered_to_a_smaller_one_is_found(tmp_path):
    more = arrays(info_loss=np.zeros((2, 70000)))
    folder = write_run(tmp_path / "er", CONFIG, more)
    path = folder / "arrays.npz"
    assert path.read_bytes().count(b"(2, 70000)") == 1
    path.write_bytes(path.read_bytes().replace(b"(2, 70000)", b"(2, 30000)"))
    refuses(folder, "arrays.npz", "info_loss")


def test_pickled_arrays_are_never_loaded(folder):
    np.savez(folder / "arrays.npz", **arrays(accuracy=np.array([{}], object)))
    refuses(folder, "arrays.npz", "allow_pickle=False")


def test_objects_are_not_written(folder):
    with pytest.raises(TypeError, match="accuracy"):
        run_folder.finish(folder, {"accuracy": np.array([{}], object)}, {})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 2}, "format_version 2"),
        ({"format_version": None}, "format_version None"),
        ({"method": "../er"}, "method"),
        ({"benchmark": ""}, "benchmark"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "twice"),
        ({"num_tasks": 0}, "num_tasks"),
        ({"num_tasks": True}, "num_tasks"),
    ],
)
def test_a_wrong_configuration_is_refused(folder, changes, text):
    edit(folder, "config.json", **changes)
    refuses(folder, "config.json", text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"accuracy": ACCURACY[:1]}, "(1, 2, 2), expected (2, 2, 2)"),
        ({"initial_accuracy": INITIAL[:, :1]}, "initial_accuracy of shape"),
        ({"accuracy": np.full((2, 2, 2), 71.0)}, "outside 0 to 1"),
        ({"accuracy": np.full((2, 2, 2), np.inf)}, "outside 0 to 1"),
        ({"accuracy": np.ones((2, 2, 2), np.int32)}, "dtype int32"),
        ({"seeds": np.array([3, 6], np.int32)}, "other seeds"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(folder, changes, text):
    np.savez(folder / "arrays.npz", **arrays(**changes))
    refuses(folder, "arrays.npz", text)


def test_an_array_that_is_not_there_is_named(folder):
    np.savez(folder / "arrays.npz", accuracy=ACCURACY)
    refuses(folder, "arrays.npz", "initial_accuracy")


@pytest.mark.parametrize("name", run_folder.METRICS)
def test_a_summary_that_disagrees_with_the_matrix_is_refused(folder, name):
    values = json.loads((folder / "summary.json").read_text())[name]
    edit(folder, "summary.json", **{name: [values[0] + 1e-6, values[1]]})
    run_folder.read(folder)
    edit(folder, "summary.json", **{name: [values[0] + 3e-5, values[1]]})
    refuses(folder, "summary.json", name)


@pytest.mark.parametrize(
    "changes",
    [
        {"retained_accuracy": [0.75]},
        {"retained_accuracy": "high"},
        {"diverged_seeds": [4]},
        {"diverged_seeds": None},
        {"timing": 3},
        {"cost": [105]},
        {"cost": {"memory_bytes": "many"}},
        {"cost": {"gradient_evaluations_per_row": -1}},
    ],
)
def test_a_wrong_summary_is_refused(folder, changes):
    edit(folder, "summary.json", **changes)
    refuses(folder, "summary.json", next(iter(changes)))


def test_an_evaluation_that_disagrees_with_the_matrix_is_refused(folder):
    record = {"seed": 3, "task": 1, "accuracy": [0.6, 0.8]}
    run_folder.append_evaluation(folder, record)
    refuses(folder, "evaluations.jsonl", "differs")


def test_json_that_is_no_object_is_refused(folder):
    (folder / "environment.json").write_text("[]")
    refuses(folder, "environment.json", "not a JSON object")


def lost(*indices):
    accuracy = ACCURACY.copy()
    accuracy[list(indices), 1] = NAN
    metrics = {
        name: [NAN if i in indices else v for i, v in enumerate(summary()[name])]
        for name in run_folder.METRICS[:3]
    }
    diverged = [SEEDS[i] for i in indices]
    return arrays(accuracy=accuracy), summary(**metrics, diverged_seeds=diverged)


def test_a_diverged_seed_has_no_result_and_the_other_has(tmp_path):
    run = run_folder.read(write_run(tmp_path / "er", CONFIG, *lost(0)))
    assert run_folder.has_result(run).tolist() == [False, True]


def test_a_seed_listed_as_diverged_never_counts(folder):
    edit(folder, "summary.json", diverged_seeds=[5])
    assert run_folder.has_result(run_folder.read(folder)).tolist() == [True, False]


def test_a_seed_without_all_accuracies_never_counts(tmp_path):
    run_arrays, run_summary = lost(0)
    run_summary["diverged_seeds"] = []
    run = run_folder.read(write_run(tmp_path / "er", CONFIG, run_arrays, run_summary))
    assert run_folder.has_result(run).tolist() == [False, True]


def test_a_run_whose_seeds_all_diverged_has_nothing_to_report(tmp_path):
    folder = write_run(tmp_path / "er", CONFIG, *lost(0, 1))
    refuses(folder, "arrays.npz", "diverged", NothingToReportError)


def test_forward_transfer_of_one_task_is_zero(tmp_path):
    run_folder.create(tmp_path, CONFIG | {"num_tasks": 1, "seeds": [0]}, {})
    record = {"seed": 0, "task": 0, "accuracy": [0.5]}
    run_folder.append_evaluation(tmp_path, record)
    one = {
        "accuracy": np.full((1, 1, 1), 0.5),
        "initial_accuracy": np.zeros((1, 1)),
        "seeds": np.array([0]),
    }
    figures = dict(zip(run_folder.METRICS, ([0.5], [0.0], [0.5], [0.0]), strict=True))
    run_folder.finish(tmp_path, one, figures | {"timing": {}, "diverged_seeds": []})
    assert run_folder.read(tmp_path).summary["forward_transfer"].tolist() == [0.0]


def test_a_used_folder_is_refused_with_the_ways_out(folder):
    before = (folder / "config.json").read_bytes()
    with pytest.raises(RunFolderError, match="holds a run; give another --out"):
        run_folder.create(folder, {}, {})
    assert (folder / "config.json").read_bytes() == before


def test_an_empty_folder_may_be_used(tmp_path):
    run_folder.check_usable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    run_folder.create(tmp_path, CONFIG, {})


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "er", tmp_path / ("x" * 300)):
        with pytest.raises(RunFolderError, match="--out"):
            run_folder.create(path, CONFIG, {})


def no_space(*args):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_found_by_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RunFolderError, match="No space left"):
        run_folder.check_usable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_file_of_before(folder, monkeypatch):
    before = (folder / "summary.json").read_bytes()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RunFolderError, match="No space left"):
        run_folder.write_file(folder / "summary.json", b"half")
    assert (folder / "summary.json").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)


def test_find_takes_folders_and_parents_and_names_each_run_once(tmp_path):
    first, second = write_run(tmp_path / "a" / "er"), write_run(tmp_path / "b")
    assert run_folder.find([second, tmp_path]) == [second, first]


def test_find_refuses_a_path_without_runs(tmp_path):
    with pytest.raises(RunFolderError, match="no run folder here"):
        run_folder.find([tmp_path])
    with pytest.raises(RunFolderError, match="no such folder"):
        run_folder.find([tmp_path / "missing"])
