"""`evaluate`: fronts and schedules on prompts that no search has seen, beside stock, fewer steps and the rivals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from dato import emoji_sd, references
from dato.cli import options as opt
from dato.console import err, out, progress
from dato.environment import hardware, versions
from dato.errors import DatoError
from dato.evaluation import Evaluator
from dato.files import write_atomic
from dato.front import Front, Point, dumps, load_strategy
from dato.peers import Peer, tomesd_peer
from dato.quality import METRICS, Setup, load_metric, shown
from dato.report import forecast_of, image_grid, quality_plot, strip
from dato.samplers import SAMPLERS, num_calls
from dato.sampling import EMBEDDED, Sampling, load_pipeline, read_prompts
from dato.schedule import Schedule

NAMES = ("clip-score", "frechet", "psnr", "ssim")
METHODS = ("steps", "deepcache", "dato", "tomesd", "spectrum", "order0", "order1", "aligned", "order2")
SPEEDUPS = (3.0, 5.0, 8.0)
Families = dict[str, dict[str, Schedule | Peer]]


def evaluate(
    strategies: Annotated[
        list[str] | None, typer.Argument(help="Fronts or schedules: JSON files, or names of shipped ones.")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help=f"What to compare with: {', '.join(METHODS)} (steps: stock with fewer steps; order0 to order2 and "
            "aligned: regular schedules of fewer steps and shallow calls, by forecast)."
        ),
    ] = "steps,deepcache,spectrum",
    points: Annotated[
        int | None,
        typer.Option(min=2, help="At most so many points of each front, spread over its speeds.", show_default="all"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a diffusers pipeline.", show_default="the first front's")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file, one prompt a line.", show_default="the embedded model's evaluation split"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampler steps of the reference.", show_default="the first front's")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help=f"Sampler: {', '.join(SAMPLERS)}.", show_default="the first front's")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=1, help="Classifier-free guidance; 1 is off.", show_default="the first front's")
    ] = None,
    images: Annotated[int | None, typer.Option(min=2, help="How many prompts.", show_default="all")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per generation.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Time all of them this often, in turn; the median counts.")] = 5,
    clip: Annotated[str | None, typer.Option(help="CLIP checkpoint.", show_default="the embedded one")] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="Statistics of real pictures.", show_default="the embedded ones")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Image i starts from the noise of seed + i.")] = 1000,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the table as JSON, too.")] = None,
    grid: Annotated[
        Path | None,
        typer.Option(help="Write a PNG, too: eight prompts' images by stock and each method at 3x, 5x and 8x."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a PNG, too: PSNR and CLIP score against the share of stock's time.")
    ] = None,
) -> None:
    """Evaluate schedules on held-out prompts, beside stock, stock with fewer steps, DeepCache and Spectrum.

    Quality is that of all images; the times of all contenders are measured in turn in the same run.
    """
    loaded = {name: load_strategy(name) for name in strategies or []}
    chosen = methods.split(",") if methods else []
    for method in chosen:
        if method not in METHODS:
            raise DatoError(f"--methods: unknown method {method!r}; known are {', '.join(METHODS)}")
    known: dict[str, Any] = next((s.conditions for s in loaded.values() if isinstance(s, Front)), {})
    # Of the front, sizes belong to its own model.
    size = (known.get("height"), known.get("width")) if model in (None, known.get("model")) else (None, None)
    model = model or known.get("model", EMBEDDED)
    if model != EMBEDDED and not (prompts and clip and statistics):
        raise DatoError(f"give --prompts, --clip and --statistics for {model}: the built-in ones are {EMBEDDED}'s")
    texts = emoji_sd.prompts("evaluation")[:images] if prompts is None else read_prompts(prompts, images)
    where = opt.device_of(device)
    setup = Setup(clip or emoji_sd.CLIP, statistics or emoji_sd.STATISTICS, where)
    metrics = [load_metric(name, setup) for name in NAMES]
    guidance = guidance_scale or known.get("guidance_scale", 3.0)
    sampling = Sampling(steps or known.get("steps", 50), guidance, *size, seed=seed, batch_size=batch_size)
    sampler = scheduler or known.get("scheduler_name")
    with err.status(f"Loading {model}"):
        pipe = load_pipeline(model, device=where, dtype=opt.dtype_of(dtype, where), scheduler=sampler)
        lengths = [*references.fewer_steps(sampling.steps), *_own_steps(loaded)]
        judge = Evaluator(pipe, texts, sampling, metrics, steps=lengths)

    families = _methods(judge, chosen) | _loaded(judge, loaded, points)
    contenders = {name: contender for family in families.values() for name, contender in family.items()}
    unique = list(dict.fromkeys(contenders.values()))
    judged_as: dict[Any, Point] = {}
    with progress() as bar:
        task = bar.add_task("Images", total=len(unique))
        for contender in unique:
            judged_as[contender] = judge(contender)
            bar.advance(task)
        task = bar.add_task("Timing side by side", total=rounds * (1 + len(unique)))
        stock, timed = judge.retime(judged_as, rounds, lambda: bar.advance(task))
    measured = dict(zip(unique, timed, strict=True))
    judged = {label: {n: measured[c] for n, c in family.items()} for label, family in families.items()}
    rows = {"stock": stock} | {name: point for family in judged.values() for name, point in family.items()}
    _print(rows, len(texts), {name for label in loaded for name in judged.get(_label(label), {})})
    if plot is not None:
        quality_plot({label: list(f.values()) for label, f in judged.items() if f}, stock, ("psnr", "clip-score"), plot)
        out.print(f"written to {plot}", highlight=False)
    if grid is not None:
        drawn = {f"stock\n{stock.steps} steps": judge.images_of(None, 8)}
        for title, name in _at_speedups(judged):
            drawn[title] = judge.images_of(contenders[name], 8)
        image_grid(drawn, texts[:8], grid)
        out.print(f"written to {grid}", highlight=False)
    if out_file is not None:
        conditions = {
            "model": model,
            "images": len(texts),
            "steps": sampling.steps,
            "scheduler": type(pipe.scheduler).__name__,
            "guidance_scale": guidance,
            "seed": seed,
            "batch_size": batch_size,
            "rounds": rounds,
            "hardware": hardware(where),
            "versions": versions("dato", "torch", "diffusers", "transformers"),
        }
        finite = {n: p.to_dict() for n, p in rows.items() if all(map(math.isfinite, p.metrics.values()))}
        write_atomic(out_file, dumps({**conditions, "rows": finite}) + "\n")
        out.print(f"written to {out_file}", highlight=False)


def _thinned(front: Front, most: int | None) -> dict[int, Point]:
    """At most so many points of a front by number: those nearest to even steps of the speed-up's logarithm."""
    numbered = dict(enumerate(front.points))
    if most is None or len(front) <= most:
        return numbered
    speeds = {number: math.log(point.speedup) for number, point in numbered.items()}
    low, high = min(speeds.values()), max(speeds.values())
    wanted = [low + (high - low) * i / (most - 1) for i in range(most)]
    kept = {min(speeds, key=lambda number: abs(speeds[number] - speed)) for speed in wanted}
    return {number: numbered[number] for number in sorted(kept)}


