"""A field is written once: its range, choices, help and option come from its line."""

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from experiments import networks
from experiments.cli import app as cli
from experiments.cli import options
from experiments.schema import choices
from experiments.schema.fields import (
    POSITIVE,
    Count,
    Rate,
    Share,
    UpTo,
    check,
    fields,
    helps,
)
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.errors import UserError

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """What two are told."""

    size: Count = 3
    """How many.

    And more, which is not for a terminal.
    """
    used: Annotated[int, UpTo("size")] = 1
    """How many of ``size``
    are used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told(Shared):
    """What one is told."""

    rate: Rate | None = None
    """How fast."""
    kept: Annotated[Share, POSITIVE] = 0.5
    """How much is kept."""
    way: Literal["up", "down"] | None = None
    """Where to."""
    is_on: bool | None = None
    """Whether it is."""


def test_help_is_the_first_paragraph_also_of_what_is_inherited():
    assert helps(Told) == {
        "size": "How many.",
        "used": "How many of `size` are used.",
        "rate": "How fast.",
        "kept": "How much is kept.",
        "way": "Where to.",
        "is_on": "Whether it is.",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, None),
        ({"rate": 0, "way": "up", "used": 3, "kept": 1}, None),
        ({"size": 0}, "size: expected 1 to 2147483647, received 0"),
        ({"used": 4}, r"used: expected 1 to 3 \(size\), received 4"),
        ({"rate": -1}, "rate: expected a finite rate >= 0, received -1"),
        ({"rate": float("inf")}, "rate: expected a finite rate"),
        ({"rate": float("nan")}, "rate: expected a finite rate"),
        ({"kept": 1.5}, r"kept: expected a share in \[0, 1\], received 1.5"),
        ({"kept": 0}, "kept: expected a number > 0, received 0"),
        ({"way": "left"}, "way: expected one of up, down, received 'left'"),
    ],
)
def test_ranges_and_choices_are_checked_by_type(given, message):
    told = Told(**given)
    if message is None:
        check(told, {"size": told.size})
        return
    with pytest.raises(UserError, match=message):
        check(told, {"size": told.size})


def test_a_limit_that_is_not_there_is_none():
    check(Told(used=10**6), {"size": None})


@dataclasses.dataclass(frozen=True)
class Doing:
    """Where a command works."""

    fresh: bool = False
    """Start over."""
    out: Path = Path("here")
    """Folder of the results."""


def made_command(seen):
    app = typer.Typer(rich_markup_mode=None)

    def command(context, given, doing):
        """Does nothing."""
        seen.append((given, doing))

    asked = options.unset_options(Told, fields(Told))
    app.command()(options.takes(asked[:1], Doing, asked[1:])(command))
    return app


def test_every_field_becomes_an_option_of_its_type_and_help():
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(made_command([]), ["--help"])
    said = " ".join(shown.output.split())
    for text in (
        "--size <int> How many.",
        "--rate <float> How fast.",
        "--way <up|down> Where to.",
        "--is-on / --no-is-on Whether it is.",
        "--fresh Start over.",
        "--out <path> Folder of the results. [default: here]",
    ):
        assert text in said
    assert said.index("--size") < said.index("--fresh") < said.index("--rate")


def test_a_command_is_handed_what_is_given_and_the_rest_by_default():
    seen = []
    arguments = ["--rate", "0.5", "--no-is-on", "--way", "up", "--fresh"]
    done = CliRunner().invoke(made_command(seen), arguments)
    assert done.exit_code == 0, done.output
    given = {"rate": 0.5, "is_on": False, "way": "up"}
    assert seen == [(given, Doing(fresh=True))]
    done = CliRunner().invoke(made_command(seen), ["--out", "gs://bucket"])
    assert "expected a path on this machine" in str(done.exception)
    assert CliRunner().invoke(made_command(seen), ["--way", "left"]).exit_code == 2


def test_run_has_an_option_for_every_shared_hyper_parameter():
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, ["run", "--help"]).output
    said = " ".join(shown.split())
    for name, text in helps(Hyperparameters).items():
        option = rf"--{name.replace('_', '-')} (/ \S+ |<\S+> )?{re.escape(text)}"
        assert re.search(option, said), name


def test_initial_weights_are_of_every_distribution_that_there_is():
    assert set(typing.get_args(choices.Initializer)) == set(networks.INITIALIZERS)


@pytest.mark.slow
def test_the_command_line_is_read_without_jax():
    code = "import sys, experiments.cli.app; print({'jax', 'flax'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout == b"set()\n"
