"""One package under two names: ``experiments`` in a checkout, its own once installed.

``experiments`` is what a person's own project may well be called, so that an installed
copy is named ``lamaml_experiments``. Its modules import each other under the short
name, which is therefore given to the package within a process that imports it, and each
module exists once, whichever of the two names it is asked for by. In a checkout the
long name is given likewise, so that a person's own file can always use that one.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SHORT, LONG = "experiments", "lamaml_experiments"


class _SameModules(MetaPathFinder, Loader):
    """Finds what is below the long name below the short one."""

    def __init__(self) -> None:
        """Begins with nothing found."""
        self._specs: dict[str, Any] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Finds a module of this package; ``__main__`` is run, not imported."""
        del path, target
        package, _, module = fullname.partition(".")
        if package != LONG or module in ("", "__main__"):
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Imports the module by its short name."""
        module = importlib.import_module(SHORT + spec.name.removeprefix(LONG))
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leaves a module that was executed as it is, with its own spec."""
        spec = module.__spec__
        if spec is not None:
            module.__spec__ = self._specs.pop(spec.name)


def share(package: ModuleType) -> None:
    """Makes a package known by both names.

    Args:
        package: this one, as it was imported, by either name.

    Raises:
        ImportError: another package of the other name is imported already.
    """
    for name in (SHORT, LONG):
        if sys.modules.setdefault(name, package) is not package:
            raise ImportError(
                f"{package.__name__}: is known as {name!r} too, and another package of "
                "that name is imported already; import the two in two processes"
            )
    sys.meta_path.insert(0, _SameModules())


def command() -> list[str]:
    """Words that start this program again, as it was started."""
    if sys.modules[SHORT].__name__ == SHORT:
        return ["python", "-m", SHORT]
    return ["lamaml"]
