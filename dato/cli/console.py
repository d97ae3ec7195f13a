"""What every command line shares: the console, the progress bar, and how bad input is reported."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator

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

from dato.errors import DatoError

# Where there is no terminal (a log, a pipe) tables need not be squeezed into its 80 columns.
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)


def progress() -> Progress:
    """A progress bar on standard error, so that standard output can be piped."""
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
    """Show a bar within a `with` block. It yields a function to be called with what is done and what there is to do."""
    with progress() as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _quiet_libraries() -> None:
    # Loading a pipeline otherwise prints bars and notices that bury the command's own output.
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("torchao").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    err.print(f"[yellow]warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


def main(*commands: Callable[..., None]) -> None:
    """Run one command with typer: see `run_app`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    for command in commands:
        app.command()(command)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a command line: bad input (`DatoError`) becomes one line and exit code 2, a warning one line.

    Other exceptions are bugs and keep their traceback.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        _quiet_libraries()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app()
    except DatoError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
