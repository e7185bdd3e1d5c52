"""The README's example runs as printed, and what it lists exists."""

import functools
import math
import re
import shlex
from pathlib import Path

import optax
import pytest
from typer.testing import CliRunner

import lamaml_jax as lm
from experiments import __main__ as command_line
from experiments import bench

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "experiments/results"
TEXTS = README + (ROOT / "experiments/README.md").read_text()
COMMANDS = re.findall(
    r"python -m experiments ((?:run|sweep|report|bench|data) .*)", TEXTS
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@functools.cache
def after_examples():
    """What the Python blocks leave behind, run one after the other."""
    scope = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    return scope


def test_example_runs_and_learns():
    info = after_examples()["info"]
    # Zero weights give every one of three classes the same probability.
    assert math.isclose(info.inner_losses[0, 0, 0], math.log(3), rel_tol=1e-6)
    # The labels are a linear function of the inputs, so the loss can fall far.
    assert info.meta_loss[-10:].mean() < 0.4


def test_model_with_dropout_and_running_averages_learns():
    scope = after_examples()
    assert scope["net_info"].meta_loss[-10:].mean() < 0.7
    hits = scope["logits"].argmax(axis=-1) == scope["stream"]["y"][-1]
    assert hits.mean() >= 0.7
    (norm,) = scope["averages"].values()
    assert abs(norm["mean"]).max() > 0


def test_train_state_learns_in_fifteen_lines():
    train_state = after_examples()["train_state"]
    memory = optax.tree.get(train_state.opt_state, "reservoir")
    assert train_state.step == 50 and memory.num_seen == 500
    assert optax.tree.get(train_state.opt_state, "info").meta_loss < 0.6
    body = blocks("python")[2].split("weights =")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 15


def test_example_takes_about_twenty_lines():
    example, *_ = blocks("python")
    code = [line for line in example.splitlines() if line.strip()]
    assert len(code) <= 30


def test_every_public_name_is_in_the_api_table():
    table = README.split("## API")[1].split("\n## ")[0]
    missing = [name for name in lm.__all__ if f"`{name}`" not in table]
    assert not missing


def test_two_commands_are_the_only_shell_blocks():
    commands = blocks("sh")
    assert len(commands) == 2
    assert "python -m experiments run" in commands[0]
    assert "python -m pytest" in commands[1]


def test_results_are_those_of_the_committed_reports():
    for name in ("report", "equal-compute/report"):
        tables = (RESULTS / name / "comparison.md").read_text().split("\n\n")
        tables = [table.strip() for table in tables if table.startswith("| method")]
        assert tables
        for table in tables:
            assert table in README, table


def test_speed_is_that_of_the_committed_records():
    one, conv, two = (
        bench.read(RESULTS / f"bench/{name}.json")["update"].results[0].rows[0]
        for name in ("one-core", "one-core-conv", "two-cores")
    )
    rows = {
        "CPU ms per meta-update": "cpu_ms_per_meta_update",
        "MFLOP of its matrix products": "mflop_per_meta_update",
        "share of this core's matmul peak, 104 GFLOP/s": "percent_of_matmul_peak",
    }
    for heading, key in rows.items():
        shown = re.search(rf"^\| {heading} \| (.*) \| (.*) \|$", README, re.M)
        numbers = [float(re.sub("[, %]", "", cell)) for cell in shown.groups()]
        assert numbers == pytest.approx([one[key], conv[key]], rel=0.02), heading
    assert f"{one['cpu_s_per_seed']:.1f} CPU s" in README
    assert f"| {two['meta_updates_per_s']:.0f} meta-updates per second |" in README
    own = (ROOT / "experiments/README.md").read_text()
    scaling = bench.read(RESULTS / "bench/two-cores.json")["scaling"].results[0].rows
    for devices, heading in ((1, "one device"), (2, "two devices, a core each")):
        line = re.search(rf"^\| {heading} \|(.*)\|$", own, re.M)[1]
        rates = [r["meta_updates_per_s"] for r in scaling if r["devices"] == devices]
        assert [int(n) for n in re.findall(r"\d+", line)] == [round(r) for r in rates]


@pytest.mark.parametrize("text", dict.fromkeys(COMMANDS))
def test_commands_have_the_options_they_are_shown_with(text):
    words = shlex.split(text.strip('`"'), comments=True)
    options = {word.split("=")[0] for word in words if word.startswith("-")}
    command = words[: 2 if words[0] == "data" else 1]
    runner = CliRunner(env={"COLUMNS": "300"})
    shown = runner.invoke(command_line.app, [*command, "--help"])
    assert shown.exit_code == 0
    known = set(re.findall(r"(?<![\w-])--?[\w-]+", shown.output))
    assert options <= known


def test_links_lead_to_files():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)
