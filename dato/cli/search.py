"""`search_depth`, `search_ratio` and `search_joint`: from a model and prompts to a front on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer

from dato.cli import metric_options as metric
from dato.cli import options as opt
from dato.cli import search_options as given
from dato.cli.console import err, out
from dato.cli.display import display_of
from dato.cli.latency import Latency, mode_of
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation.baselines import all_baselines, fewer_steps, seeds
from dato.evaluation.pool import Facts, Recipe
from dato.front import Front
from dato.generation.guidance import guidance_of
from dato.generation.prompts import read_prompts
from dato.generation.sampling import Sampling
from dato.metrics import METRICS, setup_for
from dato.pruning import Pruning
from dato.report.page import write_page
from dato.report.tables import front_table
from dato.schedule import FORECASTS, Schedule
from dato.search.presets import DEPTH_PRESETS, RATIO_PRESETS, Preset
from dato.search.run import Order, Plan, run
from dato.search.run_folder import Folder
from dato.search.run_record import Run
from dato.search.spaces import DepthSpace, RatioSpace
from dato.strategies import load_front

# Options that say nothing of what is searched, and are not remembered for who resumes.
_PASSING = ("out", "resume", "workers", "ray_address", "quiet", "as_json")


@metric.with_metric_options(before="seed")
def search_depth(
    ctx: typer.Context,
    model: opt.Model = EMBEDDED,
    config: opt.Config = None,
    prompts: given.Prompts = None,
    preset: given.PresetName = "quick",
    depths: given.Depths = None,
    orders: given.Orders = None,
    forecast: given.Forecast = None,
    quality: given.Quality = "psnr",
    min_quality: given.MinQuality = None,
    steps: given.Steps = None,
    reference_steps: given.ReferenceSteps = None,
    scheduler: given.Scheduler = None,
    guidance_scale: given.Guidance = None,
    height: opt.Height = None,
    width: opt.Width = None,
    images: given.Images = None,
    batch_size: given.Batch = 2,
    pop_size: given.PopSize = None,
    generations: given.Generations = None,
    latency: Latency = "auto",
    rounds: given.Rounds = 2,
    race: given.Race = None,
    workers: given.Workers = 1,
    ray_address: given.RayAddress = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    out: given.Out = None,
    resume: given.Resume = None,
    quiet: given.Quiet = False,
    as_json: given.AsJson = False,
) -> None:
    """Search cache-depth schedules: how many steps, and for each UNet call how deep to run; quality against latency.

    With no option at all it searches the embedded model, on a CPU, in minutes.
    """
    _search_calls(ctx, "depth", ratios=None)


@metric.with_metric_options(before="seed")
def search_joint(
    ctx: typer.Context,
    model: opt.Model = EMBEDDED,
    config: opt.Config = None,
    prompts: given.Prompts = None,
    preset: given.PresetName = "quick",
    depths: given.Depths = None,
    orders: given.Orders = None,
    forecast: given.Forecast = None,
    ratios: given.Ratios = None,
    score: given.Score = "sito",
    recover_from: given.RecoverFrom = None,
    max_downsample: given.MaxDownsample = None,
    quality: given.Quality = "psnr",
    min_quality: given.MinQuality = None,
    steps: given.Steps = None,
    reference_steps: given.ReferenceSteps = None,
    scheduler: given.Scheduler = None,
    guidance_scale: given.Guidance = None,
    height: opt.Height = None,
    width: opt.Width = None,
    images: given.Images = None,
    batch_size: given.Batch = 2,
    pop_size: given.PopSize = None,
    generations: given.Generations = None,
    latency: Latency = "auto",
    rounds: given.Rounds = 2,
    race: given.Race = None,
    workers: given.Workers = 1,
    ray_address: given.RayAddress = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    out: given.Out = None,
    resume: given.Resume = None,
    quiet: given.Quiet = False,
    as_json: given.AsJson = False,
) -> None:
    """Search depths and prune ratios together: how many steps, and for each UNet call how deep and with which tokens.

    The papers search depths first, then ratios on top of them (search_depth, search_ratio). Here one search weighs
    a call that is shallow against one that is pruned.
    """
    _search_calls(ctx, "joint", ratios=ratios)


@metric.with_metric_options(before="seed")
def search_ratio(
    ctx: typer.Context,
    depths: Annotated[
        str | None,
        typer.Option(
            help=f"The front to build on: {opt.STRATEGY}.",
            show_default="the newest runs/depth-*/pareto.json",
        ),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            help="Build on one point of it, as in the paper: knee, speedup=NUMBER or quality=NUMBER.",
            show_default="all its points at once",
        ),
    ] = None,
    preset: given.PresetName = "quick",
    ratios: given.Ratios = None,
    score: given.Score = "sito",
    recover_from: given.RecoverFrom = None,
    max_downsample: given.MaxDownsample = None,
    quality: Annotated[str | None, typer.Option(help="Objective beside latency.", show_default="the front's")] = None,
    min_quality: given.MinQuality = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt a line.", show_default="the front's own prompts")
    ] = None,
    model: opt.Model = None,
    config: opt.Config = None,
    images: given.Images = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per generation.", show_default="the front's")
    ] = None,
    pop_size: given.PopSize = None,
    generations: given.Generations = None,
    latency: Latency = "auto",
    rounds: given.Rounds = 2,
    race: given.Race = None,
    workers: given.Workers = 1,
    ray_address: given.RayAddress = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or auto.", show_default="the front's")
    ] = None,
    out: given.Out = None,
    resume: given.Resume = None,
    quiet: given.Quiet = False,
    as_json: given.AsJson = False,
) -> None:
    """Search prune ratios on top of a front of cache-depth schedules: for each call the share of tokens to leave out.

    Model, prompts, sampler, steps, guidance and size are those of the front.
    """
    o = SimpleNamespace(**ctx.params)
    source = str(_newest_run()) if o.depths is None else o.depths
    if Path(source).exists():
        source = str(Path(source).resolve())
    ctx.params["depths"] = source
    base = load_front(source)
    found = base.conditions
    points = base.points if o.pick is None else (opt.pick_point(base, o.pick),)
    reference = found.get("steps", max(RATIO_PRESETS["quick"].steps))
    chosen = _preset(
        RATIO_PRESETS,
        o.preset,
        steps=tuple(sorted({point.steps or reference for point in points})),
        guidance_scale=found.get("guidance_scale"),
        images=o.images,
        pop_size=o.pop_size,
        generations=o.generations,
        race=o.race,
    )
    _finite("--min-quality", o.min_quality)
    alphabet = opt.numbers("--ratios", o.ratios, float) or list(chosen.alphabet)
    pruning = _pruning(o, chosen)
    space = RatioSpace([point.schedule for point in points], alphabet, pruning)
    name = o.model or found.get("model", EMBEDDED)
    if o.config is None and name == opt.model_place(found.get("model")):
        o.config = found.get("config")
    texts = _prompts_of(found, o.prompts, name, chosen.images)
    timing = mode_of(o.latency, _device(o))
    folder = _folder(o, "ratio")
    size = found.get("height"), found.get("width")
    sampling = Sampling(reference, chosen.guidance_scale, *size, o.seed, o.batch_size or found.get("batch_size", 2))
    sampler, objective = found.get("scheduler_name"), o.quality or found["quality"]
    files = metric.files_of(ctx.params, found)
    recipe = _recipe(
        o, name, texts, chosen, sampling, sampler, objective, o.dtype, timing, files, found.get("dtype", "auto")
    )

    def plan(facts: Facts) -> Plan:
        for point in points:
            if facts.steps_of.get(len(point.schedule)) != (point.steps or reference) or facts.rungs != base.rungs:
                raise DatoError(
                    f"{source} has a schedule of {len(point.schedule)} calls and {base.rungs} rungs for "
                    f"{point.steps or reference} steps, and this model makes {sorted(facts.steps_of)} calls and has "
                    f"{facts.rungs} rungs; search its depths first"
                )
        known = all_baselines(facts.steps_of, facts.calls, facts.rungs)
        most = space.ratios[-1]
        known[f"all whole, ratio {most:g}"] = Schedule.full(facts.calls, rungs=base.rungs).with_ratios(most)
        content = json.dumps([point.schedule.to_dict() for point in points])
        settings = {
            "preset": o.preset,
            "ratios": space.ratios,
            "depths": source,
            "depths_sha256": hashlib.sha256(content.encode()).hexdigest(),
            "pick": o.pick,
        }
        return Plan(space, _with_pruning(known, pruning), [], pruning, settings)

    front = _run(ctx, o, "ratio", folder, recipe, chosen, plan, timing, files)
    _finish(o, front, folder, [])


def _search_calls(ctx: typer.Context, kind: str, ratios: str | None) -> None:
    """Search over lengths and depths and, where `kind` is "joint", ratios."""
    o = SimpleNamespace(**ctx.params)
    chosen = _preset(
        DEPTH_PRESETS,
        o.preset,
        steps=opt.whole_numbers("--steps", o.steps),
        orders=opt.whole_numbers("--orders", o.orders),
        forecast=o.forecast,
        guidance_scale=o.guidance_scale,
        images=o.images,
        pop_size=o.pop_size,
        generations=o.generations,
        race=o.race,
    )
    if chosen.forecast not in FORECASTS:
        raise DatoError(f"--forecast {chosen.forecast!r}: known are {', '.join(FORECASTS)}")
    alphabet = opt.numbers("--depths", o.depths, int) or [int(d) for d in chosen.alphabet]
    joint = kind == "joint"
    shares = opt.numbers("--ratios", ratios, float) or (list(RATIO_PRESETS[o.preset].alphabet) if joint else [0.0])
    if o.model != EMBEDDED and o.prompts is None:
        raise DatoError(f"give --prompts FILE for {o.model}: the prompts that are built in are {EMBEDDED}'s")
    _finite("--min-quality", o.min_quality)
    _finite("--guidance-scale", o.guidance_scale)
    if o.guidance_scale is None and o.model != EMBEDDED:
        chosen = replace(chosen, guidance_scale=guidance_of(o.model))
    texts = read_prompts(o.prompts, chosen.images)
    pruning = _pruning(o, chosen) if joint else Pruning()
    timing = mode_of(o.latency, _device(o))
    folder = _folder(o, kind)
    size = o.height, o.width
    sampling = Sampling(o.reference_steps or max(chosen.steps), chosen.guidance_scale, *size, o.seed, o.batch_size)
    scheduler = o.scheduler or (chosen.scheduler if o.model == EMBEDDED else None)
    files = metric.files_of(ctx.params)
    recipe = _recipe(o, o.model, texts, chosen, sampling, scheduler, o.quality, o.dtype, timing, files)

    def plan(facts: Facts) -> Plan:
        lengths = [facts.calls_of[count] for count in chosen.steps]
        space = DepthSpace(lengths, facts.rungs, alphabet, chosen.orders, chosen.forecast, shares, pruning)
        known = all_baselines(facts.steps_of, facts.calls, facts.rungs)
        regular = seeds(lengths, facts.rungs, chosen.orders, chosen.forecast, chosen.pop_size // len(space.kinds))
        settings = {
            "preset": o.preset,
            "depths": space.depths,
            **({"ratios": space.ratios} if joint else {}),
            "orders": list(chosen.orders),
            "forecast": chosen.forecast,
            "steps": list(chosen.steps),
        }
        return Plan(space, _with_pruning(known, pruning), space.also_pruned(regular), pruning, settings)

    front = _run(ctx, o, kind, folder, recipe, chosen, plan, timing, files)
    more = [] if joint else [opt.command_line("search ratio", "--depths", str(folder.front))]
    _finish(o, front, folder, more)


def _finite(option: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise DatoError(f"{option} {value}: give a finite number")


def _device(o: SimpleNamespace) -> torch.device:
    return opt.device_of(o.device, elsewhere=o.ray_address is not None)


def _folder(o: SimpleNamespace, kind: str) -> Folder:
    """The folder to write to: the one that is gone on with, or a new one."""
    if o.resume is None:
        return Folder(opt.new_folder(None if o.out is None else Path(o.out), kind))
    if o.out is not None:
        raise DatoError("--resume goes on in its own folder: leave out --out")
    return Folder(Path(o.resume))


def _pruning(o: SimpleNamespace, chosen: Preset) -> Pruning:
    """How ratios are meant. In the papers every block chooses its own tokens, and pruned ones get another's output."""
    papers = o.preset == "paper"
    score = Pruning(score=o.score).base_score
    return Pruning(
        score=o.score,
        max_downsample=o.max_downsample,
        shared=not papers,
        recover_from=o.recover_from or ("base" if papers else "past"),
        # Nearly the same tokens for less; scores that go by no patch have no neighbours.
        similarity="global" if papers or not score.by_patch else "local",
        # Where chance decides, the halves of guidance must not choose differently.
        align_cfg=not papers and score.align_cfg and chosen.guidance_scale > 1,
    )


