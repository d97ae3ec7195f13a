"""Load the public names of a package when they are first used, so that importing the package is cheap."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for a package (PEP 562).

    Args:
        package: The package's `__name__`.
        names: Public name -> the module that defines it. A module's own name stands for the module itself.

    Example:
        >>> load, _, public = lazy_exports("dato.utils", {"write_atomic": "dato.utils.files"})
        >>> public, load("write_atomic").__name__
        (['write_atomic'], 'write_atomic')
    """

    def load(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(names[name])
        value = module if names[name] == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted({*vars(sys.modules[package]), *names}), sorted(names)
