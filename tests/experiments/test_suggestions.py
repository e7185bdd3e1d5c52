"""Words that there are not are met with the closest that there is."""

import doctest

import pytest

from experiments.config import request, settings
from experiments.support import suggestions
from experiments.support.errors import UserError


def test_the_examples_are_true():
    assert doctest.testmod(suggestions).failed == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["inner_step=5"], "received 'inner_step=5'; did you mean inner_steps"),
        (["capacity"], "expected NAME=VALUE with one of batch_size, .*'capacity'$"),
    ],
)
def test_a_misspelt_setting_is_named(given, message):
    with pytest.raises(UserError, match=message):
        settings.parse(given)


def test_a_misspelt_grid_and_field_are_named(tmp_path):
    with pytest.raises(UserError, match="did you mean capacity"):
        settings.check_grid("capasity", [1])
    (tmp_path / "c.yaml").write_text("num_task: 3\n")
    with pytest.raises(UserError, match="did you mean num_tasks"):
        request.read_file(tmp_path / "c.yaml")
