"""Published values on CIFAR-100 and Tiny ImageNet.

There is a head per task; inner steps are of second order and clipped.
"""

from typing import Any

from experiments.config.official_mnist import Values, averages, change, successors

_CLS_ER = averages(0.15, stable=(0.6, 0.999), plastic=(0.8, 0.999))
_UPGD = dict(
    learning_rate=0.01, utility_decay=0.999, noise_scale=0.001, weight_decay=0.0
)


def _images(capacity: int, epochs: int) -> tuple[Values, ...]:
    """Common values of replaying, of meta-learning and of other methods."""
    plain = dict(glances=1, epochs=epochs)
    replay = change(plain, capacity=capacity, replay_size=10, acceptance="exact")
    meta = change(
        replay,
        inner_steps=5,
        first_order=False,
        objective="mean",
        rectify=False,
        inner_clip=2.0,
    )
    return plain, replay, meta


def _image_presets(
    capacity: int, passes: str, *, iid_rate: float, **own: Values
) -> dict[str, Values]:
    """Builds the presets of one image benchmark from what its commands set, ``own``."""
    plain, replay, meta = _images(capacity, 10 if passes == "multi" else 1)
    own_lamaml = change(meta, max_grad_norm=1.0, inner_clip=1.0, **own["lamaml"])
    own_cmaml = change(meta, **own["cmaml"])
    own_er = change(replay, **own["er"])
    own_online = change(plain, learning_rate=own["er"]["learning_rate"])
    presets = {
        "lamaml": own_lamaml,
        "sync": change(meta, **own["sync"]),
        "cmaml": own_cmaml,
        "la_er": change(meta, first_order=True, objective=None, **own["la_er"]),
        "vrmcl": change(own_lamaml, momentum=0.15, learning_rate=0.35),
        "oml": own_cmaml,
        "er": own_er,
        "er_ace": own_er,
        "derpp": change(own_er, replay_size=10, logit_weight=0.1, label_weight=0.5),
        "gem": change(plain, memory_per_task=10, margin=0.5, **own["gem"]),
        "agem": change(plain, memory_per_task=10, **own["agem"]),
        "icarl": change(
            plain, capacity=capacity, distillation_weight=1.0, **own["icarl"]
        ),
        "ewc": change(own_online, penalty=20.0, fisher_rows=10),
        "metabgd": change(
            meta, inner_steps=3, initializer="xavier", mc_samples=2, **own["metabgd"]
        ),
        "online": own_online,
        **successors(change(own_er, replay_size=10), _CLS_ER, _UPGD),
    }
    if passes == "single":
        presets["mer"] = change(
            replay,
            replay_size=25,
            max_grad_norm=10.0,
            learning_rate=0.1,
            rounds=10,
            within_rate=0.1,
            across_rate=1.0,
        )
    else:
        presets["iid"] = change(plain, batch_size=32, epochs=50, learning_rate=iid_rate)
    return presets


def _rates(
    init: float, eta: float | None = None, rate: float | None = None, **other
) -> dict[str, Any]:
    return {
        "step_size_init": init,
        "step_size_learning_rate": eta,
        "learning_rate": rate,
        **other,
    }


CIFAR = {
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
TINY_IMAGENET = {
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
