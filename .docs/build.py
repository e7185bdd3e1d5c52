"""Builds the reference as web pages: guides, notebooks, modules in reading order.

    python .docs/build.py [folder]

The first page is build/reference/index.html. Guides and notebooks are the files of the
repository; the pages of the library are written from its source, so that a signature
reads as it is written there. Whatever Sphinx warns of is an error.
"""

import ast
import importlib
import inspect
import json
import re
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build
from sphinx.ext.napoleon import Config, GoogleDocstring

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # what is described is what lies here, not an older one

import lamaml_jax as lm  # noqa: E402
from lamaml_jax import options  # noqa: E402

GUIDES = {
    "lamaml_jax/README.md": "Guide to the library",
    "experiments/README.md": "Experiments",
    "experiments/results/README.md": "Results",
    "experiments/bench/README.md": "Speed",
    "CONTRIBUTING.md": "Contributing",
    "CHANGELOG.md": "Changes",
}
STYLE = Config(napoleon_use_rtype=False, napoleon_use_ivar=True)
# Each can be understood without those that follow it.
MODULES = (
    "types",
    "losses",
    "inner",
    "meta",
    "memory",
    "reservoir",
    "balanced_reservoir",
    "batching",
    "clipping",
    "step_sizes",
    "variance_reduction",
    "info",
    "transform",
    "variants",
    "learner",
    "metrics",
    "mixing",
    "utility",
    "diagnostics",
)


# Guides ---------------------------------------------------------------------------


def staged(path: str) -> str:
    """Name of a page in the folder that Sphinx reads: README.md is a folder's index."""
    return re.sub(r"\bREADME\.md\b", "index.md", path)


def followed(text: str, page: Path, folder: Path) -> str:
    """The text with links between pages as Sphinx knows them; copies other files."""

    def follow(link: re.Match[str]) -> str:
        shown, path, anchor = link.groups()
        found = page.parent / path
        if "://" in path or found.suffix in (".md", ".ipynb"):
            return f"[{shown}]({staged(path)}{anchor})"
        if found.is_dir():  # a code host shows it, a web page cannot
            return shown
        copy(found, folder)
        return link[0]

    return re.sub(r"\[([^\]]*)\]\(([^)#\s]+)([^)\s]*)\)", follow, text)


def stage_guide(page: str, folder: Path, extra: str = "") -> None:
    """Copies a page to the same place, and the files that it shows or offers."""
    place = folder / staged(page)
    place.parent.mkdir(parents=True, exist_ok=True)
    text = (ROOT / page).read_text()
    place.write_text(followed(text, ROOT / page, folder) + extra)


def stage_notebook(path: Path, folder: Path) -> None:
    """Copies a notebook as it was executed."""
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = followed("".join(cell["source"]), path, folder)
    place = folder / path.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(notebook))


def notebooks() -> list[Path]:
    """The notebooks in the order in which the guide to the experiments names them."""
    page = ROOT / "experiments/README.md"
    named = re.findall(r"\]\((notebooks/[^)]+)\)", page.read_text())
    return [page.parent / name for name in named]


def copy(path: Path, folder: Path) -> None:
    """Copies a file to the same place in another folder."""
    place = folder / path.resolve().relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place)


