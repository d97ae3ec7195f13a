"""A group of commands whose modules are imported when a command runs or its own help is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from dato.cli.console import command_app


class _Loaded(Mapping[str, Any]):
    """Commands by name, each loaded when it is first asked for."""

    def __init__(self, lazy: Mapping[str, tuple[str, str]], there: Mapping[str, Any]) -> None:
        self._lazy, self._there = lazy, dict(there)

    def __getitem__(self, name: str) -> Any:
        if name not in self._there:
            module, _, function = self._lazy[name][0].partition(":")
            command = typer.main.get_command(command_app(getattr(importlib.import_module(module), function)))
            command.name = name
            self._there[name] = command
        return self._there[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._lazy, *self._there]))

    def __len__(self) -> int:
        return len(set(self._lazy) | set(self._there))


class LazyGroup(TyperGroup):
    """A group that has only the names and short helps of its commands, and where their functions are.

    Attributes:
        lazy: Name -> ("module:function", short help).
    """

    lazy: ClassVar[Mapping[str, tuple[str, str]]]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._stubs = {
            **{name: TyperCommand(name, help=help, callback=None) for name, (_, help) in self.lazy.items()},
            **self.commands,
        }
        self.commands = _Loaded(self.lazy, self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the group. It needs only the short help of each command."""
        loaded, self.commands = self.commands, self._stubs
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = loaded
