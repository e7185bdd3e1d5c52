"""What a person asks for becomes configurations, and comes back from them."""

import json

import pytest

from experiments.config import presets, request
from experiments.config.run_config import config_record
from experiments.support.errors import UserError


def read(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    return request.read_file(tmp_path / "run.yaml")


def configs_of(given):
    return request.configs(request.make_request(given))


def test_nothing_asked_for_is_four_methods_on_digits():
    found = configs_of({})
    assert [config.method for config in found] == ["lamaml", "cmaml", "er", "online"]
    assert all(config.seeds == (0, 1, 2, 3, 4) for config in found)
    (expected,) = presets.resolve("digits-rotations", ["lamaml"])
    assert found[0].hyper == expected


def test_a_file_says_what_the_command_line_can(tmp_path):
    given = read(
        tmp_path,
        """
        benchmark: tinyimagenet-split
        method: [er, lamaml]
        seeds: 3
        first_seed: 7
        setting: agnostic
        passes: multi
        num_tasks: 4
        learning_rate: 1e-3   # a number in YAML 1.2, words in 1.1
        capacity: null
        """,
    )
    er, lamaml = configs_of(given)
    assert er.seeds == (7, 8, 9)
    assert (er.setting, er.passes, er.benchmark.num_tasks) == ("agnostic", "multi", 4)
    assert er.hyper.learning_rate == 1e-3
    assert er.hyper.capacity == 400  # null is not given
    assert lamaml.hyper.learning_rate is None


CASES = [
    {"benchmark": benchmark, "method": method, "passes": passes}
    for benchmark, passes in presets.OFFICIAL
    for method in ("lamaml", "er", "metabgd")
]


@pytest.mark.parametrize("given", CASES, ids=lambda given: "-".join(given.values()))
def test_what_a_run_folder_stores_gives_the_same_run(given, tmp_path):
    given = given | {"stream_seed": 3, "seeds": [4, 2], "evaluate_on": "validation"}
    (config,) = configs_of(given)
    stored = config_record(config)
    (again,) = configs_of(read(tmp_path, json.dumps(stored, indent=2)))
    assert again == config
    assert config_record(again) == stored


MISTAKES = {
    "no file": (None, "No such file"),
    "no YAML": ("method: [er", "cannot be read"),
    "a list": ("- er", "expected fields with values"),
    "unknown field": ("metod: er", "unknown field 'metod'; did you mean method?"),
    "another type": ("glances: many", "glances: expected a whole number"),
    "a fraction": ("glances: 1.5", "glances: expected a whole number, received 1.5"),
    "a list of words": ("hidden: [a]", "hidden: expected a list, each a whole number"),
    "twice": ("seeds: 1\nseeds: 2", "cannot be read .*duplicate key"),
    "another version": ("format_version: 7", "format_version 7, this program reads 1"),
    "an object": ("method: !!python/object:os.system er", "cannot be read"),
    "no grid": ("grid: 3", "grid: expected hyper-parameters with lists"),
    "not in a grid": ("grid: {speed: [1]}", "grid: expected one of batch_size"),
    "equal in a grid": ("grid: {glances: [1, 1]}", "glances: expected different"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_file_name_it_and_the_field(text, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        if text is None:
            request.read_file(tmp_path / "run.yaml")
        read(tmp_path, text)
    assert "run.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"benchmark": ["digits-rotations"]}, "benchmark: several make a sweep"),
        ({"grid": {}}, "grid: makes a sweep"),
        ({"method": []}, "method: each method once"),
        ({"seeds": []}, "expected 1 to 10000 seeds"),
        ({"seeds": [1, 1]}, "seeds: each seed once"),
        ({"seeds": [-1]}, "none negative"),
        ({"setting": "blind"}, "setting: expected one of aware, agnostic"),
        ({"evaluate_on": "both"}, "evaluate_on: expected one of test, validation"),
        ({"method": "mer", "within_rate": 0.0}, "within_rate: expected a number > 0"),
        ({"method": "gem", "margin": -0.1}, "margin: expected a finite rate >= 0"),
    ],
)
def test_what_cannot_be_run_is_told(given, message):
    with pytest.raises(UserError, match=message):
        configs_of(given)


def test_deep_nesting_ends_in_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path, "hidden: " + "[" * 5000)
