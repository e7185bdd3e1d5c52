"""What there is to run, on a terminal: benchmarks, methods, published values."""

import dataclasses
import inspect
import re

from rich.console import Console
from rich.table import Table

from experiments import benchmarks, methods, presets
from experiments.hyperparameters import Hyperparameters

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
    console.print(
        "\n`list BENCHMARK` shows the published hyper-parameters, the defaults on it.",
        soft_wrap=True,
    )


def show_values(benchmark: str, console: Console) -> None:
    """Prints the published hyper-parameters on a benchmark, by method and passes."""
    fields = [field.name for field in dataclasses.fields(Hyperparameters)]
    for (name, passes), by_method in presets.OFFICIAL.items():
        if name != benchmark:
            continue
        names = list(by_method)
        for start in range(0, len(names), _METHODS_PER_TABLE):
            part = names[start : start + _METHODS_PER_TABLE]
            table = Table(title=f"Hyper-parameters on {name}, {passes} pass")
            table.add_column("", no_wrap=True)
            for method in part:
                table.add_column(method, justify="right")
            for field in fields:
                values = [getattr(by_method[method], field) for method in part]
                if any(value is not None for value in values):
                    table.add_row(
                        field, *("-" if v is None else str(v) for v in values)
                    )
            console.print(table)