def _with_pruning(known: Mapping[str, Schedule], pruning: Pruning) -> dict[str, Schedule]:
    """References as schedules of a front whose ratios are meant so."""
    return {name: replace(schedule, pruning=pruning) for name, schedule in known.items()}


def _recipe(
    o: SimpleNamespace,
    model: str,
    texts: list[str],
    preset: Preset,
    sampling: Sampling,
    scheduler: str | None,
    quality: str,
    dtype: str | None,
    timing: str,
    files: Mapping[str, str],
    dtype_of_front: str = "auto",
) -> Recipe:
    where = _device(o)
    # Of another model only fidelity is free; CLIP is loaded where it is asked for.
    recorded = ["psnr", "ssim"] + (["clip-score"] if model == EMBEDDED or "clip" in files else [])
    if quality not in METRICS:
        raise DatoError(f"unknown quality metric {quality!r}; known are {', '.join(METRICS)}")
    return Recipe(
        model,
        str(where),
        opt.dtype_name(dtype, where, dtype_of_front),
        scheduler,
        tuple(texts),
        sampling,
        (*preset.steps, *fewer_steps(sampling.steps)),
        tuple(dict.fromkeys([quality, *recorded])),
        setup_for(model, files),
        preset.race or None,
        timing == "measured",
        o.config,
    )


