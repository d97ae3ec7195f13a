"""The parameters of the searches' commands: those of `dato.search.options`, and where and how a command runs."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from dato.cli import options as opt
from dato.cli.console import flag_of
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.search.journal import check_header, read_entries
from dato.search.options import SearchOptions, annotations
from dato.search.run_folder import Folder

S = TypeVar("S", bound=SearchOptions)
# These do not change what is searched, so a journal does not store them.
_PASSING = ("out", "resume", "workers", "ray_address", "quiet", "as_json")
# In a command's help these come before the options of the search.
_FIRST = ("depths", "model", "config", "variant", "prompts", "prompts_order")
# Defaults that commands have and functions do not.
_SHOWN = {"scheduler": "the model's own; on emoji-sd dpm++2m; with --preset paper plms"}
# What searches of earlier versions did, where their journals do not say it.
_BEFORE = {"preset": "quick", "prompts_order": "given"}


def take_up(ctx: typer.Context, folder: Path | None) -> Path | None:
    """Make the options that a journal stores the defaults of this command line."""
    if folder is None:
        return None
    path = Folder(folder).journal
    entries, _ = read_entries(path)
    check_header(entries[0] if entries else None, path)
    kind = entries[0]["command"]
    if f"search {kind}" not in opt.SCRIPTS:
        raise DatoError(f"{path} is the journal of {kind!r}, which is not a search that can be resumed")
    if "pipeline_sha256" in entries[0]["settings"]:
        raise DatoError(
            f"{folder} holds a search that was begun in Python: go on with search_{kind}(..., out={folder})"
        )
    if f"search_{kind}" != ctx.command.callback.__name__:
        raise DatoError(f"{folder} holds a search of {kind}: go on with {opt.command_line(f'search {kind}')}")
    ctx.default_map = _BEFORE | {k: v for k, v in entries[0]["options"].items() if v is not None}
    return folder


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """Where and how a search's command runs."""

    model: opt.Model = EMBEDDED
    config: opt.Config = None
    variant: opt.Variant = None
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one prompt a line.", show_default="the embedded model's search split"),
    ] = None
    prompts_order: Annotated[
        str,
        typer.Option(help="drawn: prompts are drawn from all by the seed; given: the first ones, as they stand."),
    ] = "drawn"
    workers: Annotated[
        int,
        typer.Option(min=1, help="GPUs (or shares of a CPU) that judge candidates at the same time; above 1 with Ray."),
    ] = 1
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster, as auto or ray://host:10001; --device auto is a GPU there.")
    ] = None
    device: opt.Device = "auto"
    dtype: opt.Dtype = "auto"
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; pareto.json goes there.", show_default="runs/<kind>-<time>")
    ] = None
    resume: Annotated[
        Path | None,
        typer.Option(
            is_eager=True,
            callback=take_up,
            help="Go on with the search of this folder, with its options: what its journal holds is not generated "
            "again.",
        ),
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the path of the front and nothing else.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print what happens as JSON, one object a line.")] = False


@dataclass(frozen=True, kw_only=True)
class RatioCommandOptions(CommandOptions):
    """The same for a search of ratios. Options that are not given are as in the front."""

    depths: Annotated[
        str | None,
        typer.Option(
            help=f"The front to build on: {opt.STRATEGY}.", show_default="the newest runs/depth-*/pareto.json"
        ),
    ] = None
    model: opt.Model = None
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt a line.", show_default="the front's own prompts")
    ] = None
    dtype: opt.FrontDtype = None


def command_of(
    body: Callable[[Any, Any, dict[str, Any]], None],
    name: str,
    options: type[SearchOptions],
    where: type[CommandOptions] = CommandOptions,
) -> Callable[..., None]:
    """Return the function of a search's command.

    Args:
        body: Called with the search's options, the command's, and those that a journal stores. Its docstring is the
            command's help.
        name: The function's, as "search_depth".
        options: The search's options.
        where: The command's.
    """

    def command(ctx: typer.Context, **values: Any) -> None:
        own = {field.name: values[field.name] for field in fields(where)}
        body(_parsed(options, values), where(**own), _remembered(ctx.params))

    of_search = opt.parameters_of(options, _SHOWN)
    known = {parameter.name for parameter in of_search}
    others = [parameter for parameter in _command_parameters(where) if parameter.name not in known]
    parameters = [_context(), *_in_order(of_search, others)]
    command.__name__ = command.__qualname__ = name
    command.__doc__ = body.__doc__
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _context() -> inspect.Parameter:
    return inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def _command_parameters(where: type[CommandOptions]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(where, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(where)
    ]


def _in_order(options: list[inspect.Parameter], where: list[inspect.Parameter]) -> list[inspect.Parameter]:
    first = sorted((p for p in where if p.name in _FIRST), key=lambda p: _FIRST.index(p.name))
    return [*first, *options, *(p for p in where if p.name not in _FIRST)]


def _numbers(hint: Any) -> type | None:
    """Return the type of the numbers in a list of them, None for another type."""
    for kind in typing.get_args(hint):
        if typing.get_origin(kind) is Sequence:
            return typing.get_args(kind)[0]
    return None


def _parsed(options: type[S], values: Mapping[str, Any]) -> S:
    """Return a search's options from what the user typed."""
    parsed = {}
    for name, hint in annotations(options).items():
        kind = _numbers(hint)
        if opt.is_mapping(hint):
            parsed[name] = opt.settings(flag_of(name), values[name])
        else:
            parsed[name] = values[name] if kind is None else opt.numbers(flag_of(name), values[name], kind)
    return options(**parsed)


def _remembered(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as a journal stores them: files with their whole path, so that they are found from any folder."""
    paths = {name: str(value.resolve()) for name, value in values.items() if isinstance(value, Path)}
    return {name: paths.get(name, value) for name, value in values.items() if name not in _PASSING}
