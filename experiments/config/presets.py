"""Hyper-parameters by benchmark, number of passes and method, as data.

Sources, by method:

- La-MAML, Sync, C-MAML, and all methods on CIFAR-100 and Tiny ImageNet unless named
  below: the command lines of the La-MAML authors' repository (montrealrobotics/La-MAML,
  commit cff3524).
- MER on the MNIST streams: the example commands of MER's repository, for as large a
  memory. EWC's penalty is theirs too (100, 10, 1), in other units: they square the mean
  gradient of 10 rows where we take the mean of 10 squares, and have no factor 1/2; with
  independent rows that is 2 / 10 of their number.
- DER++: the best arguments of its authors' repository (aimagelab/mammoth), its loss
  weights for as large a memory.
- ER, GEM, A-GEM, Online on the MNIST streams have no published command here. Their
  rates are those with which the figures to compare with were made, and were not tuned.
- On the online benchmarks, from the survey of Soutif-Cormerais et al. 2023
  (arXiv:2308.10328): 10 incoming and 10 replayed rows, three updates on each batch
  (``glances``), on CIFAR-100 a memory of 2,000 rows; MER goes over each batch in its
  own way. The methods of ``LOOK_AHEAD`` have on CIFAR-100 what VR-MCL's repository
  commands (ICLR 2024), all alike: 32 incoming and 32 replayed rows, inner batches of 8
  in second order, one update per batch, initial step sizes 0.1, outer rate 0.25 (taken
  as that of the step sizes), momentum 0.15; where weights have a rate of their own it
  is 0.1 too. All else is as on ``mnist-rotations`` and ``cifar100-split``.
  Fashion-MNIST and Tiny ImageNet take what those two have. None was tuned here.
- La-ER and VR-MCL on the MNIST streams take La-MAML's values, OML takes C-MAML's,
  Meta-BGD and IID those of CIFAR-100, ER-ACE everywhere those of ER. None was tuned.

A benchmark that is not here, such as a person's own, takes those of the nearest stream.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from experiments.config.benchmarks import BENCHMARKS, STREAMS, Benchmark
from experiments.methods import METHODS
from experiments.methods.hyperparameters import OPTIONAL, Hyperparameters
from experiments.support.errors import UserError

PASSES = ("single", "multi")
_change = dataclasses.replace
LOOK_AHEAD = ("lamaml", "sync", "cmaml", "vrmcl", "oml")
"""Methods of ``methods/lookahead.py``."""

# On the MNIST streams: one head, first order, inner steps of one row.
_REPLAY = Hyperparameters(capacity=200, replay_size=10, acceptance="exact")
_META = _change(
    _REPLAY,
    inner_steps=10,
    first_order=True,
    objective="mean",
    rectify=True,
    step_size_init=0.1,
)


def _lamaml(init: float, eta: float, **other: Any) -> Hyperparameters:
    return _change(_META, step_size_init=init, step_size_learning_rate=eta, **other)


def _sync(init: float, eta: float, rate: float, **other: Any) -> Hyperparameters:
    return _lamaml(init, eta, learning_rate=rate, **other)


def _cmaml(init: float, rate: float, **other: Any) -> Hyperparameters:
    return _change(_META, step_size_init=init, learning_rate=rate, **other)


_ER = _change(_REPLAY, learning_rate=0.1)
_ONLINE = Hyperparameters(learning_rate=0.03)
_AGEM = _change(_ONLINE, memory_per_task=10)
_DERPP = _change(_ER, logit_weight=1.0, label_weight=0.5)
_MER = _change(_REPLAY, glances=1, max_grad_norm=10.0)
_IID = _change(_ONLINE, batch_size=32, glances=1, epochs=50)
_META_BGD = _change(
    _META,
    glances=3,
    inner_steps=3,
    first_order=False,
    rectify=False,
    inner_clip=2.0,
    initializer="xavier",
    mc_samples=2,
    std_init=0.02,
    mean_learning_rate=50.0,
)


def _mnist(
    lamaml: Hyperparameters,
    sync: Hyperparameters,
    cmaml: Hyperparameters,
    ewc_penalty: float,
    derpp: Hyperparameters,
    mer: Hyperparameters,
) -> dict[str, Hyperparameters]:
    """Completes a stream's own values with those that all streams share."""
    return {
        "lamaml": lamaml,
        "sync": sync,
        "cmaml": cmaml,
        "la_er": _change(lamaml, objective=None, rectify=False, inner_clip=2.0),
        "vrmcl": _change(lamaml, momentum=0.5),
        "oml": cmaml,
        "er": _ER,
        "er_ace": _ER,
        "derpp": derpp,
        "mer": mer,
        "gem": _change(_AGEM, margin=0.5),
        "agem": _AGEM,
        "ewc": _change(_ONLINE, penalty=ewc_penalty * 2 / 10, fisher_rows=10),
        "metabgd": _META_BGD,
        "online": _ONLINE,
        "iid": _IID,
    }


