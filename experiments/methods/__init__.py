"""Every method as a function from a problem to a ``lamaml_jax.Learner``.

A new method is one function in a file of this folder, a dataclass beside it of what it
alone is told, and one line in ``METHODS``; a person's own is one function in a file of
theirs that calls ``register``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import lamaml_jax as lm
from experiments.methods import (
    asymmetric,
    cls_er,
    derpp,
    episodic,
    ewc,
    icarl,
    la_er,
    lookahead,
    lor,
    mer,
    metabgd,
    mir,
    pocl,
    replay,
    upgd,
)
from experiments.methods.hyperparameters import with_own
from experiments.methods.method import Method
from experiments.methods.problem import Problem
from experiments.schema.fields import fields
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support import registry, styles
from experiments.support.errors import UserError
from experiments.support.suggestions import did_you_mean, unknown

METHODS: dict[str, Method] = {
    "lamaml": Method(
        lookahead.lamaml, lookahead.cost, lookahead.LookAheadHyperparameters
    ),
    "sync": Method(lookahead.sync, lookahead.cost, lookahead.LookAheadHyperparameters),
    "cmaml": Method(
        lookahead.cmaml, lookahead.cost, lookahead.LookAheadHyperparameters
    ),
    "la_er": Method(la_er.la_er, la_er.cost),
    "vrmcl": Method(
        lookahead.vrmcl, lookahead.vrmcl_cost, lookahead.VrmclHyperparameters
    ),
    "oml": Method(lookahead.oml, lookahead.cost, lookahead.LookAheadHyperparameters),
    "er": Method(replay.er, replay.cost),
    "er_ace": Method(
        replay.er_ace, replay.cost, needs_one_head=True, needs_classes=True
    ),
    "derpp": Method(derpp.derpp, derpp.cost, derpp.DerHyperparameters),
    "mir": Method(mir.mir, replay.cost, mir.MirHyperparameters),
    "cls_er": Method(
        cls_er.cls_er,
        cls_er.cost,
        cls_er.ClsErHyperparameters,
        predicting_weights=lambda state: state.stable,
        needs_classes=True,
    ),
    "pocl": Method(pocl.pocl, pocl.cost, needs_classes=True),
    "lor": Method(lor.lor, lor.cost, lor.LorHyperparameters),
    "mer": Method(mer.mer, mer.cost, mer.MerHyperparameters),
    "gem": Method(
        episodic.gem, episodic.cost, episodic.GemHyperparameters, needs_tasks=True
    ),
    "agem": Method(
        episodic.agem, episodic.cost, episodic.EpisodicHyperparameters, needs_tasks=True
    ),
    "icarl": Method(
        icarl.icarl,
        icarl.cost,
        icarl.IcarlHyperparameters,
        needs_tasks=True,
        needs_own_classes=True,
        make_scores=icarl.icarl_scores,
        scores_by_rows=True,
        takes_rows_alone=True,
        needs_classes=True,
    ),
    "ewc": Method(
        ewc.ewc,
        ewc.cost,
        ewc.EwcHyperparameters,
        needs_tasks=True,
        takes_rows_alone=True,
    ),
    "metabgd": Method(metabgd.metabgd, metabgd.cost, metabgd.MetaBgdHyperparameters),
    "upgd": Method(upgd.upgd, upgd.cost, upgd.UpgdHyperparameters),
    "online": Method(replay.online, replay.cost),
    "iid": Method(replay.iid, replay.cost, mixes_tasks=True),
}


def register(
    name: str,
    make: Callable[[Problem, Any], lm.Learner],
    *,
    hyper: Mapping[str, Any] | None = None,
    label: str | None = None,
    color: str | None = None,
    marker: str | None = None,
    **needs: Any,
) -> None:
    """Adds a person's own method to the command line, tables and figures.

    Args:
        name: for ``--method`` and its folder.
        make: builds its learner. The first line of its docstring and its references are
            what ``list`` says of it. A state is a NamedTuple with a field ``weights``;
            the info may be any pytree of arrays, whose means over a task are recorded.
        hyper: its hyper-parameters and their defaults, on every benchmark: fields of
            ``Hyperparameters``, or others by names of its own, see ``with_own``.
        label: its name in tables and figures; ``name`` if None.
        color: of matplotlib's; one that is free if None.
        marker: likewise.
        **needs: other fields of ``Method``: ``cost``, ``needs_tasks``,
            ``needs_own_classes``, ``needs_one_head``, ``mixes_tasks``,
            ``predicting_weights``, ``make_scores``, ``scores_by_rows``,
            ``takes_rows_alone``, ``needs_classes``.

    Raises:
        UserError: a name is taken, or a hyper-parameter or colour that cannot be.
    """
    known = [
        field for field in Method._fields if field not in ("make", "told", "hyper")
    ]
    for word in needs:
        if word not in known:
            raise UserError(
                f"method {name!r}: unknown word {word!r}{did_you_mean(word, known)}"
            )
    others = [each.told for key, each in METHODS.items() if key != name]
    told = with_own(hyper or {}, others)
    method = Method(make, told=type(told), hyper=told, **needs)
    registry.add(METHODS, "method", name, method)
    styles.register(name, label, color, marker, method.mixes_tasks)


def kinds() -> dict[str, Any]:
    """Returns the types of all hyper-parameters by name, also of a person's own."""
    known: dict[str, Any] = {}
    for method in METHODS.values():
        known |= {n: field.kind for n, field in fields(method.told).items()}
    return known


