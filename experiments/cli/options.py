"""Options of commands, made from the fields of dataclasses and their docstrings."""

import copy
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.schema.benchmark import Benchmark
from experiments.schema.fields import fields, helps
from experiments.schema.hyperparameters import Hyperparameters
from experiments.schema.run import RunConfig
from experiments.support.paths import check_local

_SIZES = (
    *("num_tasks", "rows_per_task", "classes_per_task", "blur"),
    *("eval_every", "network", "loss"),
)


def local_only(param: typer.CallbackParam, value: Any) -> Any:
    """Refuses an option's path or paths if they are addresses of object stores."""
    for path in value if isinstance(value, list | tuple) else [value]:
        if path is not None:
            check_local(param.opts[0], path)
    return value


DataDir = Annotated[
    Path | None,
    typer.Option(
        callback=local_only,
        help="Folder of the prepared data sets [default: $TFDS_DATA_DIR or "
        "~/tensorflow_datasets]",
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE_OR_MODULE",
        help="First import this file of yours, which registers benchmarks, methods or "
        "networks; repeat it for several.",
    ),
]


@dataclasses.dataclass(frozen=True)
class Words:
    """What a run is asked for by words that are no field of its configuration."""

    benchmark: Annotated[str | None, typer.Option("--benchmark", "-b")] = None
    """Name from `list` [default: digits-rotations]"""
    method: Annotated[list[str] | None, typer.Option("--method", "-m")] = None
    """Name from `list`; repeat it or join them by commas for several [default: lamaml,
    cmaml, er, online]"""
    seeds: int | None = None
    """Number of seeds, run side by side [default: 5]"""
    first_seed: int | None = None
    """The first of them [default: 0]"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doing:
    """Where and how ``run`` and ``sweep`` work; none of it changes a number."""

    config: Path | None = None
    """Read options from this file: YAML, or the config.json of a run folder, which is
    run again. What is given here goes before what is there."""
    fresh: bool = False
    """Start over, replacing earlier runs in that folder. Without it the same command
    goes on with what was interrupted, and leaves what is complete."""
    checkpoint_every: Annotated[float, typer.Option(min=0)] = 60.0
    """Seconds between checkpoints at least."""
    data_dir: DataDir = None
    compile_cache: bool = True
    """Keep compiled programs for later runs."""
    devices: int | None = None
    """Devices of each process on a CPU, or of all on accelerators [default: all there
    are]"""
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE")
    ] = None
    """Any hyper-parameter that `list` shows, such as --set momentum=0.9; repeat it for
    several."""
    plugin: Plugins = None


def protocol_options(but: Collection[str] = ()) -> list[inspect.Parameter]:
    """Makes an option of each field of ``RunConfig`` but some."""
    held = {"benchmark", "method", "seeds", "hyper", "evaluate_on", "presets_from"}
    return unset_options(RunConfig, fields(RunConfig).keys() - held - {*but}, True)


def size_options(but: Collection[str] = ()) -> list[inspect.Parameter]:
    """Makes options of those fields of a benchmark that are often changed, but some."""
    return unset_options(Benchmark, {*_SIZES} - {*but})


def hyper_options() -> list[inspect.Parameter]:
    """Makes an option of each hyper-parameter that several methods have."""
    return unset_options(Hyperparameters, fields(Hyperparameters))


def unset_options(
    kind: type, names: Collection[str], shows_default: bool = False
) -> list[inspect.Parameter]:
    """Makes options of fields, which have no value unless a person gives one.

    Args:
        kind: a dataclass of ``schema``.
        names: of its fields.
        shows_default: whether a choice that is not given is the field's default.
    """
    help_of = helps(kind)
    made = []
    for field in dataclasses.fields(kind):
        if field.name in names:
            text = help_of[field.name]
            if shows_default and fields(kind)[field.name].choices:
                text = f"{text} [default: {field.default}]"
            hint = fields(kind)[field.name].kind | None
            option = typer.Option(help=text)
            made.append(_parameter(field.name, Annotated[hint, option], None))
    return made


def own_options(kind: type) -> list[inspect.Parameter]:
    """Makes an option of each field of a dataclass of this folder, with its default."""
    help_of = helps(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    made = []
    for field in dataclasses.fields(kind):
        hint, option = hints[field.name], None
        if typing.get_origin(hint) is Annotated:
            hint, option = typing.get_args(hint)
        option = typer.Option() if option is None else copy.copy(option)
        option.help = help_of.get(field.name, option.help)
        if field.default is False:  # an option --no-x would mean what no option does
            option.param_decls = (f"--{field.name.replace('_', '-')}",)
        if hint in (Path, Path | None):
            option.callback = local_only
        made.append(_parameter(field.name, Annotated[hint, option], field.default))
    return made


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=hint, default=default)


Command = Callable[[typer.Context, dict[str, Any], Any], None]


def takes(
    first: Sequence[inspect.Parameter],
    doing: type,
    last: Sequence[inspect.Parameter],
) -> Callable[[Command], Callable[..., None]]:
    """Gives options to ``command(context, given, doing)``.

    Args:
        first: options whose values, where they are given, are in the dict ``given``.
        doing: dataclass whose fields are options too; ``doing`` is an instance.
        last: as ``first``, at the end of the help.
    """
    asked = [*first, *last]

    def decorate(command: Command) -> Callable[..., None]:
        own = own_options(doing)

        @functools.wraps(command)
        def with_options(context: typer.Context, **values: Any) -> None:
            given = {each.name: values[each.name] for each in asked}
            given = {name: value for name, value in given.items() if value is not None}
            done = doing(**{each.name: values[each.name] for each in own})
            command(context, given, done)

        context = inspect.Parameter(
            "context",
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            annotation=typer.Context,
        )
        signature = inspect.Signature([context, *first, *own, *last])
        # What typer reads in the place of the function's own; functions declare none.
        setattr(with_options, "__signature__", signature)  # noqa: B010
        return with_options

    return decorate
