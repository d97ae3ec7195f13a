"""The options of the quality metrics, made from what the metrics declare (`dato.metrics.OPTIONS`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dato.cli.options import parameters_of
from dato.metrics import METRICS, OPTIONS
from dato.metrics.fid import REAL
from dato.search.options import MetricOptions


def with_metric_options(before: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the metrics' options. Their values are in `ctx.params` only.

    Args:
        before: A parameter of the command. The help lists the options before it.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = list(signature.parameters.values())
        position = list(signature.parameters).index(before)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        options = [parameter.replace(kind=kind) for parameter in parameters_of(MetricOptions)]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(**{name: value for name, value in values.items() if name not in OPTIONS})

        parameters[position:position] = options
        run.__signature__ = signature.replace(parameters=parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def files_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Return those of the metrics' options that were given on the command line."""
    return {name: options[name] for name in OPTIONS if options.get(name) is not None}


def real_pictures_of(metrics: Sequence[str], files: Mapping[str, Any]) -> str | None:
    """Return a sentence on how many real pictures these metrics compare with. None if they read no folder of them.

    Raises:
        DatoError: if the folder has no pictures.
    """
    names = [name for name in metrics if REAL in METRICS[name].options]
    folder = Path(files.get(REAL.name, ""))
    if not names or REAL.name not in files or not folder.is_dir():
        return None
    from dato.metrics.real_pictures import pictures_in

    count = len(pictures_in(folder))
    others = sum(1 for _ in folder.iterdir()) - count
    more = f" ({others} other {'entry' if others == 1 else 'entries'} of the folder not read)" if others else ""
    return f"{' and '.join(names)}: compared with {count} picture{'' if count == 1 else 's'} in {folder}{more}"