_ROTATIONS = _mnist(
    _lamaml(0.15, 0.3),
    _sync(0.15, 0.1, 0.3),
    _cmaml(0.1, 0.1),
    ewc_penalty=100.0,
    derpp=_DERPP,
    mer=_change(_MER, learning_rate=0.1, rounds=5, within_rate=0.01, across_rate=1.0),
)
_PERMUTATIONS = _mnist(
    _lamaml(0.15, 0.3),
    _sync(0.15, 0.1, 0.1),
    _cmaml(0.03, 0.1),
    ewc_penalty=10.0,
    derpp=_change(_DERPP, label_weight=1.0),
    mer=_change(_MER, learning_rate=0.03, rounds=10, within_rate=0.03, across_rate=1.0),
)


def _with_capacity(
    presets: dict[str, Hyperparameters], capacity: int, per_task: int
) -> dict[str, Hyperparameters]:
    """Changes the memory of every method that has one."""
    return {
        name: _change(
            preset,
            capacity=preset.capacity and capacity,
            memory_per_task=preset.memory_per_task and per_task,
        )
        for name, preset in presets.items()
    }


_MANY = _with_capacity(
    _mnist(
        _lamaml(0.1, 0.1, glances=10),
        _sync(0.03, 0.1, 0.03, glances=10),
        _cmaml(0.03, 0.15),
        ewc_penalty=1.0,
        derpp=_DERPP,
        mer=_change(
            _MER,
            learning_rate=0.03,
            replay_size=5,
            rounds=10,
            within_rate=0.03,
            across_rate=1.0,
        ),
    ),
    capacity=500,
    per_task=5,
)
# The digits stream takes the values of MNIST Rotations unchanged, except for the
# memory: with 200 rows the reservoir holds 10 of each task's 200 rows and every
# replaying method retains about the same; with 100 rows memory is as scarce as a
# continual learner should expect, and the methods come apart.
_DIGITS = _with_capacity(_ROTATIONS, capacity=100, per_task=5)
_FASHION_SPLIT = _ROTATIONS | {
    "icarl": _change(_ONLINE, capacity=200, distillation_weight=1.0)
}

# On CIFAR-100 and Tiny ImageNet: a head per task, second order, clipped inner steps.


def _images(capacity: int, epochs: int) -> tuple[Hyperparameters, ...]:
    """Common values of replaying, of meta-learning and of other methods."""
    plain = Hyperparameters(glances=1, epochs=epochs)
    replay = _change(plain, capacity=capacity, replay_size=10, acceptance="exact")
    meta = _change(
        replay,
        inner_steps=5,
        first_order=False,
        objective="mean",
        rectify=False,
        inner_clip=2.0,
    )
    return plain, replay, meta


def _image_presets(
    capacity: int,
    passes: str,
    *,
    lamaml: dict[str, Any],
    sync: dict[str, Any],
    cmaml: dict[str, Any],
    la_er: dict[str, Any],
    er: dict[str, Any],
    gem: dict[str, Any],
    agem: dict[str, Any],
    icarl: dict[str, Any],
    metabgd: dict[str, Any],
    iid_rate: float,
) -> dict[str, Hyperparameters]:
    """Builds the presets of one image benchmark from what its commands set."""
    plain, replay, meta = _images(capacity, 10 if passes == "multi" else 1)
    own_lamaml = _change(meta, max_grad_norm=1.0, inner_clip=1.0, **lamaml)
    own_cmaml = _change(meta, **cmaml)
    own_er = _change(replay, **er)
    own_online = _change(plain, learning_rate=er["learning_rate"])
    presets = {
        "lamaml": own_lamaml,
        "sync": _change(meta, **sync),
        "cmaml": own_cmaml,
        "la_er": _change(meta, first_order=True, objective=None, **la_er),
        "vrmcl": _change(own_lamaml, momentum=0.5),
        "oml": own_cmaml,
        "er": own_er,
        "er_ace": own_er,
        "derpp": _change(own_er, replay_size=10, logit_weight=0.1, label_weight=0.5),
        "gem": _change(plain, memory_per_task=10, margin=0.5, **gem),
        "agem": _change(plain, memory_per_task=10, **agem),
        "icarl": _change(plain, capacity=capacity, distillation_weight=1.0, **icarl),
        "ewc": _change(own_online, penalty=20.0, fisher_rows=10),
        "metabgd": _change(
            meta, inner_steps=3, initializer="xavier", mc_samples=2, **metabgd
        ),
        "online": own_online,
    }
    if passes == "single":
        presets["mer"] = _change(
            replay,
            replay_size=25,
            max_grad_norm=10.0,
            learning_rate=0.1,
            rounds=10,
            within_rate=0.1,
            across_rate=1.0,
        )
    else:
        presets["iid"] = _change(
            plain, batch_size=32, epochs=50, learning_rate=iid_rate
        )
    return presets


