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
  (``glances``), on CIFAR-100 a memory of 2,000 rows, on Tiny ImageNet nine updates and
  4,000 rows (commit b608fbc of its repository, AlbinSou/ocl_survey); MER goes over each
  batch in its own way. On these two ER and ER-ACE have the rates that the survey's
  search chose (``best_configs``, commits 427fb1d, 5f33be8 and 2cd8c76), without
  clipping, as there. Its ER-ACE weights the two means of the loss by 0.45 and 0.55, on
  Tiny ImageNet by 0.41 and 0.59, where ours adds them up, so that ours has half its
  rate. Online has ER's, and IID is ER on the rows of all tasks mixed, as there, on
  every online benchmark. On CIFAR-100 its DER has a weight of nothing on the logits,
  which makes it ER; DER++ here keeps its authors'.
- The methods of ``methods/lookahead.py``, POCL and LOR have on online CIFAR-100 and
  Tiny ImageNet what VR-MCL's repository commands for both, all alike: 32 incoming and
  32 replayed rows, inner batches of 8 in second order, one update per batch, initial
  step sizes 0.1, a rate of 0.25 for them; where weights have a rate of their own it is
  0.1 too. That command is VR-MCL's; for La-MAML there is none, and five updates per
  batch where none is said. In training its code is told of tasks: inner losses cover
  the task's own classes, and in a query incoming rows those and later ones, replayed
  rows, at 0.4 or 0.5 of the weight, all seen so far (``models/vrmcl.py``; in
  ``models/lamaml.py`` each row's own task's). Ours are told of none and cover all
  classes; ``--loss asymmetric_cross_entropy`` comes near to theirs. All else is as on
  ``mnist-rotations`` and ``cifar100-split``, and online Fashion-MNIST takes what online
  MNIST has. None was tuned here.
- VR-MCL: a momentum of 0.15 and a rate of 0.35 for the weights, from the command of its
  repository for Seq-CIFAR-100 and Seq-Tiny-ImageNet (README of
  WuYichen-97/Meta-Continual-Learning-Revisited-ICLR2024, commit 1192219; for
  Seq-CIFAR-10 it says 0.25 and 0.25), on the image and the online benchmarks. It has no
  command for the other streams: there the momentum is 0.5 and the weights move by the
  step sizes, with La-MAML's values, which is ours and was not tuned.
- CLS-ER: the best arguments of its authors' repository (NeurAI-Lab/CLS-ER, commit
  4418c7f), those of seq-mnist and of rot- and perm-mnist with 200 rows; on images those
  of gcil-cifar100, uniform, with 1,000 rows. Its rate is theirs on the online
  benchmarks, whose batches are as large or nearly, else that of ER.
- MIR: 50 candidates and, on the online benchmarks, a rate of 0.1, from the commands of
  its authors' repository (optimass/Maximally_Interfered_Retrieval, commit 35eda78).
- POCL: inner steps and descent at one rate, inner gradients clipped to 2, second order,
  from its authors' repository (WuYichen-97/Pareto-CL-ICML24, commit 3e62779). The rate
  is ER's, on CIFAR-100 that of its command, 0.03.
- LOR: no number of its paper was at hand. Four directions, uniform shares, a
  temperature of 0.1 nats and ER's rate (0.1 on ``cifar100-online``) are ours, and were
  not tuned. Steps ahead have a tenth of that rate. With the whole rate, which was tried
  first, the weights drift away while the points ahead stay good: on a parabola of
  curvature h, descent at points a step a ahead ascends where a * h > 1.
- UPGD: the rates, decays and noise with which its authors' repository made its
  statistics (mohmdelsayed/upgd, commit 3da777a), of input-permuted MNIST and, for
  images, of label-permuted CIFAR-10.
- La-ER on the MNIST streams takes La-MAML's values, OML takes C-MAML's, Meta-BGD and
  IID those of CIFAR-100, ER-ACE everywhere those of ER. None was tuned.

On online CIFAR-100 and Tiny ImageNet, DER++, CLS-ER, MIR and POCL do without clipping
by norm, as in their authors' code (POCL's bounds each element of a hypergradient by 10
instead). Elsewhere their gradients are clipped to 2, as La-MAML's code does with those
of all its methods.

