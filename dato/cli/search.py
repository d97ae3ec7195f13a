"""`search_depth` and `search_ratio`: from a model and prompts to a front on disk."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dato import emoji_sd
from dato.cli import options as opt
from dato.cli.latency import Latency, check_of, mode_of, use_latency
from dato.console import err, out, progress
from dato.environment import hardware, versions
from dato.errors import DatoError
from dato.evaluation import Evaluator
from dato.forecast import FORECASTS
from dato.front import Front, Point, load_front, non_dominated
from dato.pruning import SCORES, Pruning
from dato.quality import METRICS, Setup, load_metric, shown
from dato.references import fewer_steps, references, seeds
from dato.report import front_table
from dato.samplers import SAMPLERS, num_calls, sampler_name
from dato.sampling import EMBEDDED, Sampling, load_pipeline, read_prompts
from dato.schedule import Schedule
from dato.search import DEPTH_PRESETS, RATIO_PRESETS, Preset, Space, first_generation, search
from dato.space import DepthSpace, RatioSpace

# Of a preset, what stands elsewhere in a front's conditions.
_ELSEWHERE = ("steps", "orders", "forecast", "scheduler", "guidance_scale", "alphabet")

Prompts = Annotated[
    Path | None, typer.Option(help="Text file, one prompt a line.", show_default="the embedded model's search split")
]
Quality = Annotated[
    str, typer.Option(help=f"Objective beside latency: {', '.join(METRICS)}. All that need no extra file are recorded.")
]
MinQuality = Annotated[
    float | None,
    typer.Option(help="Constraint: the objective must be at least this (a distance, as frechet: at most)."),
]
Images = Annotated[
    int | None, typer.Option(min=1, help="Images (prompts) for each candidate.", show_default="the preset's")
]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Images per generation; latency is per image.")]
PopSize = Annotated[int | None, typer.Option(min=2, help="Population of NSGA-II.", show_default="the preset's")]
Generations = Annotated[int | None, typer.Option(min=1, help="Generations.", show_default="the preset's")]
Clip = Annotated[
    str | None,
    typer.Option(
        "--clip",
        help="CLIP checkpoint (folder or hub id) for the CLIP score and features.",
        show_default="the embedded one; openai/clip-vit-base-patch16 for other models",
    ),
]
Statistics = Annotated[
    Path | None, typer.Option(help="Statistics of real pictures for 'frechet': safetensors with mean and covariance.")
]
Rounds = Annotated[
    int, typer.Option(min=0, help="After the search, time the front, references and stock again this often, in turn.")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the run; pareto.json goes there.", show_default="runs/<kind>-<time>")
]
PresetName = Annotated[
    str, typer.Option("--preset", help="quick (minutes on a CPU, embedded model) or paper (DaTo's).")
]


def search_depth(
    model: opt.Model = EMBEDDED,
    prompts: Prompts = None,
    preset: PresetName = "quick",
    depths: Annotated[
        str | None,
        typer.Option(help="Depths to choose from besides the whole UNet, as in 0,1,3.", show_default="the preset's"),
    ] = None,
    orders: Annotated[
        str | None,
        typer.Option(
            help="Orders of forecasts to choose from; 0: hand back what is cached.", show_default="the preset's"
        ),
    ] = None,
    forecast: Annotated[
        str | None,
        typer.Option(help=f"What an order above 0 means: {', '.join(FORECASTS)}.", show_default="the preset's"),
    ] = None,
    quality: Quality = "psnr",
    min_quality: MinQuality = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Sampler steps to choose from, as in 10,15,20,25,50.", show_default="the preset's"),
    ] = None,
    reference_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Stock with so many steps is the reference.", show_default="the largest of --steps"),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help=f"Sampler: {', '.join(SAMPLERS)}.", show_default="the model's own; quick on emoji-sd: dpm++2m"
        ),
    ] = None,
    guidance_scale: opt.Guidance = None,
    height: opt.Height = None,
    width: opt.Width = None,
    images: Images = None,
    batch_size: Batch = 2,
    pop_size: PopSize = None,
    generations: Generations = None,
    latency: Latency = "auto",
    rounds: Rounds = 2,
    clip: Clip = None,
    statistics: Statistics = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    out: Out = None,
) -> None:
    """Search cache-depth schedules: how many steps, and for each UNet call how deep to run; quality against latency.

    With no option at all it searches the embedded model, on a CPU, in minutes.
    """
    chosen = _preset(
        DEPTH_PRESETS,
        preset,
        steps=opt.whole_numbers("--steps", steps),
        orders=opt.whole_numbers("--orders", orders),
        forecast=forecast,
        guidance_scale=guidance_scale,
        images=images,
        pop_size=pop_size,
        generations=generations,
    )
    if chosen.forecast not in FORECASTS:
        raise DatoError(f"--forecast {chosen.forecast!r}: known are {', '.join(FORECASTS)}")
    alphabet = opt.numbers("--depths", depths, int) or [int(d) for d in chosen.alphabet]
    if model != EMBEDDED and prompts is None:
        raise DatoError(f"give --prompts FILE for {model}: the prompts that are built in are {EMBEDDED}'s")
    texts = read_prompts(prompts, chosen.images)
    timing = mode_of(latency, device)
    folder = opt.new_folder(out, "depth")
    sampling = Sampling(reference_steps or max(chosen.steps), chosen.guidance_scale, height, width, seed, batch_size)
    if model == EMBEDDED:
        scheduler = scheduler or chosen.scheduler
    evaluator, conditions = _prepare(
        model, texts, chosen, sampling, scheduler, quality, clip, statistics, device, dtype
    )
    lengths = [num_calls(evaluator.pipe, count) for count in chosen.steps]
    space = DepthSpace(lengths, evaluator.rungs, alphabet, chosen.orders, chosen.forecast)
    known = references(evaluator.steps_of, evaluator.calls, evaluator.rungs)
    floor = opt.floor_of(quality, min_quality)
    conditions["search"] |= {
        "kind": "depth",
        "preset": preset,
        "depths": space.depths,
        "orders": list(chosen.orders),
        "forecast": chosen.forecast,
        "steps": list(chosen.steps),
        "min_quality": min_quality,
    }
    begin = seeds(lengths, evaluator.rungs, chosen.orders, chosen.forecast, chosen.pop_size)
    use_latency(timing, evaluator, [*space.examples(), *known.values()], conditions)
    front = _run(space, evaluator, chosen, known, begin, seed, floor, rounds, conditions)
    path = folder / "pareto.json"
    front.save(path)
    _finish(front, path, [["python", "search/search_ratio.py", "--depths", str(path)]])


def search_ratio(
    depths: Annotated[
        str | None,
        typer.Option(
            help="The front to build on: a file, or the name of a shipped one.",
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
    preset: PresetName = "quick",
    ratios: Annotated[
        str | None, typer.Option(help="Ratios to choose from, as in 0,0.3,0.5,0.7.", show_default="the preset's")
    ] = None,
    score: Annotated[str, typer.Option(help=f"Base score of token pruning: {', '.join(SCORES)}.")] = "sito",
    recover_from: Annotated[
        str | None,
        typer.Option(
            "--recover-from",
            help="What a pruned token gets: base, kept (token's output), past (its own).",
            show_default="past; with --preset paper base",
        ),
    ] = None,
    max_downsample: Annotated[
        int | None, typer.Option(min=1, help="Prune at a downsampling of at most this.", show_default="the smallest")
    ] = None,
    quality: Annotated[str | None, typer.Option(help="Objective beside latency.", show_default="the front's")] = None,
    min_quality: MinQuality = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt a line.", show_default="the front's own prompts")
    ] = None,
    model: opt.Model = None,
    images: Images = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images per generation.", show_default="the front's")
    ] = None,
    pop_size: PopSize = None,
    generations: Generations = None,
    latency: Latency = "auto",
    rounds: Rounds = 2,
    clip: Clip = None,
    statistics: Statistics = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or auto.", show_default="the front's")
    ] = None,
    out: Out = None,
) -> None:
    """Search prune ratios on top of a front of cache-depth schedules: for each call the share of tokens to leave out.

    Model, prompts, sampler, steps, guidance and size are those of the front.
    """
    source = str(_newest_run()) if depths is None else depths
    base = load_front(source)
    found = base.conditions
    points = base.points if pick is None else (opt.pick_point(base, pick),)
    reference = found.get("steps", max(RATIO_PRESETS["quick"].steps))
    chosen = _preset(
        RATIO_PRESETS,
        preset,
        steps=tuple(sorted({point.steps or reference for point in points})),
        guidance_scale=found.get("guidance_scale"),
        images=images,
        pop_size=pop_size,
        generations=generations,
    )
    alphabet = opt.numbers("--ratios", ratios, float) or list(chosen.alphabet)
    # In the papers every block chooses its own tokens, and a pruned one gets its base token's output.
    papers = preset == "paper"
    pruning = Pruning(
        score=score,
        max_downsample=max_downsample,
        shared=not papers,
        recover_from=recover_from or ("base" if papers else "past"),
        # Nearly the same tokens for less; scores that go by no patch have no neighbours.
        similarity="global" if papers or score in ("II", "III") else "local",
        # Where chance decides, the halves of guidance must not choose differently.
        align_cfg=not papers and score != "sito" and chosen.guidance_scale > 1,
    )
    space = RatioSpace([point.schedule for point in points], alphabet, pruning)
    name = model or found.get("model", EMBEDDED)
    texts = _prompts_of(found, prompts, name, chosen.images)
    timing = mode_of(latency, device)
    folder = opt.new_folder(out, "ratio")
    size = found.get("height"), found.get("width")
    batch_size = batch_size or found.get("batch_size", 2)
    sampling = Sampling(reference, chosen.guidance_scale, *size, seed, batch_size)
    if statistics is None and found.get("statistics"):
        statistics = Path(found["statistics"])
    evaluator, conditions = _prepare(
        name,
        texts,
        chosen,
        sampling,
        found.get("scheduler_name"),
        quality or found["quality"],
        clip or found.get("clip"),
        statistics,
        device,
        dtype,
        found.get("dtype", "auto"),
    )
    for point in points:
        if evaluator.steps_of.get(len(point.schedule)) != (point.steps or reference) or evaluator.rungs != base.rungs:
            raise DatoError(
                f"{source} has a schedule of {len(point.schedule)} calls and {base.rungs} rungs for "
                f"{point.steps or reference} steps, and this model makes {sorted(evaluator.steps_of)} calls and has "
                f"{evaluator.rungs} rungs; search its depths first"
            )
    known = references(evaluator.steps_of, evaluator.calls, evaluator.rungs)
    most = space.ratios[-1]
    known[f"all whole, ratio {most:g}"] = Schedule.full(evaluator.calls, rungs=base.rungs).with_ratios(most)
    known = {name: replace(schedule, pruning=pruning) for name, schedule in known.items()}
    floor = opt.floor_of(conditions["quality"], min_quality)
    conditions["search"] |= {
        "kind": "ratio",
        "preset": preset,
        "ratios": space.ratios,
        "depths": source,
        "pick": pick,
        "min_quality": min_quality,
    }
    use_latency(timing, evaluator, [*space.examples(), *known.values()], conditions)
    front = _run(space, evaluator, chosen, known, [], seed, floor, rounds, conditions)
    path = folder / "pareto.json"
    front.save(path)
    _finish(front, path, [])


def _preset(presets: dict[str, Preset], name: str, **given: Any) -> Preset:
    if name not in presets:
        raise DatoError(f"--preset {name!r}: known are {', '.join(presets)}")
    return replace(presets[name], **{key: value for key, value in given.items() if value is not None})


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


def _prepare(
    model: str,
    texts: list[str],
    preset: Preset,
    sampling: Sampling,
    scheduler: str | None,
    quality: str,
    clip: str | None,
    statistics: Path | None,
    device: str,
    dtype: str | None,
    dtype_of_front: str = "auto",
) -> tuple[Evaluator, dict[str, Any]]:
    """Load everything once; return what judges schedules, and the conditions under which it does."""
    where = opt.device_of(device)
    kind = opt.dtype_of(dtype, where, dtype_of_front)
    setup = Setup(
        clip or (emoji_sd.CLIP if model == EMBEDDED else "openai/clip-vit-base-patch16"),
        statistics or (emoji_sd.STATISTICS if model == EMBEDDED else None),
        where,
    )
    # Of another model only fidelity is free; CLIP is loaded where it is asked for.
    recorded = ["psnr", "ssim"] + (["clip-score"] if model == EMBEDDED or clip else [])
    metrics = [load_metric(name, setup) for name in dict.fromkeys([quality, *recorded])]
    with err.status(f"Loading {model}"):
        pipe = load_pipeline(model, device=where, dtype=kind, scheduler=scheduler)
        lengths = [*preset.steps, *fewer_steps(sampling.steps)]
        evaluator = Evaluator(pipe, texts, sampling, metrics, steps=lengths)
    pixels = pipe.unet.config.sample_size * pipe.vae_scale_factor
    conditions = {
        "model": model,
        "dtype": str(kind).removeprefix("torch."),
        "height": sampling.height or pixels,
        "width": sampling.width or pixels,
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_name": sampler if (sampler := sampler_name(pipe.scheduler)) in SAMPLERS else None,
        "steps": sampling.steps,
        "calls": evaluator.calls,
        "guidance_scale": sampling.guidance_scale,
        "prompts": texts,
        "prompts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "seeds": [sampling.seed + i for i in range(len(texts))],
        "batch_size": sampling.batch_size,
        "safety_checker": False,
        "quality": quality,
        "clip": clip,
        "statistics": None if statistics is None else str(statistics),
        "hardware": hardware(where),
        "versions": versions("dato", "torch", "diffusers", "transformers", "pymoo"),
        "search": {k: v for k, v in asdict(preset).items() if k not in _ELSEWHERE},
    }
    return evaluator, conditions


def _run(
    space: Space,
    evaluator: Evaluator,
    preset: Preset,
    references: dict[str, Schedule],
    seeds: Sequence[Schedule],
    seed: int,
    min_quality: float | None,
    rounds: int,
    conditions: dict[str, Any],
) -> Front:
    """Judge the references, search, time what matters again, and put it all together.

    References compete for the front: a schedule that stock with fewer steps or a rival beats is not on it.
    """
    searched: list[Schedule] = []
    metric = METRICS[conditions["quality"]]
    with err.status("Generating stock's images"):
        stock = evaluator.baseline
    err.print(f"Stock takes {stock.latency_ms:.0f} ms for an image.", highlight=False)

    def best() -> tuple[Point, ...]:
        every = [evaluator.judged[s] for s in dict.fromkeys([*references.values(), *searched])]
        return non_dominated(_feasible(every, min_quality)) or non_dominated(every)

    with progress() as bar:
        task = bar.add_task("Reference schedules", total=len(references))
        for schedule in references.values():
            evaluator(schedule)
            bar.advance(task)
        first = len(first_generation(space, preset, seed, seeds))
        task = bar.add_task("Search", total=first + preset.pop_size * (preset.generations - 1))
        try:
            for point in search(space, evaluator, preset, seed=seed, seeds=seeds, min_quality=min_quality):
                searched.append(point.schedule)
                bar.advance(task)
                found = best()
                most = max((p.speedup for p in found), default=1.0)
                bar.update(task, description=f"Search: {len(found)} points up to {most:.1f}x")
        except KeyboardInterrupt:
            if not searched:
                raise
            err.print("Interrupted: going on to write the front found so far.")
        found = best()
        if not found:
            raise DatoError("no schedule gave finite images: give --dtype float32 or bfloat16")
        if min_quality is not None and found[-1].quality < min_quality:
            err.print(f"warning: no schedule reached --min-quality; the best has {shown(metric, found[-1].quality):g}")
        again = list(dict.fromkeys([*(p.schedule for p in found), *references.values()]))
        task = bar.add_task("Timing side by side", total=rounds * (1 + len(again)))
        try:
            baseline, points = evaluator.retime(again, rounds, lambda: bar.advance(task))
            if rounds and evaluator.latency is not None:
                err.print(f"{check_of(baseline, points)}", highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            err.print("Interrupted: the front keeps the times of the search.")
            baseline, points = evaluator.baseline, [evaluator.judged[schedule] for schedule in again]
    timed = dict(zip(again, points, strict=True))
    conditions["search"] |= {
        "rounds": rounds,
        "seed": seed,
        "candidates": len(evaluator.judged),
        "images": evaluator.images,
    }
    pruning = found[0].schedule.pruning
    return Front(
        non_dominated(_feasible(points, min_quality)) or non_dominated(points),
        replace(baseline, schedule=replace(baseline.schedule, pruning=pruning)),
        {name: timed[s] for name, s in references.items() if math.isfinite(timed[s].quality)},
        conditions,
    )


def _feasible(points: list[Point], min_quality: float | None) -> list[Point]:
    return [p for p in points if min_quality is None or p.quality >= min_quality]


def _finish(front: Front, path: Path, more: list[list[str]]) -> None:
    out.print(front_table(front))
    out.print(f"\n{len(front)} points written to {path}. Next:", highlight=False, markup=False, soft_wrap=True)
    fastest = max(point.speedup for point in front.points)
    speedup = 3 if fastest >= 3 else int(fastest * 10) / 10
    prompt = front.conditions["prompts"][0]
    draw = ["python", "scripts/generate.py", "--strategy", str(path), "--pick", f"speedup={speedup:g}", prompt]
    for command in [*more, draw]:
        out.print(f"  {shlex.join(command)}", highlight=False, soft_wrap=True, markup=False)
