"""Files with altered bytes: what they were, or one error; never a hang or a crash."""

import io
import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from damage import damages, settings
from hypothesis import given
from runs import write_run

from experiments import bench, run_folder
from experiments.config import request
from experiments.support.errors import UserError
from experiments.training.checkpoints import Checkpoint, Checkpoints


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "run"
    write_run(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings
@given(
    st.sampled_from(
        [
            "config.json",
            "environment.json",
            "evaluations.jsonl",
            "arrays.npz",
            "summary.json",
        ]
    ),
    damages(),
)
def test_a_damaged_run_is_refused_or_unchanged(sound, tmp_path_factory, name, damage):
    folder = tmp_path_factory.mktemp("run")
    for each, data in sound.items():
        (folder / each).write_bytes(damage(data) if each == name else data)
    try:
        run = run_folder.read(folder)
    except run_folder.RunFolderError as error:
        assert str(folder) in str(error)
        return
    assert run.accuracy[0, 1, 0] == np.float32(0.6)


CONFIG = b"""
benchmark: tinyimagenet-split   # a comment
method: [er, lamaml]
seeds: 3
learning_rate: 1e-3
hidden: [100, 100]
grid: {step_size_init: [0.1, 0.2]}
"""


@settings
@given(damages())
def test_a_damaged_configuration_is_read_or_refused(tmp_path_factory, damage):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_bytes(damage(CONFIG))
    try:
        found = request.read_file(path)
    except UserError as error:
        assert "run.yaml" in str(error)
        return
    assert isinstance(found, dict)


@settings
@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_bytes(data)
    try:
        request.read_file(path)
    except UserError as error:
        assert "run.yaml" in str(error)


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, "hidden: *a11"]))
    with pytest.raises(UserError, match="unknown field 'a0'"):
        request.read_file(tmp_path / "run.yaml")
    text = "hidden: &a [1]\nmethod: " + "[" * 3 + "*a" + "]" * 3
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match="method: expected"):
        request.read_file(tmp_path / "run.yaml")


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_no_reader_loads_a_pickle(sound, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name, data in sound.items():
        (folder / name).write_bytes(data)
    buffer = io.BytesIO()
    np.savez(buffer, accuracy=np.array([Harmful()], object))
    for name, data in (
        ("arrays.npz", buffer.getvalue()),
        ("arrays.npz", pickle.dumps(Harmful())),
        ("config.json", pickle.dumps(Harmful())),
    ):
        (folder / name).write_bytes(data)
        with pytest.raises(run_folder.RunFolderError):
            run_folder.read(folder)
    with pytest.raises(UserError):
        request.read_file(folder / "config.json")


@settings
@given(damages())
def test_a_damaged_bench_record_is_refused_or_read(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("bench")
    path = folder / "bench.json"
    record = bench.Record({"device": "cpu"}, [bench.Result("t", [{"a": 1.0}])])
    bench.write(path, {"update": record})
    path.write_bytes(damage(path.read_bytes()))
    try:
        bench.read(path)
    except UserError as error:
        assert "bench.json" in str(error)


HISTORY = {
    "accuracy": np.zeros((2, 1, 2), np.float32),
    "finite": np.ones((2, 1), bool),
}


# When orbax gives up on a damaged file, tensorstore may still be reading another, and
# finds the event loop closed that it would report to.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@hypothesis.settings(settings, max_examples=20)
@given(st.integers(0, 10**6), damages())
def test_a_damaged_checkpoint_is_left_for_the_one_before(
    tmp_path_factory, which, damage
):
    folder = tmp_path_factory.mktemp("checkpoints") / "checkpoints"
    checkpoints = Checkpoints(folder, 0)
    state = {"w": np.arange(6.0, dtype=np.float32).reshape(1, 6)}
    for num_tasks in (1, 2):
        history = HISTORY | {
            "accuracy": np.zeros((num_tasks + 1, 1, 2), np.float32),
            "finite": np.ones((num_tasks + 1, 1), bool),
        }
        moved = {"w": state["w"] + num_tasks}
        checkpoints.save(Checkpoint(moved, history))
    checkpoints.close()
    files = sorted(path for path in (folder / "2").rglob("*") if path.is_file())
    path = files[which % len(files)]
    path.write_bytes(damage(path.read_bytes()))
    told = []
    again = Checkpoints(folder, 0)
    found = again.latest(state, told.append)
    again.close()
    assert found is not None
    num_tasks = len(found.history["accuracy"]) - 1
    assert num_tasks == 2 or told
    np.testing.assert_array_equal(found.state["w"], state["w"] + num_tasks)
