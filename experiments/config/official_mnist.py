"""Published values on the MNIST streams.

There is one head; inner steps are of first order and of one row.
"""

from typing import Any

Values = dict[str, Any]
"""Hyper-parameters by name; a None, or one that is not here, is none of a method's."""


def change(values: Values, **other: Any) -> Values:
    """Returns the values with others in the place of some, or besides."""
    return values | other


_REPLAY = dict(capacity=200, replay_size=10, acceptance="exact")
_META = change(
    _REPLAY,
    inner_steps=10,
    first_order=True,
    objective="mean",
    rectify=True,
    step_size_init=0.1,
)


def _lamaml(init: float, eta: float, **other: Any) -> Values:
    return change(_META, step_size_init=init, step_size_learning_rate=eta, **other)


def _sync(init: float, eta: float, rate: float, **other: Any) -> Values:
    return _lamaml(init, eta, learning_rate=rate, **other)


def _cmaml(init: float, rate: float, **other: Any) -> Values:
    return change(_META, step_size_init=init, learning_rate=rate, **other)


_ER = change(_REPLAY, learning_rate=0.1)
_ONLINE = dict(learning_rate=0.03)
_AGEM = change(_ONLINE, memory_per_task=10)
_DERPP = change(_ER, logit_weight=1.0, label_weight=0.5)
_MER = change(_REPLAY, glances=1, max_grad_norm=10.0)
IID = change(_ONLINE, batch_size=32, glances=1, epochs=50)
_META_BGD = change(
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


def averages(
    weight: float, stable: tuple[float, float], plastic: tuple[float, float]
) -> Values:
    """CLS-ER's own: the weight of its distance, rates and decays of its averages."""
    return {
        "consistency_weight": weight,
        "stable_rate": stable[0],
        "stable_decay": stable[1],
        "plastic_rate": plastic[0],
        "plastic_decay": plastic[1],
    }


def successors(er: Values, cls_er: Values, upgd: Values) -> dict[str, Values]:
    """Completes ER's values with those that later methods have besides."""
    rate = er["learning_rate"]
    plain = {k: er[k] for k in er.keys() - {"capacity", "replay_size", "acceptance"}}
    return {
        "mir": change(er, candidates=50),
        "cls_er": change(er, **cls_er),
        "pocl": change(er, step_size_init=rate, inner_clip=2.0, first_order=False),
        "lor": change(
            er,
            step_size_init=rate / 10,
            directions=4,
            concentration=1.0,
            temperature=0.1,
        ),
        "upgd": change(plain, **upgd),
    }


_UPGD = dict(
    learning_rate=0.01, utility_decay=0.9999, noise_scale=0.1, weight_decay=0.01
)


def _mnist(
    lamaml: Values,
    sync: Values,
    cmaml: Values,
    ewc_penalty: float,
    derpp: Values,
    mer: Values,
    cls_er: Values,
) -> dict[str, Values]:
    """Completes a stream's own values with those that all streams share."""
    return {
        "lamaml": lamaml,
        "sync": sync,
        "cmaml": cmaml,
        "la_er": change(lamaml, objective=None, rectify=False, inner_clip=2.0),
        "vrmcl": change(lamaml, momentum=0.5),
        "oml": cmaml,
        "er": _ER,
        "er_ace": _ER,
        "derpp": derpp,
        "mer": mer,
        "gem": change(_AGEM, margin=0.5),
        "agem": _AGEM,
        "ewc": change(_ONLINE, penalty=ewc_penalty * 2 / 10, fisher_rows=10),
        "metabgd": _META_BGD,
        "online": _ONLINE,
        "iid": IID,
        **successors(_ER, cls_er, _UPGD),
    }


ROTATIONS = _mnist(
    _lamaml(0.15, 0.3),
    _sync(0.15, 0.1, 0.3),
    _cmaml(0.1, 0.1),
    ewc_penalty=100.0,
    derpp=_DERPP,
    mer=change(_MER, learning_rate=0.1, rounds=5, within_rate=0.01, across_rate=1.0),
    cls_er=averages(0.75, stable=(1.0, 0.999), plastic=(1.0, 0.99)),
)
PERMUTATIONS = _mnist(
    _lamaml(0.15, 0.3),
    _sync(0.15, 0.1, 0.1),
    _cmaml(0.03, 0.1),
    ewc_penalty=10.0,
    derpp=change(_DERPP, label_weight=1.0),
    mer=change(_MER, learning_rate=0.03, rounds=10, within_rate=0.03, across_rate=1.0),
    cls_er=averages(1.0, stable=(0.8, 0.99), plastic=(1.0, 0.99)),
)


def _with_capacity(
    presets: dict[str, Values], capacity: int, per_task: int
) -> dict[str, Values]:
    """Changes the memory of every method that has one."""
    return {
        name: change(
            preset,
            capacity=preset.get("capacity") and capacity,
            memory_per_task=preset.get("memory_per_task") and per_task,
        )
        for name, preset in presets.items()
    }


MANY = _with_capacity(
    _mnist(
        _lamaml(0.1, 0.1, glances=10),
        _sync(0.03, 0.1, 0.03, glances=10),
        _cmaml(0.03, 0.15),
        ewc_penalty=1.0,
        derpp=_DERPP,
        mer=change(
            _MER,
            learning_rate=0.03,
            replay_size=5,
            rounds=10,
            within_rate=0.03,
            across_rate=1.0,
        ),
        cls_er=averages(1.0, stable=(0.8, 0.99), plastic=(1.0, 0.99)),
    ),
    capacity=500,
    per_task=5,
)
# The digits stream takes the values of MNIST Rotations unchanged, except for the
# memory: with 200 rows the reservoir holds 10 of each task's 200 rows and every
# replaying method retains about the same; with 100 rows memory is as scarce as a
# continual learner should expect, and the methods come apart.
DIGITS = _with_capacity(ROTATIONS, capacity=100, per_task=5)
FASHION_SPLIT = ROTATIONS | {
    "icarl": change(_ONLINE, capacity=200, distillation_weight=1.0)
}