def _own_steps(loaded: Mapping[str, Front | Schedule]) -> set[int]:
    """The numbers of steps for which the points of these fronts are meant."""
    fronts = [front for front in loaded.values() if isinstance(front, Front)]
    found = {point.steps or front.conditions.get("steps") for front in fronts for point in front.points}
    return found - {None}


def _methods(judge: Evaluator, chosen: list[str]) -> Families:
    """The methods to compare with: {family: {row: contender}}."""
    calls, rungs = judge.calls, judge.rungs
    families: Families = {}
    if "steps" in chosen:
        families["fewer steps"] = dict(references.stock(judge.steps_of, calls, rungs))
    if "deepcache" in chosen:
        families["DeepCache"] = {f"DeepCache {name}": s for name, s in references.uniform(calls, rungs).items()}
    if "dato" in chosen:
        published = load_strategy("dato-published").resampled(calls).for_rungs(rungs)
        families["DaTo's vector"] = {"DaTo's vector": published}
    if "tomesd" in chosen:
        peer = tomesd_peer(0.5, Schedule.full(calls, rungs=rungs))
        if peer is None:
            raise DatoError("--methods tomesd: the package is not installed: pip install tomesd")
        families["ToMeSD"] = {peer.name: peer}
    if "spectrum" in chosen:
        families["Spectrum"] = dict(references.spectrum(calls, rungs))
    for method, order in [("order0", 0), ("order1", 1), ("aligned", 1), ("order2", 2)]:
        if method in chosen:
            kind = "aligned" if method == "aligned" else f"order {order}"
            forecast = method if method == "aligned" else "polynomial"
            regular = {}
            for interval, share in [(2, 1), (3, 1), (2, 0.5), (3, 0.5), (2, 0.3), (2, 0.2), (2, 0.16)]:
                steps = max(2, round(share * judge.sampling.steps))
                calls = num_calls(judge.pipe, steps)
                schedule = Schedule.uniform(calls, interval, 1, order, rungs=rungs, forecast=forecast)
                regular[f"{kind}: {steps} steps, N={interval} d=1"] = schedule
            families[f"ours, regular, {kind}"] = regular
    return families


