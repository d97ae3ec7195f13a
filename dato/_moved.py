"""Old imports that the documentation used to show. They still work, with a warning that names the new place."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> its public names -> (new module, new name).
MOVED = {
    "dato.sampling": {
        "load_pipeline": ("dato.generation", "load_pipeline"),
        "read_prompts": ("dato.generation", "read_prompts"),
        "generate": ("dato.generation", "generate"),
        "Sampling": ("dato.generation", "Sampling"),
        "Generated": ("dato.generation", "Generated"),
    },
    "dato.steps": {"Steps": ("dato.unet", "CompiledCalls")},
    "dato.ladder": {"Ladder": ("dato.unet", "Ladder")},
}
# `import dato` used to import these modules, so "dato.steps.Steps" worked without an import of its own.
ATTRIBUTES = {name.removeprefix("dato."): name for name in MOVED}


class MovedModules:
    """An entry of `sys.meta_path` that finds the old modules and makes a stand-in for each."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Return a spec for an old module, None for every other."""
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return None: Python makes an ordinary module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Have the module look up its names at their new places."""
        old = module.__name__

        def look_up(name: str) -> Any:
            if name not in MOVED[old]:
                raise AttributeError(f"module {old!r} has no attribute {name!r}")
            place, new = MOVED[old][name]
            warnings.warn(f"{old}.{name} has moved: use {place}.{new}", DeprecationWarning, stacklevel=2)
            return getattr(importlib.import_module(place), new)

        module.__getattr__ = look_up


def install() -> None:
    """Make imports of the old modules work, such as `import dato.sampling`."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
