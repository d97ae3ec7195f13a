"""The options of the quality metrics, made from what the metrics declare (`dato.metrics.OPTIONS`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from dato.cli.options import given_place
from dato.metrics import OPTIONS, Option


def with_metric_options(before: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the metrics' options. Their values are in `ctx.params` only.

    Args:
        before: The parameter of the command before which the options stand in its help.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = list(signature.parameters.values())
        position = list(signature.parameters).index(before)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        options = [inspect.Parameter(n, kind, default=None, annotation=_typer(o)) for n, o in OPTIONS.items()]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(**{name: value for name, value in values.items() if name not in OPTIONS})

        parameters[position:position] = options
        run.__signature__ = signature.replace(parameters=parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def files_of(options: Mapping[str, Any], front: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the metrics' options that were given on the command line, else in a front's conditions."""
    values = {name: options.get(name) or (front or {}).get(name) for name in OPTIONS}
    return {name: value for name, value in values.items() if value is not None}


def _typer(option: Option) -> Any:
    callback = given_place if option.is_path else None
    shown = option.shown_default or option.default or True  # True: as typer shows it
    return Annotated[str | None, typer.Option(help=option.help, callback=callback, show_default=shown)]