def _run(
    ctx: typer.Context,
    o: SimpleNamespace,
    kind: str,
    folder: Folder,
    recipe: Recipe,
    preset: Preset,
    plan: Callable[[Facts], Plan],
    timing: str,
    files: Mapping[str, str],
) -> Front:
    order = Order(
        kind,
        folder,
        _kept(ctx.params),
        recipe,
        preset,
        plan,
        timing,
        o.seed,
        opt.floor_of(recipe.metrics[0], o.min_quality),
        o.min_quality,
        o.rounds,
        o.workers,
        o.ray_address,
        files,
    )
    resume = opt.command_line(f"search {kind}", "--resume", str(folder.path))
    try:
        front, finished = run(order, display_of(recipe.metrics[0], o.quiet, o.as_json))
    except KeyboardInterrupt:
        front, finished = None, False
    if finished:
        return front
    if o.as_json:
        path = None if front is None else str(folder.front)
        print(json.dumps({"event": "stopped", "path": path, "resume": resume}))
    else:
        so_far = "" if front is None else f" {folder.front} is the front so far."
        err.print(f"Stopped early.{so_far} Go on with: {resume}", soft_wrap=True, markup=False, highlight=False)
    raise typer.Exit(130)


def _kept(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a journal keeps them; files by their whole path, so that they are found from anywhere."""
    paths = {name: str(value.resolve()) for name, value in parameters.items() if isinstance(value, Path)}
    return {name: paths.get(name, value) for name, value in parameters.items() if name not in _PASSING}


def _preset(presets: dict[str, Preset], name: str, **changes: Any) -> Preset:
    if name not in presets:
        raise DatoError(f"--preset {name!r}: known are {', '.join(presets)}")
    return replace(presets[name], **{key: value for key, value in changes.items() if value is not None})


def _newest_run() -> Path:
    runs = sorted(Path("runs").glob("depth-*/pareto.json"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise DatoError("no runs/depth-*/pareto.json here: run search/search_depth.py first, or give --depths FRONT")
    err.print(f"Building on {runs[-1]}", highlight=False)
    return runs[-1]


def _prompts_of(conditions: Mapping[str, Any], prompts: Path | None, model: str, count: int) -> list[str]:
    """The prompts to search ratios with: given ones, else the front's, else the embedded model's."""
    known = conditions.get("prompts", [])
    if prompts is None and len(known) >= count:
        return known[:count]
    if prompts is None and model != EMBEDDED:
        raise DatoError(f"the front has {len(known)} prompts and the preset wants {count}: give --prompts or --images")
    return read_prompts(prompts, count)


def _finish(o: SimpleNamespace, front: Front, folder: Folder, more: list[str]) -> None:
    path = folder.front
    write_page([Run.load(folder.path)], folder.report)
    if o.as_json:
        print(json.dumps({"event": "front", "path": str(path), "points": [p.to_dict() for p in front.points]}))
        return
    if o.quiet:
        print(path)
        return
    out.print(front_table(front))
    out.print(f"\n{len(front)} points written to {path}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"A page to choose from: {folder.report}. Next:", highlight=False, markup=False, soft_wrap=True)
    fastest = max(point.speedup for point in front.points)
    speedup = 3 if fastest >= 3 else int(fastest * 10) / 10
    prompt = front.conditions["prompts"][0]
    draw = opt.command_line("generate", "--strategy", str(path), "--pick", f"speedup={speedup:g}", prompt)
    for command in [*more, draw]:
        out.print(f"  {command}", highlight=False, soft_wrap=True, markup=False)
