"""Runs with coarse step sizes, inner momentum, a balanced memory, weighed replay."""

import dataclasses
import io
import json

import numpy as np
import optax
import pytest
from rich.console import Console

from experiments import report
from experiments.config import benchmarks, presets
from experiments.config.run_config import RunConfig, check_config
from experiments.support.errors import UserError
from experiments.training import placement, sessions
from experiments.training.inputs import place
from experiments.training.programs import compile_programs
from experiments.training.storing import Part

SEEDS = (0, 1)
ONE_RATE = {"grain": "all", "inner_momentum": 0.5}
CHOSEN = {"grain": "channel", "memory": "balanced", "replay_weight": 0.5}


def make_config(overrides, method="lamaml"):
    benchmark = dataclasses.replace(
        benchmarks.BENCHMARKS["digits-rotations"],
        num_tasks=2,
        rows_per_task=40,
        hidden=(8,),
    )
    (hyper,) = presets.resolve("digits-rotations", [method], overrides)
    return RunConfig(benchmark, method, SEEDS, hyper, probes=True)


def run(config, folder):
    data = benchmarks.load(config.benchmark, config.seeds)
    inputs = place(data, config.seeds, placement.make_mesh(1))
    (program,) = compile_programs([[config]], inputs)
    watch = sessions.Watch(Console(file=io.StringIO()), 0)
    sessions.run_group([Part(config, folder)], program, inputs, watch)
    return program


@pytest.fixture(scope="module", params=[ONE_RATE, CHOSEN], ids=lambda p: p["grain"])
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return request.param, run(make_config(request.param), folder), folder


@pytest.mark.slow
def test_a_run_records_one_row_of_quantiles_per_step_size_leaf(finished):
    options, program, folder = finished
    rates = optax.tree.get(program.state, "step_sizes")
    summary = json.loads((folder / "summary.json").read_text())
    names = summary["step_size_leaves"]
    if options["grain"] == "all":
        assert rates.shape == (len(SEEDS),)
        assert names == ["all weights"]
    else:
        kernel = rates["params"]["Dense_0"]["kernel"]
        assert kernel.shape == (len(SEEDS), 8)
        assert "Dense_0/kernel" in names
    stored = np.load(folder / "arrays.npz")["step_size_quantiles"]
    assert stored.shape == (len(SEEDS), 3, len(names), 5)
    assert np.all(np.isfinite(stored))
    assert np.any(stored[:, -1] != stored[:, 0])  # the rates were learned
    config = json.loads((folder / "config.json").read_text())
    assert options.items() <= config.items()


@pytest.fixture(scope="module")
def one_per_parameter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parameter")
    run(make_config({}, "sync"), folder)
    return folder


@pytest.mark.slow
def test_a_report_draws_step_sizes_of_two_grains(finished, one_per_parameter, tmp_path):
    folders = [finished[-1], one_per_parameter]
    console = Console(file=io.StringIO())
    files = report.make_report(folders, tmp_path / "out", console=console)
    assert any("step-sizes" in str(path) for path in files)


def test_only_look_ahead_methods_have_the_options():
    for name, value in (ONE_RATE | CHOSEN).items():
        with pytest.raises(UserError, match=rf"^{name}: none of these methods has it"):
            presets.resolve("digits-rotations", ["er"], {name: value})
        (cmaml, er) = presets.resolve(
            "digits-rotations", ["cmaml", "er"], {name: value}
        )
        assert getattr(cmaml, name) == value
        assert not hasattr(er, name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"grain": "layer"}, "grain: expected one of parameter, channel, leaf, all"),
        ({"memory": "ring"}, "memory: expected one of uniform, balanced"),
        ({"replay_weight": 1.5}, "replay_weight: expected a share in"),
        ({"inner_momentum": -0.1}, "inner_momentum: expected a share in"),
    ],
)
def test_options_out_of_range_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        check_config(make_config(overrides))
