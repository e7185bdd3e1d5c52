"""Published hyper-parameters and how they are overridden."""

import pytest

from experiments.config import presets, settings
from experiments.config.benchmarks import BENCHMARKS
from experiments.methods import METHODS, kinds
from experiments.schema.fields import fields, helps
from experiments.schema.hyperparameters import NO_CLIP
from experiments.support.errors import UserError

# Everything below is written by hand from the published command lines. A value that a
# method does not have is left out; every other field must be at its default.
MNIST = {"capacity": 200, "replay_size": 10, "acceptance": "exact"}
MNIST_META = MNIST | {
    "inner_steps": 10,
    "first_order": True,
    "objective": "mean",
    "rectify": True,
}
FEW, MANY = MNIST_META, MNIST_META | {"capacity": 500}


def meta(base, init, eta, rate, **other):
    rates = {"step_size_init": init, "learning_rate": rate}
    rates["step_size_learning_rate"] = eta
    return base | {k: v for k, v in rates.items() if v is not None} | other


ON_MNIST = {
    ("mnist-rotations", "cmaml"): meta(FEW, 0.1, None, 0.1),
    ("mnist-rotations", "sync"): meta(FEW, 0.15, 0.1, 0.3),
    ("mnist-rotations", "lamaml"): meta(FEW, 0.15, 0.3, None),
    ("mnist-permutations", "cmaml"): meta(FEW, 0.03, None, 0.1),
    ("mnist-permutations", "sync"): meta(FEW, 0.15, 0.1, 0.1),
    ("mnist-permutations", "lamaml"): meta(FEW, 0.15, 0.3, None),
    ("mnist-many", "cmaml"): meta(MANY, 0.03, None, 0.15),
    ("mnist-many", "sync"): meta(MANY, 0.03, 0.1, 0.03, glances=10),
    ("mnist-many", "lamaml"): meta(MANY, 0.1, 0.1, None, glances=10),
}

REPLAY = {"replay_size": 10, "acceptance": "exact"}
META = REPLAY | {
    "inner_steps": 5,
    "first_order": False,
    "objective": "mean",
    "rectify": False,
    "inner_clip": 2.0,
}
LAMAML = META | {"inner_clip": 1.0, "max_grad_norm": 1.0}
LA_ER = {k: v for k, v in META.items() if k != "objective"} | {"first_order": True}
MER = REPLAY | {
    "replay_size": 25,
    "rounds": 10,
    "max_grad_norm": 10.0,
    "learning_rate": 0.1,
    "within_rate": 0.1,
    "across_rate": 1.0,
}
BGD = META | {"inner_steps": 3, "initializer": "xavier", "mc_samples": 2}
GEM = {"memory_per_task": 10, "margin": 0.5}

# method: common values, then what the single pass and the multiple passes set.
ON_CIFAR = {
    "lamaml": (meta(LAMAML, 0.1, 0.25, None, capacity=200), 10, 1),
    "sync": (meta(META, 0.1, 0.35, 0.1, capacity=200), 5, 1),
    "cmaml": (meta(META, 0.075, None, 0.075, capacity=200), 2, 1),
    "la_er": (meta(LA_ER, 0.1, 0.1, None, capacity=200), 1, 1),
    "er": (REPLAY | {"replay_size": 1, "learning_rate": 0.03, "capacity": 200}, 10, 1),
    "gem": (GEM | {"learning_rate": 0.03, "max_grad_norm": 5.0}, 2, 1),
    "agem": ({"memory_per_task": 10, "learning_rate": 0.03}, 2, 1),
    "icarl": (
        {
            "capacity": 200,
            "distillation_weight": 1.0,
            "max_grad_norm": 5.0,
            "learning_rate": 0.03,
        },
        2,
        1,
    ),
    "mer": (MER | {"capacity": 200}, 1, None),
    "metabgd": (
        meta(
            BGD, 0.1, None, None, capacity=200, std_init=0.02, mean_learning_rate=50.0
        ),
        3,
        1,
    ),
    "iid": ({"learning_rate": 0.03, "batch_size": 32, "epochs": 50}, None, 1),
}
ON_TINY_IMAGENET = {
    "lamaml": (meta(LAMAML, 0.1, 0.4, None, capacity=400), 2, 1),
    "sync": (meta(META, 0.075, 0.25, 0.075, capacity=400), 2, 1),
    "cmaml": (meta(META, 0.03, None, 0.03, capacity=400), 2, 1),
    "er": (REPLAY | {"replay_size": 1, "learning_rate": 0.01, "capacity": 400}, 2, 1),
    "agem": ({"memory_per_task": 10, "learning_rate": 0.01}, 2, 1),
    "mer": (MER | {"capacity": 400}, 1, None),
    "metabgd": (
        meta(
            BGD, 0.1, None, None, capacity=400, std_init=0.015, mean_learning_rate=30.0
        ),
        3,
        1,
    ),
    "iid": ({"learning_rate": 0.01, "batch_size": 32, "epochs": 50}, None, 1),
}
ICARL = {"capacity": 400, "distillation_weight": 1.0, "learning_rate": 0.01}
ON_TINY_IMAGENET_BY_PASSES = {
    ("la_er", "single"): meta(LA_ER, 0.3, 0.1, None, capacity=400, glances=2),
    ("la_er", "multi"): meta(LA_ER, 0.03, 0.1, None, capacity=400, glances=1),
    ("gem", "single"): GEM
    | {"learning_rate": 0.03, "max_grad_norm": 5.0, "glances": 2},
    ("gem", "multi"): GEM | {"learning_rate": 0.03, "glances": 1},
    ("icarl", "single"): ICARL | {"max_grad_norm": 5.0, "glances": 2},
    ("icarl", "multi"): ICARL | {"glances": 1},
}