def _label(name: str) -> str:
    path = Path(name)
    return path.parent.name if path.name == "pareto.json" else path.stem


def _loaded(judge: Evaluator, loaded: Mapping[str, Front | Schedule], most: int | None) -> Families:
    families: Families = {}
    calls_of = {steps: calls for calls, steps in judge.steps_of.items()}
    for name, strategy in loaded.items():
        label = _label(name)
        if label in families:
            raise DatoError(f"two strategies are called {label}: rename one of the files")
        families[label] = {}
        points = _thinned(strategy, most) if isinstance(strategy, Front) else {0: None}
        for number, point in points.items():
            title, schedule = (label, strategy) if point is None else (f"{label} {number}", point.schedule)
            # Where another sampler makes other calls of them, a schedule keeps its own number of steps.
            own = point and (point.steps or strategy.conditions.get("steps"))
            calls = calls_of.get(own, len(schedule) if len(schedule) in judge.steps_of else judge.calls)
            if calls != len(schedule):
                title += f" ({len(schedule)} calls resampled)"
                schedule = schedule.resampled(calls)
            families[label][title] = schedule.for_rungs(judge.rungs)
    return families


def _at_speedups(points: Mapping[str, Mapping[str, Point]]) -> list[tuple[str, str]]:
    """(label, row) of each family's row that is nearest to 3x, 5x and 8x, where one is near enough to compare."""
    found = []
    for target in SPEEDUPS:
        for label, family in points.items():
            if not family:
                continue
            name, point = min(family.items(), key=lambda item: abs(math.log(item[1].speedup / target)))
            if 1 / 1.15 < point.speedup / target < 1.15:
                found.append((f"{label}\n{point.speedup:.1f}x, {point.metrics['psnr']:.1f} dB", name))
    return found


def _print(rows: dict[str, Point], images: int, own: set[str]) -> None:
    table = Table(title=f"{images} held-out prompts", title_justify="left", box=box.SIMPLE, header_style="bold")
    table.add_column("", no_wrap=True)
    for column in ("speed-up", "ms", *NAMES, "steps", "order"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("depth by call", overflow="fold")
    for name, point in sorted(rows.items(), key=lambda row: row[1].latency_ms):
        values = [f"{shown(METRICS[n], point.metrics[n]):.{3 if n == 'ssim' else 2}f}" for n in NAMES]
        style = "bold" if name == "stock" else "" if name in own else "dim"
        speed = [f"{point.speedup:.2f}x", f"{point.latency_ms:.0f}"]
        cells = [*speed, *values, f"{point.steps}", forecast_of(point.schedule)]
        table.add_row(name, *cells, strip(point.schedule), style=style)
    out.print(table)