def contents(caption: str, pages: list[str]) -> str:
    """A part of the navigation."""
    lines = "\n".join(pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


# Modules --------------------------------------------------------------------------


def public_names(module: object) -> list[str]:
    """Names of a module that users import, in the order of the source."""
    inner = module.__name__.split(".")[-1]
    written = ast.parse(inspect.getsource(module)).body
    names = [name for node in written if (name := defined_name(node))]
    if inner in lm.__all__:
        return [name for name in names if not name.startswith("_")]
    return [name for name in names if name in lm.__all__]


def defined_name(node: ast.stmt) -> str | None:
    """What a statement defines: a function, a class, or an alias with a docstring."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


def person(node: ast.expr | None) -> str:
    """An annotation or default as a person would write it beside the documentation."""
    text = "None" if node is None else ast.unparse(node)
    # A type of ours goes by its public name, whichever module it is written in.
    own = "|".join(path.stem for path in (ROOT / "lamaml_jax").glob("*.py"))
    text = re.sub(rf"\b(?:{own})\.(?=[A-Z])", "", text)
    return re.sub(r"(?<=\w)\[PyTree\]", "", text)  # a container of anything


def parameters(node: ast.FunctionDef, shown: dict[str, str]) -> list[str]:
    """Parameters with annotations and defaults; ``shown`` takes the place of **."""
    taken, found = node.args, []
    plain = [*taken.posonlyargs, *taken.args]
    defaults = [None] * (len(plain) - len(taken.defaults)) + taken.defaults
    for n, (arg, default) in enumerate(zip(plain, defaults, strict=True)):
        if arg.arg != "self":
            found.append(one_parameter(arg, default))
        if taken.posonlyargs and n == len(taken.posonlyargs) - 1:
            found.append("/")
    if taken.vararg:
        found.append(f"*{one_parameter(taken.vararg, None)}")
    elif taken.kwonlyargs:
        found.append("*")
    for arg, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True):
        found.append(one_parameter(arg, default))
    own = {arg.arg for arg in taken.kwonlyargs}
    found += [text for name, text in shown.items() if name not in own]
    if taken.kwarg and not shown:
        found.append(f"**{one_parameter(taken.kwarg, None)}")
    return found


def one_parameter(arg: ast.arg, default: ast.expr | None) -> str:
    """``name: annotation = default``."""
    text = arg.arg if arg.annotation is None else f"{arg.arg}: {person(arg.annotation)}"
    return text if default is None else f"{text} = {person(default)}"


def handed_on(function: object) -> dict[str, str]:
    """The options that a function shows in its signature and hands on to another."""
    written = {}
    for typed in (options.MetaOptions, options.LamamlOptions):
        for node in ast.parse(inspect.getsource(typed)).body[0].body:
            if isinstance(node, ast.AnnAssign):
                written[node.target.id] = person(node.annotation)
    names = function.__code__.co_varnames
    return {
        name: f"{name}: {written[name]} = {parameter.default!r}"
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in names[: function.__code__.co_argcount] and name in written
    }


def entry(kind: str, header: str, doc: str, *fields: str) -> str:
    """A directive of Sphinx for one name."""
    names = "|".join(sorted(lm.__all__, key=len, reverse=True))
    doc = re.sub(
        rf"``((?:{names})(?:\.\w+)?)``", r":py:obj:`\1`", inspect.cleandoc(doc)
    )
    doc = str(GoogleDocstring(doc, STYLE))
    body = "\n".join([*fields, "", doc, ""])
    return f".. py:{kind}:: {header}\n" + textwrap.indent(body, "   ") + "\n"


def documented(node: ast.ClassDef) -> list[tuple[ast.AnnAssign, str]]:
    """Fields of a named tuple, and what is written below each."""
    found = []
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            text = after.value if isinstance(after, ast.Expr) else None
            found.append((field, getattr(text, "value", "")))
    return found


def describe(owner: str, name: str, node: ast.stmt, value: object) -> str:
    """Everything that a page says of one name."""
    full = f"{owner}.{name}"
    if isinstance(node, ast.FunctionDef):
        shown = handed_on(value) if node.args.kwarg else {}
        arguments = ", ".join(parameters(node, shown))
        header = f"{full}({arguments}) -> {person(node.returns)}"
        return entry("function", header, ast.get_docstring(node))
    if isinstance(node, ast.ClassDef):
        text = [ast.get_docstring(node)]
        for field, doc in documented(node):
            kind = f":type: {person(field.annotation)}"
            text.append(entry("attribute", field.target.id, doc, kind))
        for call in node.body:
            if isinstance(call, ast.FunctionDef):
                arguments = ", ".join(parameters(call, {}))
                header = f"{call.name}({arguments}) -> {person(call.returns)}"
                text.append(entry("method", header, ast.get_docstring(call)))
        return entry("class", full, "\n\n".join(text))
    return entry("type", full, value, f":canonical: {person(node.value)}")


def write_module(name: str, folder: Path) -> None:
    """Writes the page of one module."""
    module = importlib.import_module(f"lamaml_jax.{name}")
    body = ast.parse(inspect.getsource(module)).body
    owner = module.__name__ if name in lm.__all__ else "lamaml_jax"
    text = [module.__name__, "=" * len(module.__name__), "", module.__doc__, ""]
    public = public_names(module)
    for node, after in zip(body, [*body[1:], None], strict=True):
        if (found := defined_name(node)) in public:
            value = getattr(module, found)
            if isinstance(node, ast.AnnAssign):  # an alias: its docstring follows it
                value = after.value.value
            text.append(describe(owner, found, node, value))
    (folder / f"{name}.rst").write_text("\n".join(text))


def build(target: Path) -> int:
    """Writes all pages, and has Sphinx build them; returns its exit status."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "reference").mkdir()
        for name in MODULES:
            write_module(name, folder / "reference")
        for path in notebooks():
            stage_notebook(path, folder)
        for page in GUIDES:
            stage_guide(page, folder)
        guides = [f"{title} <{staged(page)}>" for page, title in GUIDES.items()]
        books = [str(path.relative_to(ROOT)) for path in notebooks()]
        modules = [f"{name} <reference/{name}>" for name in MODULES]
        parts = {"Guides": guides, "Notebooks": books, "Reference": modules}
        extra = "".join(contents(*part) for part in parts.items())
        stage_guide("README.md", folder, extra)
        # -W: warnings are errors; all of them are shown before the build fails.
        command = ["-W", "-q", "-c", str(HERE), str(folder), str(target)]
        return sphinx_build(command)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build/reference"
    status = build(target)
    if status == 0:
        print(target / "index.html")
    sys.exit(status)