def _rates(init: float, eta: float | None = None, rate: float | None = None, **other):
    return {
        "step_size_init": init,
        "step_size_learning_rate": eta,
        "learning_rate": rate,
        **other,
    }


_CIFAR = {
    passes: _image_presets(
        200,
        passes,
        lamaml=_rates(0.1, 0.25, glances=glances[0]),
        sync=_rates(0.1, 0.35, 0.1, glances=glances[1]),
        cmaml=_rates(0.075, None, 0.075, glances=glances[2]),
        la_er=_rates(0.1, 0.1, glances=1),
        er={"learning_rate": 0.03, "replay_size": 1, "glances": glances[3]},
        gem={"learning_rate": 0.03, "max_grad_norm": 5.0, "glances": glances[4]},
        agem={"learning_rate": 0.03, "glances": glances[4]},
        icarl={"learning_rate": 0.03, "max_grad_norm": 5.0, "glances": glances[4]},
        metabgd=_rates(0.1, std_init=0.02, mean_learning_rate=50.0, glances=glances[5]),
        iid_rate=0.03,
    )
    for passes, glances in {
        "multi": (1, 1, 1, 1, 1, 1),
        "single": (10, 5, 2, 10, 2, 3),
    }.items()
}
_TINY_IMAGENET = {
    passes: _image_presets(
        400,
        passes,
        lamaml=_rates(0.1, 0.4, glances=glances[0]),
        sync=_rates(0.075, 0.25, 0.075, glances=glances[0]),
        cmaml=_rates(0.03, None, 0.03, glances=glances[0]),
        la_er=_rates(la_er_init, 0.1, glances=glances[0]),
        er={"learning_rate": 0.01, "replay_size": 1, "glances": glances[0]},
        gem={"learning_rate": 0.03, "max_grad_norm": clip, "glances": glances[0]},
        agem={"learning_rate": 0.01, "glances": glances[0]},
        icarl={"learning_rate": 0.01, "max_grad_norm": clip, "glances": glances[0]},
        metabgd=_rates(
            0.1, std_init=0.015, mean_learning_rate=30.0, glances=glances[1]
        ),
        iid_rate=0.01,
    )
    for passes, glances, la_er_init, clip in (
        ("multi", (1, 1), 0.03, 2.0),
        ("single", (2, 3), 0.3, 5.0),
    )
}

# Online: one head, one pass, no task ids, and as many updates for every method.
_TOLD_OF_TASKS = ("gem", "agem", "ewc", "icarl")


def _survey(
    presets: dict[str, Hyperparameters], iid: Hyperparameters, capacity: int
) -> dict[str, Hyperparameters]:
    """Puts batches, draws, passes and memory of the survey into a benchmark's values.

    IID is shown as many rows as the others, in as many batches: their ceiling.
    """
    chosen = {k: v for k, v in presets.items() if k not in _TOLD_OF_TASKS}
    chosen["iid"] = _change(iid, batch_size=10, epochs=1)
    return {
        name: _change(
            preset,
            glances=1 if name == "mer" else 3,
            capacity=preset.capacity and capacity,
            replay_size=preset.replay_size and 10,
        )
        for name, preset in chosen.items()
    }


_MNIST_ONLINE = _survey(_ROTATIONS, _IID, capacity=200)
_CIFAR_ONLINE = _survey(_CIFAR["single"], _CIFAR["multi"]["iid"], capacity=2000)
_LINE = _change(
    _CIFAR["single"]["lamaml"],
    batch_size=32,
    replay_size=32,
    inner_steps=4,
    glances=1,
    capacity=2000,
)
_LINE_CMAML = _change(_LINE, step_size_learning_rate=None, learning_rate=0.1)
_CIFAR_ONLINE |= {
    "lamaml": _LINE,
    "sync": _change(_LINE, learning_rate=0.1),
    "cmaml": _LINE_CMAML,
    "vrmcl": _change(_LINE, momentum=0.15),
    "oml": _LINE_CMAML,
}

