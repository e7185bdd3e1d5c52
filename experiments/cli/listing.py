"""What there is to run, on a terminal: benchmarks, methods, published values."""

import inspect
import re

from rich.console import Console
from rich.table import Table

from experiments import methods, networks
from experiments.config import benchmarks, official, presets
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.errors import UserError

_METHODS_PER_TABLE = 5
_ARXIV = re.compile(r"arXiv:\d{4}\.\d{5}")


def method_line(name: str) -> tuple[str, str]:
    """Says in a line what a method is, and where it is from.

    Both are from the docstring of the function that makes its learner: the first line,
    and the first of its references.

    Args:
        name: key of ``methods.METHODS``.

    Returns:
        A sentence and a paper; "" for what is not there.
    """
    text = inspect.getdoc(methods.METHODS[name].make) or ""
    sentence = text.partition("\n")[0].replace("`", "")
    paper = " ".join(text.partition("References:\n")[2].split())
    if found := _ARXIV.search(paper):
        paper = paper[: found.end()]
    return sentence, paper.removesuffix(".")


def show_names(console: Console) -> None:
    """Prints benchmarks and methods, a line or two each."""
    table = Table(title="Benchmarks", box=None, pad_edge=False, title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for each in benchmarks.BENCHMARKS.values():
        table.add_row(each.name, each.description)
    console.print(table)
    table = Table(title="\nMethods", box=None, pad_edge=False, title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("what it is, and its paper")
    for name in methods.METHODS:
        sentence, paper = method_line(name)
        table.add_row(name, f"{sentence} {paper}".strip())
    console.print(table)
    if own := [name for name in networks.NETWORKS if name != networks.PUBLISHED]:
        console.print(f"\nNetworks, for --network: {', '.join(own)}", soft_wrap=True)
    console.print(
        "\n`list BENCHMARK` shows the published hyper-parameters, the defaults on it.",
        soft_wrap=True,
    )


def show_values(benchmark: str, console: Console) -> None:
    """Prints the hyper-parameters on a benchmark, by method and passes.

    They are the published ones, those of the nearest stream where it has none, and the
    defaults of a person's own methods.
    """
    for passes in official.PASSES:
        by_place: dict[str, dict[str, Hyperparameters]] = {}
        for method in methods.METHODS:
            try:
                other = presets.taken_from(benchmark, method, passes)
            except UserError:  # no preset of this kind of stream
                continue
            place = f"on {benchmark}" if other is None else f"of {other}"
            if other is not None and any(b == benchmark for b, _ in official.OFFICIAL):
                continue  # published values are shown as they are
            (hyper,) = presets.resolve(benchmark, [method], passes=passes)
            by_place.setdefault(f"{place}, {passes} pass", {})[method] = hyper
        for place, by_method in by_place.items():
            _show_table(f"Hyper-parameters {place}", by_method, console)


def _show_table(
    title: str, by_method: dict[str, Hyperparameters], console: Console
) -> None:
    names = list(by_method)
    for start in range(0, len(names), _METHODS_PER_TABLE):
        part = names[start : start + _METHODS_PER_TABLE]
        table = Table(title=title)
        table.add_column("", no_wrap=True)
        for method in part:
            table.add_column(method, justify="right")
        for field in methods.kinds():
            values = [getattr(by_method[method], field, None) for method in part]
            if any(value is not None for value in values):
                table.add_row(field, *("-" if v is None else str(v) for v in values))
        console.print(table)
