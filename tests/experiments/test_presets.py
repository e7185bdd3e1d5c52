"""Published hyper-parameters and how they are overridden."""

import pytest

from experiments import presets
from experiments.benchmarks import BENCHMARKS
from experiments.errors import UserError
from experiments.methods import METHODS

# benchmark, method: capacity, glances, step_size_init, eta, weights' rate; by hand from
# the published command lines.
PUBLISHED = {
    ("mnist-rotations", "cmaml"): (200, 5, 0.1, None, 0.1),
    ("mnist-rotations", "sync"): (200, 5, 0.15, 0.1, 0.3),
    ("mnist-rotations", "lamaml"): (200, 5, 0.15, 0.3, None),
    ("mnist-permutations", "cmaml"): (200, 5, 0.03, None, 0.1),
    ("mnist-permutations", "sync"): (200, 5, 0.15, 0.1, 0.1),
    ("mnist-permutations", "lamaml"): (200, 5, 0.15, 0.3, None),
    ("mnist-many", "cmaml"): (500, 5, 0.03, None, 0.15),
    ("mnist-many", "sync"): (500, 10, 0.03, 0.1, 0.03),
    ("mnist-many", "lamaml"): (500, 10, 0.1, 0.1, None),
}


@pytest.mark.parametrize(("benchmark", "method"), PUBLISHED)
def test_presets_are_the_published_values(benchmark, method):
    (preset,) = presets.resolve(benchmark, [method])
    capacity, glances, init, eta, rate = PUBLISHED[benchmark, method]
    assert preset == presets.Hyperparameters(
        batch_size=10,
        glances=glances,
        capacity=capacity,
        replay_size=10,
        acceptance="exact",
        inner_steps=10,
        step_size_init=init,
        step_size_learning_rate=eta,
        learning_rate=rate,
        max_grad_norm=2.0,
        first_order=True,
        objective="mean",
    )


def test_every_method_has_a_preset_on_every_benchmark():
    for benchmark in BENCHMARKS:
        assert set(presets.OFFICIAL[benchmark]) == set(METHODS)
    assert set(presets.OFFICIAL) == set(BENCHMARKS)


def test_fashion_twins_share_the_presets():
    for kind in ("rotations", "permutations", "many"):
        twin = presets.OFFICIAL[f"fashion-mnist-{kind}"]
        assert twin == presets.OFFICIAL[f"mnist-{kind}"]


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
    with pytest.raises(UserError, match="no preset for method 'gem'"):
        presets.resolve("mnist-rotations", ["gem"])
