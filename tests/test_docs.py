"""What is documented: every public name, with examples that run."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import lamaml_jax as lm

MODULES = [f"lamaml_jax.{info.name}" for info in pkgutil.iter_modules(lm.__path__)]
FUNCTIONS = [
    (owner, name)
    for owner in (lm, lm.losses, lm.metrics, lm.mixing, lm.diagnostics)
    for name, value in vars(owner).items()
    if inspect.isfunction(value) and not name.startswith("_")
    if value.__module__.startswith("lamaml_jax")
]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


@pytest.mark.parametrize(("owner", "name"), FUNCTIONS)
def test_every_public_function_has_an_example(owner, name):
    assert doctest.DocTestParser().get_examples(inspect.getdoc(getattr(owner, name)))


@pytest.mark.parametrize(
    ("owner", "name"), FUNCTIONS, ids=lambda value: getattr(value, "__name__", value)
)
def test_docstring_names_every_argument_and_what_comes_back(owner, name):
    function = getattr(owner, name)
    doc = inspect.getdoc(function)
    assert doc and doc.splitlines()[0].endswith(".")
    sections = doc.split("Args:")
    assert len(sections) == 2 and "Returns:" in doc
    arguments = sections[1].split("Returns:")[0]
    # As written: the variants' signatures also show the options that they hand on.
    code = function.__code__
    for parameter in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        assert f"{parameter}:" in arguments or f"``{parameter}``" in arguments