def image_cases():
    tables = {"cifar100-split": ON_CIFAR, "tinyimagenet-split": ON_TINY_IMAGENET}
    for benchmark, table in tables.items():
        for method, (values, single, multi) in table.items():
            for passes, glances in (("single", single), ("multi", multi)):
                if glances is not None:
                    yield benchmark, passes, method, values | {"glances": glances}
    for (method, passes), values in ON_TINY_IMAGENET_BY_PASSES.items():
        yield "tinyimagenet-split", passes, method, values


@pytest.mark.parametrize(("benchmark", "method"), ON_MNIST)
def test_mnist_presets_are_the_published_values(benchmark, method):
    (preset,) = presets.resolve(benchmark, [method])
    assert preset == METHODS[method].told(**ON_MNIST[benchmark, method])


@pytest.mark.parametrize(
    ("benchmark", "passes", "method", "values"), list(image_cases())
)
def test_image_presets_are_the_published_values(benchmark, passes, method, values):
    (preset,) = presets.resolve(benchmark, [method], passes=passes)
    epochs = 10 if passes == "multi" else 1
    assert preset == METHODS[method].told(**({"epochs": epochs} | values))


def test_every_method_has_a_preset_wherever_it_applies():
    for benchmark in BENCHMARKS.values():
        known = {
            method
            for (name, _), by_method in presets.OFFICIAL.items()
            for method in by_method
            if name == benchmark.name
        }
        shares_classes = benchmark.classes_per_task is None
        is_told = not benchmark.is_online
        expected = {
            name
            for name, method in METHODS.items()
            if not (method.needs_own_classes and shares_classes)
            and (is_told or not method.needs_tasks)
        }
        assert known == expected
    assert {name for name, _ in presets.OFFICIAL} == set(BENCHMARKS)


@pytest.mark.parametrize("stream", ["cifar100-online", "tinyimagenet-online"])
def test_online_image_methods_clip_as_their_authors_do(stream):
    norms = {
        name: hyper.max_grad_norm
        for name, hyper in presets.OFFICIAL[stream, "single"].items()
    }
    free = {"er", "er_ace", "online", "iid", "derpp", "cls_er", "mir", "pocl"}
    assert {name for name, norm in norms.items() if norm == NO_CLIP} == free
    assert norms["lamaml"] == norms["vrmcl"] == 1.0


def test_fashion_twins_share_the_presets():
    for kind in ("rotations", "permutations", "many"):
        twin = presets.OFFICIAL[f"fashion-mnist-{kind}", "single"]
        assert twin == presets.OFFICIAL[f"mnist-{kind}", "single"]


def test_overrides_reach_the_methods_that_have_the_quantity():
    lamaml, er, online = presets.resolve(
        "mnist-rotations", ["lamaml", "er", "online"], {"capacity": 50, "glances": None}
    )
    assert (lamaml.capacity, er.capacity, online.capacity) == (50, 50, None)
    assert lamaml.glances == 5


def test_override_that_no_method_has_is_an_error():
    with pytest.raises(UserError, match=r"step_size_init.*er, online"):
        presets.resolve("mnist-rotations", ["er", "online"], {"step_size_init": 0.1})


def test_missing_preset_is_an_error():
    with pytest.raises(UserError, match=r"'icarl' on 'mnist-rotations'.*cifar100"):
        presets.resolve("mnist-rotations", ["icarl"])


def test_settings_are_read_by_type():
    given = ["momentum=0.9", "rounds=3", "first_order=true", "objective=last"]
    assert settings.parse(given) == {
        "momentum": 0.9,
        "rounds": 3,
        "first_order": True,
        "objective": "last",
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("momentum", "expected NAME=VALUE"),
        ("speed=3", "expected NAME=VALUE.*momentum"),
        ("rounds=many", "rounds: expected a whole number, received 'many'"),
        ("rounds=1.5", "rounds: expected a whole number, received 1.5"),
        ("first_order=1", "first_order: expected true or false"),
        ("rounds=", "rounds has no value"),
        ("rounds=[", "--set: rounds: "),
    ],
)
def test_wrong_settings_are_errors(setting, message):
    with pytest.raises(UserError, match=message):
        settings.parse([setting])


def test_setting_given_twice_is_an_error():
    with pytest.raises(UserError, match="rounds is given twice"):
        settings.parse(["rounds=1", "rounds=2"])


def test_every_hyper_parameter_is_documented_and_used_by_a_preset():
    used = {
        name
        for by_method in presets.OFFICIAL.values()
        for preset in by_method.values()
        for name, value in vars(preset).items()
        if value is not None
    }
    told = {"grain", "inner_momentum", "memory", "replay_weight"}  # by a person only
    assert used == kinds().keys() - told
    for method in METHODS.values():
        assert all(helps(method.told)[name] for name in fields(method.told))
