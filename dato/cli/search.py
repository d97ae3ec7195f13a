"""`search_depth`, `search_ratio` and `search_joint`: from a model and prompts to a front on disk."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dato.cli import options as opt
from dato.cli.console import err, out, quiet_libraries
from dato.cli.metric_options import real_pictures_of
from dato.cli.search_options import CommandOptions, RatioCommandOptions, command_of
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.front import Front
from dato.search.options import DepthSearch, JointSearch, RatioSearch
from dato.search.run_folder import Folder, Run
from dato.strategies import load_front

if TYPE_CHECKING:
    from dato.search.prepare import PreparedSearch


def _search_depth(options: DepthSearch, where: CommandOptions, remembered: dict[str, Any]) -> None:
    """Search cache-depth schedules: how many steps, and for each UNet call how deep to run; quality against latency.

    With no option at all it searches the embedded model, on a CPU, in minutes.
    """
    folder, front = _search_calls("depth", options, where, remembered)
    _finish(where, front, folder, [opt.command_line("search ratio", "--depths", str(folder.front))])


def _search_joint(options: JointSearch, where: CommandOptions, remembered: dict[str, Any]) -> None:
    """Search depths and prune ratios together: how many steps, and for each UNet call how deep and with which tokens.

    The papers search depths first, then ratios on top of them (search_depth, search_ratio). Here one search weighs
    a call that is shallow against one that is pruned.
    """
    folder, front = _search_calls("joint", options, where, remembered)
    _finish(where, front, folder, [])


def _search_ratio(options: RatioSearch, where: RatioCommandOptions, remembered: dict[str, Any]) -> None:
    """Search prune ratios on top of a front of cache-depth schedules: for each call the share of tokens to leave out.

    Model, prompts, sampler, steps, guidance and size are those of the front.
    """
    from dato.search.prepare import Subject, prepare_ratios, ratio_bases, ratio_preset

    source = str(_newest_run()) if where.depths is None else where.depths
    if Path(source).exists():
        source = str(Path(source).resolve())
    front = load_front(source)
    conditions = front.conditions
    bases = ratio_bases(options, front, source)
    preset = ratio_preset(options, bases, conditions)
    model, loading, _ = opt.model_of(where.model, where.config, where.variant, conditions)
    prompts = _prompts_of(conditions, where.prompts, model, preset.images)
    device = opt.device_of(where.device, elsewhere=where.ray_address is not None)
    dtype = opt.dtype_name(where.dtype, device, conditions.get("dtype", "auto"))
    subject = Subject(model, str(device), dtype, conditions.get("scheduler_name"), **loading)
    prepared = prepare_ratios(options, subject, preset, prompts, bases, conditions)
    folder = _folder(where, "ratio")
    front = _run(prepared, folder, {**remembered, "depths": source}, where)
    _finish(where, front, folder, [])


search_depth = command_of(_search_depth, "search_depth", DepthSearch)
search_joint = command_of(_search_joint, "search_joint", JointSearch)
search_ratio = command_of(_search_ratio, "search_ratio", RatioSearch, RatioCommandOptions)


def _search_calls(
    kind: str, options: DepthSearch | JointSearch, where: CommandOptions, remembered: dict[str, Any]
) -> tuple[Folder, Front]:
    """Search over lengths and depths and, for "joint", ratios."""
    from dato.generation.guidance import guidance_of
    from dato.generation.prompts import read_prompts, split_prompts
    from dato.search.prepare import Subject, prepare_calls

    if where.model != EMBEDDED and where.prompts is None:
        raise DatoError(f"give --prompts FILE for {where.model}: the prompts that are built in are {EMBEDDED}'s")
    preset = options.settings()
    as_preset = where.model == EMBEDDED or preset.for_all_models
    if options.guidance_scale is None and not as_preset:
        preset = replace(preset, guidance_scale=guidance_of(where.model))
    available = read_prompts(where.prompts)
    asked = options.images is not None or getattr(options, "validation", None) is not None
    different = set(available) if preset.validation else available
    if (asked or not preset.validation) and preset.images + preset.validation > len(different):
        by = f" and {preset.validation} to validate by" if preset.validation else ""
        raise DatoError(
            f"{preset.images} prompts to search with{by} are asked for, and there are {len(different)}: "
            "ask for fewer, or add prompts"
        )
    split = {"seed": options.seed, "order": where.prompts_order}
    prompts, validation = split_prompts(available, preset.images, preset.validation, **split)
    device = opt.device_of(where.device, elsewhere=where.ray_address is not None)
    scheduler = options.scheduler or (preset.scheduler if as_preset else None)
    dtype = opt.dtype_name(where.dtype, device)
    subject = Subject(where.model, str(device), dtype, scheduler, where.config, where.variant)
    preset = replace(preset, images=len(prompts), validation=len(validation))
    prepared = prepare_calls(options, subject, preset, prompts, validation)
    folder = _folder(where, kind)
    return folder, _run(prepared, folder, remembered, where)


def _folder(where: CommandOptions, kind: str) -> Folder:
    """Return the folder to write to: that of the search to go on with, or a new one."""
    if where.resume is None:
        return Folder(opt.new_folder(where.out, kind))
    if where.out is not None:
        raise DatoError("--resume goes on in its own folder: leave out --out")
    return Folder(where.resume)


def _run(prepared: PreparedSearch, folder: Folder, remembered: Mapping[str, Any], where: CommandOptions) -> Front:
    """Run a search and return its front. If it is stopped, say how to go on and exit."""
    from dato.cli.display import display_of
    from dato.evaluation.ray_pool import make_pool
    from dato.search.run import run

    quiet_libraries()
    display = display_of(prepared.recipe.metrics[0], where.quiet, where.as_json)
    if (pictures := real_pictures_of(prepared.recipe.metrics, prepared.recipe.setup.options)) is not None:
        display.note(pictures)
    front = None
    try:
        with contextlib.ExitStack() as stack:
            with display.status(f"Loading {prepared.recipe.model}"):
                pool = make_pool(prepared.recipe, where.workers, where.ray_address)
                stack.callback(pool.close)
            front = run(prepared, pool, folder, remembered, display)
    except KeyboardInterrupt:
        pass
    if front is not None and front.conditions["search"]["finished"]:
        return front
    resume = opt.command_line(f"search {prepared.kind}", "--resume", str(folder.path))
    if where.as_json:
        path = None if front is None else str(folder.front)
        print(json.dumps({"event": "stopped", "path": path, "resume": resume}))
    else:
        so_far = "" if front is None else f" {folder.front} is the front so far."
        err.print(f"Stopped early.{so_far} Go on with: {resume}", soft_wrap=True, markup=False, highlight=False)
    raise typer.Exit(130)


def _newest_run() -> Path:
    runs = sorted(Path("runs").glob("depth-*/pareto.json"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise DatoError("no runs/depth-*/pareto.json here: run search/search_depth.py first, or give --depths FRONT")
    err.print(f"Building on {runs[-1]}", highlight=False)
    return runs[-1]


def _prompts_of(conditions: Mapping[str, Any], prompts: Path | None, model: str, count: int) -> list[str]:
    """Return the prompts to search ratios with: given ones, else the front's, else the embedded model's."""
    from dato.generation.prompts import read_prompts

    of_front = conditions.get("prompts", [])
    if prompts is None and len(of_front) >= count:
        return of_front[:count]
    if prompts is None and model != EMBEDDED:
        raise DatoError(
            f"the front has {len(of_front)} prompts and the preset needs {count}: give --prompts or --images"
        )
    return read_prompts(prompts, count)


def _finish(where: CommandOptions, front: Front, folder: Folder, more: list[str]) -> None:
    """Write the report, and print the front and what to do next."""
    from dato.report.page import write_page
    from dato.report.tables import front_table

    path = folder.front
    write_page([Run.load(folder.path)], folder.report)
    if where.as_json:
        print(json.dumps({"event": "front", "path": str(path), "points": [p.to_dict() for p in front.points]}))
        return
    if where.quiet:
        print(path)
        return
    out.print(front_table(front))
    out.print(f"\n{len(front)} points written to {path}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"Choose a point on this page: {folder.report}. Next:", highlight=False, markup=False, soft_wrap=True)
    fastest = max(point.speedup for point in front.points)
    speedup = 3 if fastest >= 3 else int(fastest * 10) / 10
    prompt = front.conditions["prompts"][0]
    draw = opt.command_line("generate", "--strategy", str(path), "--pick", f"speedup={speedup:g}", prompt)
    for command in [*more, draw]:
        out.print(f"  {command}", highlight=False, soft_wrap=True, markup=False)
