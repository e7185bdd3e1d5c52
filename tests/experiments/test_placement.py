"""Meshes and processes: the same numbers wherever seeds and rows go."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import jax
import numpy as np
import processes
import pytest

from experiments.config import benchmarks, presets
from experiments.config.run_config import RunConfig
from experiments.support.errors import UserError
from experiments.training import placement
from experiments.training.inputs import place
from experiments.training.programs import compile_programs

ROOT = Path(__file__).parents[2]
SEEDS = 3
# The same operations on each seed, in other processes: the same bits. Rows shared by
# devices add up float32 sums in another order, and 16 updates amplify 6e-8 to 1e-6.
SAME = {"rtol": 0, "atol": 0}
REORDERED = {"rtol": 1e-4, "atol": 1e-5}


def start(out, *options, methods=("er",), num_tasks=2):
    command = ["run", *(part for name in methods for part in ("-m", name))]
    command += ["--num-tasks", num_tasks, "--rows-per-task", 40, "--seeds", SEEDS]
    command += ["--no-compile-cache", "--out", out]
    return processes.start(processes.experiments(*command, *options))


def start_several(count, out, *options, **kwargs):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    where = ["--distributed", "--coordinator", address, "--num-processes", count]
    return [
        start(out, *where, "--process-id", n, "--devices", 1, *options, **kwargs)
        for n in range(count)
    ]


def finish(started):
    return [processes.ended(process) for process in started]


def arrays(out, method="er"):
    with np.load(out / method / "arrays.npz") as file:
        return {name: file[name] for name in file.files}


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(
            found[name], expected[name], err_msg=name, **tolerance
        )


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    methods = ("er", "lamaml")
    finish([start(out, "--devices", 1, methods=methods)])
    return {method: arrays(out, method) for method in methods}


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "tolerance"), [("8x1", SAME), ("4x2", REORDERED)])
def test_eight_devices_in_one_process_give_one_devices_numbers(
    mesh, tolerance, one_device, tmp_path
):
    options = tmp_path, "--devices", 8, "--mesh", mesh
    finish([start(*options, methods=["lamaml"])])
    assert_same(arrays(tmp_path, "lamaml"), one_device["lamaml"], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "mesh", "tolerance"), [(2, "2x1", SAME), (4, "2x2", REORDERED)]
)
def test_several_processes_give_one_devices_numbers(
    count, mesh, tolerance, one_device, tmp_path
):
    texts = finish(start_several(count, tmp_path, "--mesh", mesh))
    assert_same(arrays(tmp_path), one_device["er"], tolerance)
    told = ["tables and figures are in" in text for text in texts]
    assert told == [True] + [False] * (count - 1)  # one writes, one speaks


@pytest.mark.slow
def test_killed_processes_go_on_together(tmp_path):
    finish([start(tmp_path / "whole", "--devices", 1, num_tasks=12)])
    options = tmp_path / "parts", "--checkpoint-every", 0
    started = start_several(2, *options, num_tasks=12)
    lines = tmp_path / "parts/er/evaluations.jsonl"
    while all(process.poll() is None for process in started):
        if lines.is_file() and lines.read_text().count("\n") >= 4 * SEEDS:
            break
        time.sleep(0.001)
    for process in started:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "parts/er/summary.json").exists()
    first, _ = finish(start_several(2, *options, num_tasks=12))
    assert "goes on from task" in first
    whole, parts = (arrays(tmp_path / name) for name in ("whole", "parts"))
    assert_same(parts, whole, SAME)


@pytest.mark.slow
def test_rows_are_shared_in_the_compiled_program():
    config = make_config()
    data = benchmarks.load(config.benchmark, config.seeds)
    texts = []
    for per_seed in (1, 2):
        mesh = placement.make_mesh(2, per_seed)
        inputs = place(data, config.seeds, mesh)
        (program,) = compile_programs([[config]], inputs)
        texts.append(program.compiled.train_task.as_text())
    alone, shared = texts
    assert "all-reduce" in shared and "all-reduce" not in alone


def collectives(mesh):
    command = [sys.executable, ROOT / "tests/experiments/collectives.py", mesh]
    process = processes.run(command, PYTHONPATH=str(ROOT))
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["8x1", "64x1", "256x1"])
def test_devices_with_seeds_of_their_own_exchange_nothing(mesh):
    found = collectives(mesh)
    assert found["train"] == {} and found["evaluate"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["4x2", "128x2"])
def test_devices_that_share_rows_exchange_a_gradient_per_inner_step(mesh):
    found = collectives(mesh)
    inner_steps = make_config().hyper.inner_steps
    (_, reduced), (_, other) = (
        found["train"]["all-reduce"],
        np.sum([x for k, x in found["train"].items() if k != "all-reduce"], axis=0),
    )
    # One tree of the weights per inner step, whatever the number of groups, and the
    # losses of rows beside it.
    assert inner_steps <= reduced / found["weight_bytes"] < 1.02 * inner_steps
    assert other < 0.1 * found["weight_bytes"]


def make_config(**overrides):
    (hyper,) = presets.resolve("digits-rotations", ["lamaml"], overrides)
    return RunConfig(
        benchmarks.get_benchmark("digits-rotations"), "lamaml", (0, 1), hyper
    )


def test_seeds_of_a_process_are_those_of_its_devices():
    mesh = placement.make_mesh(2)
    assert placement.own_seeds([5, 3, 9], mesh) == [5, 3, 9]
    (placed,) = placement.place_own([np.array([50, 30, 90])], [5, 3, 9], mesh)
    np.testing.assert_array_equal(placed, [50, 30, 90, 90])
    assert placed.sharding == placement.by_seed(mesh)
    assert placement.num_own(placed) == 4
    np.testing.assert_array_equal(
        placement.place_all(np.array([[1], [2], [3]]), mesh), [[1], [2], [3], [3]]
    )


def test_mesh_has_groups_of_devices():
    assert dict(placement.make_mesh(2, 2).shape) == {"seed": 1, "row": 2}
    assert placement.parse_mesh("4x2") == (4, 2)


@pytest.mark.parametrize("text", ["4", "4x", "0x2", "2x-1", "axb", "1x2x3"])
def test_no_mesh_is_told(text):
    with pytest.raises(UserError, match="--mesh: expected SEEDSxROWS"):
        placement.parse_mesh(text)


def test_devices_that_do_not_divide_are_told():
    with pytest.raises(UserError, match="--mesh: 2 devices do not divide"):
        placement.make_mesh(2, 3)


def test_processes_that_do_not_meet_are_told(monkeypatch):
    def refuse(*args):
        raise RuntimeError("nobody there")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match="--distributed: nobody there"):
        placement.join_processes("localhost:1", 2, 0)