def make_learner(name: str, problem: Problem, hyper: Hyperparameters) -> lm.Learner:
    """Builds the learner called ``name``.

    Raises:
        UserError: there is none, its hyper-parameters do not fit together, or it needs
            what the problem does not give.
    """
    check_method(name)
    method = METHODS[name]
    check_setting(
        name,
        task_aware=problem.is_task_aware,
        own_classes=problem.classes_per_task is not None,
    )
    try:
        learner = _checked(name, method.make(problem, hyper))
        if problem.is_asymmetric:
            return asymmetric.covering_own(learner, problem.num_classes)
        return learner
    except (TypeError, ValueError) as error:
        raise UserError(f"method {name!r}: {error}") from error


def _checked(name: str, learner: lm.Learner) -> lm.Learner:
    """Checks that the states of a learner are what training reads and writes."""
    if not isinstance(learner, lm.Learner):
        raise UserError(
            f"method {name!r}: expected a lamaml_jax.Learner, received "
            f"{type(learner).__name__}"
        )

    def init(key: lm.Key, weights: lm.Params) -> Any:
        state = learner.init(key, weights)
        if "weights" not in getattr(state, "_fields", ()):
            raise UserError(
                f"method {name!r}: expected a state that is a NamedTuple with a field "
                "`weights`, such as lamaml_jax.LearnerState, received "
                f"{type(state).__name__}"
            )
        return state

    return learner._replace(init=init)


def check_method(name: str) -> None:
    """Checks that there is a method called ``name``.

    Raises:
        UserError: there is none; the message names a close one or all there are.
    """
    if name not in METHODS:
        raise UserError(unknown("method", name, METHODS))


def check_setting(name: str, *, task_aware: bool, own_classes: bool) -> None:
    """Checks that a benchmark and setting give the method what it needs.

    Args:
        name: key of ``METHODS``.
        task_aware: whether the learner is told of tasks.
        own_classes: whether each task has classes of its own.

    Raises:
        UserError: they do not.
    """
    method = METHODS[name]
    if method.needs_tasks and not task_aware:
        raise UserError(
            f"method {name!r} needs task ids, which the task-agnostic setting does not "
            "give; choose --setting aware or another method"
        )
    if method.needs_one_head and task_aware and own_classes:
        raise UserError(
            f"method {name!r} needs one head over all classes, and in the task-aware "
            "setting each task has a head of its own here; choose --setting agnostic"
        )
    if method.needs_own_classes and not own_classes:
        raise UserError(
            f"method {name!r} needs tasks with classes of their own; here all tasks "
            "share the same classes"
        )


def check_network(name: str, *, has_averages: bool, has_mode: bool) -> None:
    """Checks that a method can train a network.

    Args:
        name: key of ``METHODS``.
        has_averages: whether it has running averages, such as BatchNorm's.
        has_mode: whether it predicts in another way than it trains.

    Raises:
        UserError: it cannot.
    """
    method, problem = METHODS[name], None
    if has_averages and method.takes_rows_alone:
        problem = "takes rows one by one, and the network normalises them together"
    elif has_mode and method.make_scores is not None:
        problem = "predicts by what the network gives in training, which differs"
    if problem is not None:
        raise UserError(
            f"method {name!r} {problem} (BatchNorm, dropout); choose another network, "
            "such as one with GroupNorm, or another method"
        )


def check_targets(name: str, *, of_classes: bool) -> None:
    """Checks that a method can learn what a benchmark asks for.

    Args:
        name: key of ``METHODS``.
        of_classes: whether what is learnt are classes, not real numbers.

    Raises:
        UserError: it cannot.
    """
    if METHODS[name].needs_classes and not of_classes:
        raise UserError(
            f"method {name!r} needs classes, and the targets are real numbers; choose "
            "another method"
        )