OFFICIAL: dict[tuple[str, str], dict[str, Hyperparameters]] = {
    ("digits-rotations", "single"): _DIGITS,
    **{
        (f"{prefix}-{kind}", "single"): presets
        for prefix in ("mnist", "fashion-mnist")
        for kind, presets in {
            "rotations": _ROTATIONS,
            "permutations": _PERMUTATIONS,
            "many": _MANY,
        }.items()
    },
    ("fashion-mnist-split", "single"): _FASHION_SPLIT,
    **{
        (f"{prefix}-online", "single"): presets
        for prefix, presets in {
            "mnist": _MNIST_ONLINE,
            "fashion-mnist": _MNIST_ONLINE,
            "cifar100": _CIFAR_ONLINE,
            "tinyimagenet": _CIFAR_ONLINE,
        }.items()
    },
    **{("cifar100-split", passes): _CIFAR[passes] for passes in PASSES},
    **{("tinyimagenet-split", passes): _TINY_IMAGENET[passes] for passes in PASSES},
}


def _distance(one: Benchmark, other: Benchmark) -> tuple[bool, float]:
    """Tells how far apart two benchmarks are: image networks or not, then in sizes."""
    sizes = (
        (one.num_tasks, other.num_tasks),
        (one.rows_per_task, other.rows_per_task),
    )
    far = sum(abs(math.log(a / b)) for a, b in sizes if min(a, b) > 0)
    return bool(one.channels) != bool(other.channels), far


def taken_from(benchmark: str, method: str, passes: str = "single") -> str | None:
    """Names the benchmark whose presets a method takes on another that has none.

    It is the nearest one with the same kind of stream: a stream of a person's own kind
    is a split where tasks have classes of their own, else of any other kind. Online
    benchmarks are near to online ones only.

    Args:
        benchmark: name of a benchmark.
        method: name of a method.
        passes: one of ``PASSES``.

    Returns:
        The name, or None if the benchmark or the method has presets of its own.

    Raises:
        UserError: there is none of that kind.
    """
    own = METHODS[method].hyper if method in METHODS else None
    if own is not None or method in OFFICIAL.get((benchmark, passes), {}):
        return None
    having = [b for (b, p), m in OFFICIAL.items() if p == passes and method in m]
    asked = BENCHMARKS[benchmark]

    def fits(name: str) -> bool:
        stream = BENCHMARKS[name].stream
        if BENCHMARKS[name].is_online != asked.is_online:
            return False
        if asked.stream in {BENCHMARKS[b].stream for b, _ in OFFICIAL}:
            return stream == asked.stream
        return (stream in STREAMS) == (asked.classes_per_task is None)

    near = [name for name in having if fits(name)]
    if not near:
        raise UserError(
            f"no preset for method {method!r} on {benchmark!r} with {passes} pass; "
            f"there is one on: {', '.join(having) or 'no benchmark'}"
        )
    return min(near, key=lambda name: _distance(asked, BENCHMARKS[name]))


def _find(benchmark: str, method: str, passes: str) -> Hyperparameters:
    """Returns what a method is told on a benchmark unless a person says otherwise."""
    own = METHODS[method].hyper if method in METHODS else None
    if own is not None:
        return own
    name = taken_from(benchmark, method, passes) or benchmark
    return OFFICIAL[name, passes][method]


def resolve(
    benchmark: str,
    methods: Sequence[str],
    overrides: dict[str, Any] | None = None,
    passes: str = "single",
) -> list[Hyperparameters]:
    """Looks presets up and applies the caller's overrides.

    Args:
        benchmark: name of a benchmark; one without presets takes those of another, see
            ``taken_from``.
        methods: names of methods.
        overrides: values by field name; a None is no override. Each applies to the
            methods that have such a hyper-parameter.
        passes: one of ``PASSES``.

    Returns:
        The resolved hyper-parameters of each method.

    Raises:
        UserError: no such preset, or none of the methods has such a hyper-parameter.
    """
    given = {k: v for k, v in (overrides or {}).items() if v is not None}
    presets = {method: _find(benchmark, method, passes) for method in methods}

    def has(method: str, name: str) -> bool:
        if name in OPTIONAL and method in LOOK_AHEAD:
            return True
        return getattr(presets[method], name, None) is not None

    for name in given:
        if not any(has(method, name) for method in methods):
            raise UserError(
                f"{name}: none of these methods has it: {', '.join(methods)}"
            )
    return [
        _change(preset, **{k: v for k, v in given.items() if has(method, k)})
        for method, preset in presets.items()
    ]
