"""What every command line shares: the console, the progress bar, and how bad input is reported."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperCommand

from dato.cli.plain_output import use_plain_output
from dato.errors import DatoError

# Where there is no terminal (a log, a pipe) tables need not be squeezed into its 80 columns.
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)


def progress() -> Progress:
    """Return a progress bar on standard error, so that standard output can be piped."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
    )


@contextlib.contextmanager
def show_progress(description: str) -> Iterator[Callable[[float, float], None]]:
    """Show a bar within a `with` block. It yields a function of the work done and the whole work."""
    with progress() as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def quiet_libraries() -> None:
    """Silence the bars and notices of the libraries that are imported. They would bury the command's own output."""
    for name in ("diffusers", "transformers"):
        if name in sys.modules:
            library = sys.modules[name]
            library.utils.logging.disable_progress_bar()
            library.utils.logging.set_verbosity_error()
    logging.getLogger("torchao").setLevel(logging.ERROR)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    err.print(f"[yellow]warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """Replace names of arguments in backticks (`pop_size`) by a command's flags (--pop-size)."""
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), text)


def flag_of(name: str) -> str:
    """Return the flag of an option by the name of its argument."""
    return f"--{name.replace('_', '-')}"


class DatoCommand(TyperCommand):
    """A command. Its errors name the options as the user types them. The libraries that it imports are quiet."""

    @property
    def flags(self) -> dict[str, str]:
        """The flags, by the names of arguments and by the flags' own names."""
        options = [option for option in self.params if option.param_type_name == "option"]
        flags = {flag.lstrip("-").replace("-", "_"): flag for option in options for flag in option.opts}
        return flags | {option.name: option.opts[0] for option in options}

    @contextlib.contextmanager
    def _flags_in_errors(self) -> Iterator[None]:
        try:
            yield
        except DatoError as error:
            raise DatoError(with_flags(str(error), self.flags)) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `TyperCommand`."""
        with self._flags_in_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """See `TyperCommand`."""
        quiet_libraries()
        with self._flags_in_errors():
            return super().invoke(ctx)


def command_app(*commands: Callable[..., None]) -> typer.Typer:
    """Return a command line of these commands; one alone needs no name."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    for command in commands:
        app.command(cls=DatoCommand)(command)
    return app


def main(*commands: Callable[..., None]) -> None:
    """Run one command: see `run_app`."""
    run_app(command_app(*commands))


def run_app(app: typer.Typer) -> None:
    """Run a command line: bad input (`DatoError`) becomes one line and exit code 2, a warning one line.

    Other exceptions are bugs and keep their traceback.
    """
    use_plain_output()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Libraries read these variables when they are imported.
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.showwarning = _show_warning
            app()
    except DatoError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
