"""A person's own file, imported before a command looks names up."""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from experiments.support.errors import UserError


def load(texts: Iterable[str]) -> None:
    """Imports files or modules, which register what they add.

    Args:
        texts: each a path of a Python file, or a module's name, which is also looked
            for in the working directory. One that is imported already is left as it is.

    Raises:
        UserError: there is none, or it raises an error; the message has its place.
    """
    for text in texts:
        try:
            _load(text)
        except UserError as error:
            raise UserError(f"--plugin {text}: {error}") from error
        except Exception as error:  # whatever a person's own code raises
            raise UserError(f"--plugin {text}: {_place(error)}") from error


def _load(text: str) -> ModuleType:
    path = Path(text)
    if path.suffix == ".py" or path.is_file():
        if not path.is_file():
            raise UserError("no such file")
        return _load_file(path.resolve())
    here = os.getcwd()
    if not {here, ""} & set(sys.path):
        sys.path.append(here)  # last, so that it hides nothing
    return importlib.import_module(text)


def _load_file(path: Path) -> ModuleType:
    """Imports a file under its own name, or a longer one if that is a module's."""
    for found in list(sys.modules.values()):
        if getattr(found, "__file__", None) == str(path):
            return found
    name = path.stem.replace(".", "_")
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        name += f"_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError("expected a Python file or the name of a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as an import does: dataclasses look themselves up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _place(error: Exception) -> str:
    """Says what was raised, and in which line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f for f in frames if f.filename != __file__ and "importlib" not in f.filename
    ]
    where = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
    return f"{where}{type(error).__name__}: {error}"
