"""The reference: what every public name tells, and that the pages are built."""

import ast
import builtins
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import lamaml_jax as lm

PACKAGE = Path(lm.__file__).parent
ROOT = PACKAGE.parent


class Public(NamedTuple):
    """One public name as it is written."""

    name: str
    node: ast.stmt
    doc: str


def defined_name(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


def text_after(field, after):
    """The docstring of a field or an alias: a string that follows it."""
    is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return inspect.cleandoc(after.value.value) if is_text else ""


def with_next(statements):
    return zip(statements, [*statements[1:], None], strict=True)


def public_names(path):
    """The public names that a module defines, in order."""
    is_public_module = path.stem in lm.__all__
    for node, after in with_next(ast.parse(path.read_text()).body):
        name = defined_name(node)
        if name is None or name.startswith("_"):
            continue
        if not is_public_module and name not in lm.__all__:
            continue
        is_alias = isinstance(node, ast.AnnAssign)
        doc = text_after(node, after) if is_alias else ast.get_docstring(node)
        yield Public(f"{path.stem}.{name}", node, doc or "")


PUBLIC = {
    found.name: found
    for path in sorted(PACKAGE.glob("*.py"))
    for found in public_names(path)
}
every_name = pytest.mark.parametrize("public", PUBLIC.values(), ids=list(PUBLIC))


# What a docstring says of each thing ------------------------------------------------


class Said(NamedTuple):
    """An argument, a field or a result: its annotation, and the words on it."""

    name: str
    annotation: str
    text: str


def section(doc, title):
    match = re.search(rf"^{title}:\n((?:    .*(?:\n|$)|\n)*)", doc, re.MULTILINE)
    return "" if match is None else inspect.cleandoc(match[1])


def described(doc):
    """Name -> words, of a docstring's arguments."""
    parts = re.split(r"^\*{0,2}(\w+):", section(doc, "Args"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def said_by_function(node, doc):
    given = described(doc)
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    for argument in arguments:
        if argument.arg != "self":
            annotation = ast.unparse(argument.annotation)
            yield Said(argument.arg, annotation, given.get(argument.arg, ""))
    yield Said("what it returns", ast.unparse(node.returns), section(doc, "Returns"))


def calls_of(node):
    """The ``__call__`` of a protocol."""
    return [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]


def fields_of(node):
    for field, after in with_next(node.body):
        if isinstance(field, ast.AnnAssign):
            text = text_after(field, after)
            yield Said(field.target.id, ast.unparse(field.annotation), text)


def everything_said(public):
    if isinstance(public.node, ast.FunctionDef):
        yield from said_by_function(public.node, public.doc)
    elif isinstance(public.node, ast.ClassDef):
        yield from fields_of(public.node)
        for call in calls_of(public.node):
            yield from said_by_function(call, ast.get_docstring(call))
    else:
        yield Said(public.name, public.name.split(".")[-1], public.doc)


def resolved(said):
    """The words on a thing, and those on its namesake where they say "as in"."""
    text, seen = said.text, set()
    while match := re.search(r"as in ``(?:\w+\.)*(\w+)``", text):
        found = [p for p in PUBLIC.values() if p.name.split(".")[-1] == match[1]]
        if not found or match[1] in seen:
            break
        seen.add(match[1])
        more = {other.name: other.text for other in everything_said(found[0])}
        text = text.replace(match[0], more.get(said.name, ""))
    return text


# Which annotations have a shape or a unit, and the words that give them. The number of
# axes is given in brackets, or by one word where there are none or where it is a tree.
SHAPES = {
    r"jax\.Array|\bMask\b": r"\[.*\]|\b[Ss]calar",
    r"\bBatch\b": r"\[.*\]|\bone row\b|\bMade of rows\b",
    r"\b(Params|StepSizes|ModelState|PyTree)\b": r"tree\b|\[.*\]",
    r"Numeric\b": r"\bscalar|\bnumber|\btraced|\bbool",
    r"\bKey\b": r"\bkey|\bconsumed\b|\[N\]",
}
UNITS = {
    r"jax\.Array|Numeric\b|\bStepSizes\b|\bfloat\b": (
        r"\bnats\b|\bfractions?\b|\bunitless\b|\bunit\b|\bseconds\b|\bbytes\b"
        # what is counted, numbered, or only true or false has no unit to give
        r"|\bint32\b|\bintegers?\b|\bbooleans?\b|\bbool\b|\bTrue\b|\bcosines?\b"
    ),
}


def missing(said, rules):
    """The annotations of a thing whose rule its words do not keep."""
    text = resolved(said)
    return [
        f"{said.name}: {said.annotation}"
        for kind, words in rules.items()
        if re.search(kind, said.annotation) and not re.search(words, text, re.DOTALL)
    ]


@every_name
def test_shapes_are_given(public):
    assert not [x for said in everything_said(public) for x in missing(said, SHAPES)]


@every_name
def test_units_are_given(public):
    assert not [x for said in everything_said(public) for x in missing(said, UNITS)]


def raising(public):
    """Docstrings that have to say what is raised: of whatever can be called."""
    if isinstance(public.node, ast.FunctionDef):
        return [public.doc]
    if isinstance(public.node, ast.ClassDef):
        calls = [ast.get_docstring(call) for call in calls_of(public.node)]
        # The fields of some named tuples are functions, written as calls.
        fields = [said.text for said in fields_of(public.node)]
        is_container = any(re.match(r"``\w+\(", text) for text in fields)
        return [*calls, *([public.doc] if is_container else [])]
    return []


@every_name
def test_errors_are_given(public):
    for doc in raising(public):
        raised = section(doc, "Raises")
        names = re.findall(r"^(\w+):", raised, re.MULTILINE)
        if names:
            for name in names:
                assert issubclass(getattr(builtins, name), Exception)
        else:
            assert raised.startswith("Nothing")


@every_name
def test_only_what_checks_nothing_says_that_it_raises_nothing(public):
    written = ast.unparse(public.node)
    checks = re.search(r"\bchecks\.check_|^\s*raise\b", written, re.MULTILINE)
    says_nothing = section(public.doc, "Raises").startswith("Nothing")
    assert not (checks and says_nothing)


@every_name
def test_example_uses_what_it_is_an_example_of_and_runs(public):
    examples = doctest.DocTestParser().get_examples(public.doc)
    source = "".join(example.source for example in examples)
    own = public.name.split(".")[-1]
    # A result or a state is seldom written by its name: then one of its fields is.
    fields = []
    if isinstance(public.node, ast.ClassDef):
        fields = [rf"\.{said.name}\b" for said in fields_of(public.node)]
    assert re.search("|".join([rf"\b{own}\b", *fields]), source)
    if isinstance(public.node, ast.AnnAssign):  # others: test_docs.py
        parsed = doctest.DocTestParser().get_doctest(public.doc, {}, own, None, 0)
        runner = doctest.DocTestRunner()
        assert runner.run(parsed).failed == 0


def test_every_public_name_is_looked_at():
    found = {name.split(".")[-1] for name in PUBLIC}
    modules = {name for name in lm.__all__ if inspect.ismodule(getattr(lm, name))}
    assert set(lm.__all__) - modules <= found
    for module in modules:
        written = importlib.import_module(f"lamaml_jax.{module}")
        own = {
            name
            for name, value in vars(written).items()
            if inspect.isfunction(value) or inspect.isclass(value)
            if value.__module__ == written.__name__
        }
        assert {n for n in own if not n.startswith("_")} <= found


@pytest.mark.slow
def test_reference_is_built_without_a_warning(tmp_path):
    command = [sys.executable, ROOT / ".docs/build.py", tmp_path]
    subprocess.run(command, check=True)
    pages = [path.read_text() for path in (tmp_path / "reference").glob("*.html")]
    text = "\n".join(pages)
    for public in PUBLIC.values():
        module, name = public.name.split(".")
        owner = f"lamaml_jax.{module}" if module in lm.__all__ else "lamaml_jax"
        assert f'id="{owner}.{name}"' in text
    # Signatures as they are written: no alias spelt out, no module of ours.
    assert "typing." not in text and "jaxtyping" not in text
    assert "lamaml_jax.types." not in re.sub(r"<title>.*?</title>", "", text)
    front = (tmp_path / "index.html").read_text()
    order = ["lamaml_jax/index.html", "experiments/index.html", "reference/types.html"]
    places = [front.index(f'href="{page}"') for page in order]
    assert places == sorted(places)
