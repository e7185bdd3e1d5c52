"""Grids: planned, trained side by side, gone on with, ranked."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import methods, run_folder
from experiments.config import benchmarks, presets, request
from experiments.config.run_config import RunConfig, shape_of
from experiments.data import sources
from experiments.methods.hyperparameters import rates_of
from experiments.report.leaderboard import leaderboard
from experiments.support.errors import UserError
from experiments.training import loop, placement, sessions, sweep
from experiments.training.inputs import place
from experiments.training.programs import compile_programs, make_method
from experiments.training.storing import Part

GRID = {"grid": {"capacity": [10, 20]}}
SIZES = {"num_tasks": 2, "rows_per_task": 20, "seeds": 2}


def test_every_method_takes_the_part_of_the_grid_that_it_has():
    grid = {"step_size_init": [0.1, 0.2], "capacity": [10, 20], "learning_rate": [0.1]}
    points = sweep.plan({"method": ["lamaml", "er", "online"], "grid": grid})
    assert [str(point.folder) for point in points] == [
        "digits-rotations/lamaml/step_size_init=0.1,capacity=10",
        "digits-rotations/lamaml/step_size_init=0.1,capacity=20",
        "digits-rotations/lamaml/step_size_init=0.2,capacity=10",
        "digits-rotations/lamaml/step_size_init=0.2,capacity=20",
        "digits-rotations/er/capacity=10,learning_rate=0.1",
        "digits-rotations/er/capacity=20,learning_rate=0.1",
        "digits-rotations/online/learning_rate=0.1",
    ]
    (config,) = request.configs(points[3].asked)
    assert (config.hyper.step_size_init, config.hyper.capacity) == (0.2, 20)
    assert all(point.asked.options["evaluate_on"] == "validation" for point in points)


def test_what_no_preset_sets_can_be_tried_too():
    grid = {"grain": ["leaf", "all"]}
    points = sweep.plan({"method": ["lamaml", "er"], "grid": grid})
    assert [point.folder.name for point in points] == [
        *("grain=leaf", "grain=all", "presets")
    ]
    (config,) = request.configs(points[1].asked)
    assert config.hyper.grain == "all"


def test_points_that_differ_in_rates_only_make_one_group():
    grid = {"step_size_init": [0.1, 0.2, 0.3], "capacity": [10, 20]}
    parts = [
        Part(config, point.folder)
        for point in sweep.plan({"method": "lamaml", "grid": grid})
        for config in request.configs(point.asked)
    ]
    groups = list(sweep.groups(parts, None))
    assert [len(group) for group in groups] == [3, 3]
    assert {part.config.hyper.capacity for part in groups[0]} == {10}
    assert [len(group) for group in sweep.groups(parts, 2)] == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "none was given: add for example --grid step_size_init"),
        ({"grid": {}}, "to train with the published values, use `run`"),
        ({"grid": {"momentum": [0.5]}}, "momentum: none of these methods has it"),
        (
            {"grid": {"capacity": [5]}, "capacity": 5},
            "capacity: is both in the grid and outside",
        ),
        ({**GRID, "method": ["er", "er"]}, "each method once"),
        ({**GRID, "benchmark": ["digits"]}, "unknown benchmark 'digits'"),
        ({**GRID, "method": "sgd"}, "no preset|unknown method 'sgd'"),
    ],
)
def test_what_cannot_be_swept_is_told(given, message):
    with pytest.raises(UserError, match=message):
        sweep.plan(given)


def test_validation_sees_no_test_row_and_no_test_task():
    benchmark = dataclasses.replace(
        benchmarks.get_benchmark("digits-rotations"), num_tasks=4, rows_per_task=50
    )
    source = sources.load_source("digits")
    data = benchmarks.draw(benchmark, source, (0, 1), evaluate_on="validation")
    tests = {image.tobytes() for image in source.test_images}
    train, held = (
        {image.astype(np.uint8).tobytes() for image in images}
        for images in (data.train_images, data.test_images)
    )
    originals = {image.tobytes() for image in source.train_images}
    assert train | held == originals and not train & held
    assert (train | held) & tests == originals & tests
    shares = np.bincount(data.test_labels) / np.bincount(source.train_labels)
    np.testing.assert_allclose(shares, 0.1, atol=0.01)
    usual = benchmarks.draw(benchmark, source, (0, 1))
    assert not (data.pixel_maps == usual.pixel_maps).all(axis=-1).any()
    again = benchmarks.draw(benchmark, source, (1,), evaluate_on="validation")
    np.testing.assert_array_equal(again.rows[0], data.rows[1])


def test_validation_of_a_split_shows_as_many_rows_as_the_test():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(4, dtype=np.int32), 50))
    source = sources.Source(
        rng.integers(0, 256, (200, 8, 8), np.uint8),
        labels,
        rng.integers(0, 256, (40, 8, 8), np.uint8),
        labels[:40],
        num_classes=4,
        max_value=255,
    )
    benchmark = benchmarks.Benchmark("x", "x", "split", 2, 90, classes_per_task=2)
    data = benchmarks.draw(benchmark, source, (0,), evaluate_on="validation")
    assert data.rows.shape == (1, 2, 90)
    assert len(data.test_images) == 20


def make_inputs(benchmark, seeds, num_devices=1):
    data = benchmarks.load(benchmark, placement_seeds(seeds))
    return place(data, seeds, placement.make_mesh(num_devices))


def placement_seeds(seeds):
    return tuple(dict.fromkeys(seeds))


def small_benchmark(name="digits-rotations"):
    return dataclasses.replace(
        benchmarks.get_benchmark(name), num_tasks=2, rows_per_task=20, hidden=(8,)
    )


def test_rates_are_what_programs_are_told():
    (preset,) = presets.resolve("digits-rotations", ["lamaml"])
    assert set(rates_of(preset)) == {
        *("step_size_init", "step_size_learning_rate", "max_grad_norm")
    }
    (preset,) = presets.resolve("digits-rotations", ["vrmcl"])
    assert "momentum" in rates_of(preset)  # a method's own is among them


METHODS = sorted(set(methods.METHODS) - {"icarl"})  # it needs classes of its own


def make_group(method, benchmark):
    (preset,) = presets.resolve(benchmark.name, [method])
    rates = rates_of(preset)
    other = dataclasses.replace(preset, **{k: v * 0.5 for k, v in rates.items()})
    group = [RunConfig(benchmark, method, (3, 1), hyper) for hyper in (preset, other)]
    assert shape_of(group[0]) == shape_of(group[1])
    return group


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_programs_depend_on_every_rate(method):
    benchmark = small_benchmark()
    group = make_group(method, benchmark)
    made = make_method(group, make_inputs(benchmark, (3, 1, 3, 1)))
    used = set()
    for each in (made.functions.init, made.functions.train_task):
        text = each.trace().lower().as_text(debug_info=True)  # without what is unused
        used |= {rate for rate in made.own.rates if f"own.rates['{rate}']" in text}
    assert used == set(made.own.rates)


def test_other_rates_are_the_same_program():
    benchmark = small_benchmark()
    inputs = make_inputs(benchmark, (3, 1))
    texts = set()
    for config in make_group("lamaml", benchmark):
        train = make_method([config], inputs).functions.train_task
        texts.add(train.trace().lower().as_text())
    assert len(texts) == 1


@pytest.mark.slow
def test_a_group_trains_as_its_runs_do_alone():
    benchmark = small_benchmark()
    group = make_group("lamaml", benchmark)
    inputs = make_inputs(benchmark, (3, 1, 3, 1))
    (program,) = compile_programs([group], inputs)
    together = list(loop.train(group[0], program, inputs))
    state = jax.device_get(together[-1].state)
    inputs = make_inputs(benchmark, (3, 1))
    for n, config in enumerate(group):
        (program,) = compile_programs([[config]], inputs)
        *_, last = loop.train(config, program, inputs)
        alone = jax.device_get(last.state)
        jax.tree.map(
            lambda a, b, n=n: np.testing.assert_array_equal(a[2 * n : 2 * n + 2], b),
            state,
            alone,
        )
    first, second = (
        np.concatenate([x[part].ravel() for x in jax.tree.leaves(state.weights)])
        for part in (slice(2), slice(2, 4))
    )
    assert (first != second).mean() > 0.5, "the rates have no effect"


def run(parts, console):
    source = sources.load_source("digits")
    mesh = placement.make_mesh(1)
    return sessions.run_groups([parts], source, mesh, sessions.Watch(console, 0))


def quiet():
    return Console(file=io.StringIO(), width=200)


@pytest.mark.slow
def test_an_interrupted_group_goes_on(tmp_path, monkeypatch):
    grid = {"learning_rate": [0.1, 0.05, 0.02]}
    points = sweep.plan({"method": "er", "grid": grid, **SIZES, "num_tasks": 3})

    def parts_in(folder):
        return [
            Part(config, folder / point.folder)
            for point in points
            for config in request.configs(point.asked)
        ]

    run(parts_in(tmp_path / "whole"), quiet())
    append = run_folder.append_evaluation

    def append_or_stop(path, record):
        append(path, record)
        if record["task"] == 1 and path.name == "learning_rate=0.05":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "append_evaluation", append_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run(parts_in(tmp_path / "parts"), quiet())
    finish = run_folder.finish

    def finish_or_stop(path, *args):
        if path.name == "learning_rate=0.05":
            raise KeyboardInterrupt
        finish(path, *args)

    with monkeypatch.context() as patch:  # the last part is complete, the others not
        patch.setattr(run_folder, "finish", finish_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run(parts_in(tmp_path / "parts"), quiet())
    console = quiet()
    run(parts_in(tmp_path / "parts"), console)
    assert console.file.getvalue().count("goes on from task 2") == 2
    for point in points:
        whole, parts = (
            run_folder.read(tmp_path / name / point.folder)
            for name in ("whole", "parts")
        )
        np.testing.assert_array_equal(parts.accuracy, whole.accuracy)
        for name in whole.arrays:
            np.testing.assert_array_equal(parts.arrays[name], whole.arrays[name])
    assert not list((tmp_path / "parts").rglob("checkpoints"))
    console = quiet()
    leaderboard(
        [tmp_path / "parts" / point.folder for point in points], tmp_path, console
    )
    said = console.file.getvalue()
    assert f"ranked in {tmp_path}/leaderboard.md" in said
    best = tmp_path / "parts/digits-rotations/er/best.json"
    assert f"  python -m experiments run --config {best}\n" in said
    text = (tmp_path / "leaderboard.md").read_text()
    assert "digits-rotations-validation" in text and "learning rate 0.05" in text
    best = json.loads(best.read_text())
    ra = {
        point.folder.name: run_folder.read(tmp_path / "parts" / point.folder)
        .summary["retained_accuracy"]
        .mean()
        for point in points
    }
    winner = max(ra, key=ra.get)
    assert winner == f"learning_rate={best['learning_rate']}"
    asked = request.make_request(
        request.read_file(tmp_path / "parts/digits-rotations/er/best.json")
    )
    (config,) = request.configs(asked)
    (swept,) = request.configs(points[0].asked)
    rate = best["learning_rate"]
    assert config == dataclasses.replace(
        swept,
        evaluate_on="test",
        hyper=dataclasses.replace(swept.hyper, learning_rate=rate),
    )