A benchmark without any, such as a person's own, takes those of the nearest stream.
"""

import typing

from experiments.config import official_images, official_mnist
from experiments.config.official_mnist import Values, change
from experiments.methods import METHODS
from experiments.schema.choices import Passes
from experiments.schema.hyperparameters import NO_CLIP, Hyperparameters

PASSES: tuple[Passes, ...] = typing.get_args(Passes)

# Online: one head, one pass, no task ids, and as many updates for every method.
_TOLD_OF_TASKS = ("gem", "agem", "ewc", "icarl")


def _survey(
    presets: dict[str, Values], capacity: int, glances: int = 3
) -> dict[str, Values]:
    """Puts batches, draws, passes and memory of the survey into a benchmark's values.

    IID is ER on the mixed stream, at the same cost: their ceiling.
    """
    chosen = {k: v for k, v in presets.items() if k not in _TOLD_OF_TASKS}
    chosen["iid"] = chosen["er"]
    return {
        name: change(
            preset,
            glances=1 if name == "mer" else glances,
            capacity=preset.get("capacity") and capacity,
            replay_size=preset.get("replay_size") and 10,
        )
        for name, preset in chosen.items()
    }


_MNIST_ONLINE = _survey(official_mnist.ROTATIONS, capacity=200)
_MNIST_ONLINE |= {
    "vrmcl": change(_MNIST_ONLINE["vrmcl"], momentum=0.15, learning_rate=0.35),
    "cls_er": change(
        _MNIST_ONLINE["cls_er"],
        learning_rate=0.03,
        **official_mnist.averages(2.0, stable=(0.9, 0.99), plastic=(1.0, 0.99)),
    ),
}
_LINE_SIZES = dict(batch_size=32, replay_size=32, glances=1)


def _images_online(
    capacity: int, glances: int, er_rate: float, er_ace_rate: float
) -> dict[str, Values]:
    """Puts memory, passes and rates of the survey beside the look-ahead methods'."""
    own = _survey(official_images.CIFAR["single"], capacity, glances)
    unclipped = dict(max_grad_norm=NO_CLIP)
    er = dict(learning_rate=er_rate, **unclipped)
    line = change(
        official_images.CIFAR["single"]["lamaml"],
        inner_steps=4,
        capacity=capacity,
        **_LINE_SIZES,
    )
    cmaml = change(line, step_size_learning_rate=None, learning_rate=0.1)
    return own | {
        "er": change(own["er"], **er),
        "er_ace": change(own["er_ace"], learning_rate=er_ace_rate, **unclipped),
        "online": change(own["online"], **er),
        "iid": change(own["er"], **er),
        "lamaml": line,
        "sync": change(line, learning_rate=0.1),
        "cmaml": cmaml,
        "vrmcl": change(line, momentum=0.15, learning_rate=0.35),
        "oml": cmaml,
        "pocl": change(own["pocl"], **_LINE_SIZES, **unclipped),
        "lor": change(
            own["lor"], step_size_init=0.01, learning_rate=0.1, **_LINE_SIZES
        ),
        "derpp": change(own["derpp"], **unclipped),
        "cls_er": change(own["cls_er"], learning_rate=0.1, **unclipped),
        "mir": change(own["mir"], learning_rate=0.1, **unclipped),
    }


_CIFAR_ONLINE = _images_online(2000, 3, er_rate=0.0599, er_ace_rate=0.0124)
_TINY_ONLINE = _images_online(4000, 9, er_rate=0.0197, er_ace_rate=0.0156)

_VALUES: dict[tuple[str, str], dict[str, Values]] = {
    ("digits-rotations", "single"): official_mnist.DIGITS,
    **{
        (f"{prefix}-{kind}", "single"): presets
        for prefix in ("mnist", "fashion-mnist")
        for kind, presets in {
            "rotations": official_mnist.ROTATIONS,
            "permutations": official_mnist.PERMUTATIONS,
            "many": official_mnist.MANY,
        }.items()
    },
    ("fashion-mnist-split", "single"): official_mnist.FASHION_SPLIT,
    **{
        (f"{prefix}-online", "single"): presets
        for prefix, presets in {
            "mnist": _MNIST_ONLINE,
            "fashion-mnist": _MNIST_ONLINE,
            "cifar100": _CIFAR_ONLINE,
            "tinyimagenet": _TINY_ONLINE,
        }.items()
    },
    **{("cifar100-split", passes): official_images.CIFAR[passes] for passes in PASSES},
    **{
        ("tinyimagenet-split", passes): official_images.TINY_IMAGENET[passes]
        for passes in PASSES
    },
}

OFFICIAL: dict[tuple[str, str], dict[str, Hyperparameters]] = {
    place: {
        name: METHODS[name].told(**{k: v for k, v in values.items() if v is not None})
        for name, values in by_method.items()
    }
    for place, by_method in _VALUES.items()
}
"""By benchmark and passes, then by method."""
