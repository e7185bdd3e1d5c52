"""One process at a time writes a folder, and a dead one keeps nobody out."""

import json
import os
import signal
import time

import filelock
import processes
import pytest

from experiments import run_folder
from experiments.run_folder import RunFolderError, locking

DEAD = {"pid": 4711, "host": "elsewhere", "since": "2026-01-02T03:04:05+00:00"}


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def never(text):
    raise AssertionError(text)


def test_a_held_folder_is_refused_with_its_holder_and_not_touched(tmp_path):
    with run_folder.held([tmp_path], never):
        (tmp_path / "config.json").write_text("{}")
        before = files(tmp_path)
        with pytest.raises(RunFolderError) as error:
            with run_folder.held([tmp_path], never):
                pass
        assert files(tmp_path) == before
    assert f"process {os.getpid()} on " in str(error.value)
    assert "nothing was touched" in str(error.value)
    with run_folder.held([tmp_path], never):  # it was given back
        pass
    assert files(tmp_path) == {".lock": b"", "config.json": b"{}"}


def test_one_folder_that_is_held_gives_the_others_back(tmp_path):
    with run_folder.held([tmp_path / "b"], never):
        with pytest.raises(RunFolderError, match="b: process"):
            with run_folder.held([tmp_path / "a", tmp_path / "b"], never):
                pass
        with run_folder.held([tmp_path / "a"], never):
            pass


def test_a_lock_of_a_dead_process_is_told_and_taken_over(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".holder.json").write_text(json.dumps(DEAD))
    told = []
    with run_folder.held([tmp_path], told.append):
        holder = json.loads((tmp_path / ".holder.json").read_text())
        assert holder["pid"] == os.getpid()
    (text,) = told
    assert "process 4711 on elsewhere, which started there at 2026-01-02" in text
    assert "is gone" in text


@pytest.mark.parametrize("damage", [b"", b"[1]", b"{", b"\xff"])
def test_a_damaged_holder_is_no_obstacle(damage, tmp_path):
    (tmp_path / ".holder.json").write_bytes(damage)
    told = []
    with run_folder.held([tmp_path], told.append):
        pass
    assert "process ? on ?" in told[0]


def test_a_holder_that_has_not_said_who_it_is_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "_PATIENCE_S", 0.05)
    with filelock.FileLock(tmp_path / ".lock"):
        with pytest.raises(RunFolderError, match="another process is running"):
            with run_folder.held([tmp_path], never):
                pass


def test_clearing_keeps_the_lock_and_nothing_else(tmp_path):
    with run_folder.held([tmp_path], never):
        (tmp_path / "checkpoints/3").mkdir(parents=True)
        (tmp_path / "checkpoints/3/state").write_text("x")
        (tmp_path / "config.json").write_text("{}")
        run_folder.clear(tmp_path)
        assert set(files(tmp_path)) == {".lock", ".holder.json"}
        assert not (tmp_path / "checkpoints").exists()
        with pytest.raises(RunFolderError, match="is running in this folder"):
            with run_folder.held([tmp_path], never):
                pass


@pytest.mark.parametrize("name", [".lock", ".holder.json", ".config.json.part"])
def test_what_a_process_killed_at_its_start_leaves_is_an_empty_folder(name, tmp_path):
    (tmp_path / name).touch()
    run_folder.check_free(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunFolderError, match="holds something that is no run"):
        run_folder.check_free(tmp_path)


def start(out, *options):
    sizes = ["--num-tasks", 12, "--rows-per-task", 60, "--seeds", 1, "--devices", 1]
    command = processes.experiments("run", "-m", "er", *sizes, *options)
    return processes.start([*command, "--checkpoint-every", 0, "--out", out])


def wait_for(process, path):
    while process.poll() is None and not (path.is_file() and path.stat().st_size):
        time.sleep(0.001)
    assert process.poll() is None, process.communicate()[0]


@pytest.mark.slow
def test_a_second_process_is_refused_and_the_first_ends_untouched(tmp_path):
    first = start(tmp_path)
    wait_for(first, tmp_path / "er/config.json")
    config = (tmp_path / "er/config.json").read_bytes()
    others = [start(tmp_path), start(tmp_path, "--fresh")]
    for other in others:
        text = processes.ended(other, 2)
        assert f"process {first.pid} on " in " ".join(text.split())
        assert "Traceback" not in text
    processes.ended(first)
    assert (tmp_path / "er/config.json").read_bytes() == config
    assert len((tmp_path / "er/evaluations.jsonl").read_bytes().splitlines()) == 12
    run_folder.read(tmp_path / "er")


@pytest.mark.slow
def test_two_started_at_once_one_of_them_runs(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    texts = [process.communicate(timeout=600)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], texts
    run_folder.read(tmp_path / "er")


@pytest.mark.slow
def test_a_killed_run_is_taken_over(tmp_path):
    first = start(tmp_path)
    wait_for(first, tmp_path / "er/evaluations.jsonl")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    text = processes.ended(start(tmp_path))
    assert f"process {first.pid} on " in text and "is gone" in text
    assert "was interrupted, goes on from" in text
    run_folder.read(tmp_path / "er")
