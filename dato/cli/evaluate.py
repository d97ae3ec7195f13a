"""`evaluate`: fronts and schedules on prompts that no search has seen, beside stock, fewer steps and the rivals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from dato.cli import metric_options as metric
from dato.cli import options as opt
from dato.cli.console import err, out, progress
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation import baselines as references
from dato.evaluation.evaluator import precision_errors
from dato.evaluation.methods import Peer
from dato.evaluation.pool import Facts, Recipe, make_judges
from dato.experiments.held_out import Row, fill, rows, settings_of
from dato.experiments.image_store import STOCK, Gallery
from dato.experiments.method_families import (
    METHODS,
    Contender,
    Families,
    has_tomesd,
    known_methods,
    methods,
    of_front,
    of_schedule,
    own_steps,
    thinned,
)
from dato.front import Front
from dato.generation.guidance import guidance_of, usual_guidance
from dato.generation.prompts import COCO_COUNT, coco_captions, imagenet_prompts, read_prompts
from dato.generation.protocols import PROTOCOLS, SCHEDULER, SIZE, STEPS
from dato.generation.sampling import Sampling
from dato.metrics import METRICS, label_of, setup_for, text_of
from dato.point import Point
from dato.report.tables import forecast_of, image_grid, quality_plot, strip
from dato.samplers import SAMPLERS
from dato.schedule import Schedule
from dato.strategies import load_strategy
from dato.utils.files import dumps, write_atomic
from dato.utils.hardware import versions
from dato.utils.markdown import markdown

SPEEDUPS = (3.0, 5.0, 8.0)
DEFAULT = "steps,deepcache,sito,spectrum"


@metric.with_metric_options(before="seed")
def evaluate(
    ctx: typer.Context,
    strategies: Annotated[list[str] | None, typer.Argument(help=f"Fronts or schedules, each {opt.STRATEGY}.")] = None,
    chosen: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help=f"What to compare with: {', '.join(METHODS)} (steps: stock with fewer steps; order0 to order2 and "
            "aligned: fewer steps and shallow calls, by forecast; from layers on, SiTo's ablations).",
            show_default=f"{DEFAULT}, and tomesd where it is installed",
        ),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(min=2, help="At most so many points of each front, spread over its speeds.", show_default="all"),
    ] = None,
    pick: Annotated[
        list[str] | None,
        typer.Option(help="Only this point of each front: knee, speedup=NUMBER or quality=NUMBER; may be repeated."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id of a diffusers pipeline, or a file with the whole model.",
            show_default="the first front's",
            callback=opt.model_place,
        ),
    ] = None,
    config: opt.Config = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help=f"The papers' settings and prompts: {', '.join(PROTOCOLS)} (imagenet: its 1,000 classes, 2 each; "
            f"coco: 30,000 captions; file: --prompts; {STEPS} PLMS steps, {SIZE} x {SIZE}, guidance 7.5, SD 2.x 9.0).",
        ),
    ] = None,
    captions: Annotated[Path | None, typer.Option(help="COCO's captions_val2014.json, for --protocol coco.")] = None,
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
    height: opt.Height = None,
    width: opt.Width = None,
    images: Annotated[int | None, typer.Option(min=2, help="How many prompts.", show_default="all")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per generation.")] = 2,
    metrics: Annotated[
        str | None,
        typer.Option(
            help=f"What to measure: {', '.join(METRICS)}.",
            show_default="clip-score, frechet, psnr, ssim; of other models fid and kid (with --real), clip-score, "
            "image-reward, psnr",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Image i starts from the noise of seed + i.")] = 1000,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    workers: Annotated[int, typer.Option(min=1, help="GPUs (or shares of a CPU) at work together; with Ray.")] = 1,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster, as auto or ray://host:10001.")] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of images, measurements and tables; what it holds is not made again.",
            show_default="runs/evaluation-<time>",
        ),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(help="Write a PNG, too: eight prompts' images by stock and each method at 3x, 5x and 8x."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a PNG, too: two of the metrics against the share of stock's time.")
    ] = None,
) -> None:
    """Evaluate schedules on held-out prompts, beside stock, stock with fewer steps, DeepCache, SiTo, ToMeSD, Spectrum.

    Each batch of prompts is generated with all of them in turn, so that times are ratios of one run. Stopped or killed,
    the same command with --out goes on where it was.
    """
    loaded = {name: load_strategy(name) for name in strategies or []}
    if points is not None and pick:
        raise DatoError("give --points or --pick: the first spreads points over a front, the second names them")
    names = known_methods(_methods(chosen))
    _check_labels(loaded, names)
    recipe = _recipe(ctx, loaded)
    texts, sampling = list(recipe.prompts), recipe.sampling
    with err.status(f"Loading {recipe.model}"):
        judges = make_judges(recipe, workers, ray_address)
    try:
        families = methods(names, judges.facts) | _loaded(loaded, judges.facts, points, pick or [])
        contenders = {name: contender for family in families.values() for name, contender in family.items()}
        unique = {contender: name for name, contender in reversed(contenders.items())}
        conditions = settings_of(recipe, judges.facts)
        folder = out_folder or opt.new_folder(None, "evaluation")
        err.print(f"Going to {folder}; stopped, the same command with --out {folder} goes on.", soft_wrap=True)
        gallery = Gallery(folder, conditions, texts, {name: contender for contender, name in unique.items()})
        with progress() as bar:
            task = bar.add_task("Batches, all methods in turn", total=None)
            for there, total in fill(gallery, judges, batch_size):
                bar.update(task, completed=there, total=total)
        found, failed = rows(gallery, judges, batch_size)
        some = gallery.images(STOCK, 8)
        errors = judges.ask(precision_errors, some, texts[: len(some)])
        facts = judges.facts
    finally:
        judges.close()
    for name, reason in failed.items() | {n: row.failure for n, row in found.items() if row.failure}.items():
        warnings.warn(f"{name}: {reason}", stacklevel=1)
    judged = _points(found, contenders, unique, facts)
    cells = _cells(judged, recipe.metrics)
    out.print(_table(cells, len(texts), {name for label in loaded for name in families[_label(label)]}))
    for name, error in errors.items():
        out.print(f"{name} in half precision differs from float32 by at most {error:.2g} here", highlight=False)
    write_atomic(folder / "table.md", markdown(cells))
    finite = {n: p.to_dict() for n, p in judged.items() if all(map(math.isfinite, p.metrics.values()))}
    more = {"images": len(texts), "metrics": list(recipe.metrics), "precision_errors": errors, "failed": failed}
    more["versions"] = versions("dato", "torch", "diffusers", "transformers")
    write_atomic(folder / "evaluation.json", dumps({**conditions, **more, "rows": finite}) + "\n")
    out.print(f"written to {folder}", highlight=False, soft_wrap=True, markup=False)
    grouped = {label: {n: judged[n] for n in family if n in judged} for label, family in families.items()}
    grouped = {label: family for label, family in grouped.items() if family}
    if plot is not None:
        liked = [name for name in ("psnr", "clip-score", "image-reward", "fid") if name in recipe.metrics]
        lines = {label: list(family.values()) for label, family in grouped.items()}
        quality_plot(lines, judged[STOCK], (liked or recipe.metrics)[:2], plot)
        out.print(f"written to {plot}", highlight=False)
    if grid is not None:
        shown_as = {f"stock\n{sampling.steps} steps": STOCK} | dict(_at_speedups(grouped))
        drawn = {title: gallery.images(unique.get(contenders.get(n), n), 8) for title, n in shown_as.items()}
        image_grid(drawn, texts[:8], grid)
        out.print(f"written to {grid}", highlight=False)


def _recipe(ctx: typer.Context, loaded: Mapping[str, Front | Schedule]) -> Recipe:
    """Model, prompts, sampling and metrics: as given, else the protocol's, else the first front's."""
    o = SimpleNamespace(**ctx.params)
    known: dict[str, Any] = next((s.conditions for s in loaded.values() if isinstance(s, Front)), {})
    model, config, own = opt.model_of(o.model, o.config, known)
    size = (o.height or own.get("height"), o.width or own.get("width"))
    guidance, sampler, count = o.guidance_scale, o.scheduler, o.steps
    texts = _prompts(o.protocol, model, o.prompts, o.captions, o.images)
    if o.protocol is not None:
        guidance, sampler, count = guidance or guidance_of(model), sampler or SCHEDULER, count or STEPS
        size = (o.height or SIZE, o.width or SIZE) if model != EMBEDDED else (o.height, o.width)
    files = metric.files_of(ctx.params)
    count = count or known.get("steps", STEPS)
    guidance = guidance or known.get("guidance_scale") or usual_guidance(model)
    where = opt.device_of(o.device, elsewhere=o.ray_address is not None)
    return Recipe(
        model,
        str(where),
        opt.dtype_name(o.dtype, where),
        sampler or known.get("scheduler_name"),
        tuple(texts),
        Sampling(count, guidance, *size, seed=o.seed, batch_size=o.batch_size),
        tuple({*references.fewer_steps(count), *_own_steps(loaded, count)}),
        _metrics(o.metrics, model, files),
        setup_for(model, files),
        config=config,
    )


def _methods(text: str | None) -> list[str]:
    if text is not None:
        return text.split(",") if text else []
    if not has_tomesd():
        err.print("ToMeSD is not installed, and left out: pip install tomesd", highlight=False)
    return [*DEFAULT.split(","), *(["tomesd"] if has_tomesd() else [])]


def _check_labels(loaded: Mapping[str, Front | Schedule], names: Sequence[str]) -> None:
    """Raise DatoError if two rows or families of rows would have the same name."""
    taken = [METHODS[name][0] for name in names]
    for name in loaded:
        if _label(name) in taken:
            raise DatoError(f"two strategies or methods are called {_label(name)}: rename one of the files")
        taken.append(_label(name))


def _prompts(
    protocol: str | None, model: str, prompts: Path | None, captions: Path | None, images: int | None
) -> list[str]:
    if protocol is not None and protocol not in PROTOCOLS:
        raise DatoError(f"--protocol {protocol!r}: known are {', '.join(PROTOCOLS)}")
    if protocol in ("imagenet", "coco") and prompts is not None:
        raise DatoError(f"--protocol {protocol} has its own prompts: leave out --prompts, or say --protocol file")
    if protocol == "imagenet":
        return imagenet_prompts(*([] if images is None else [images]))
    if protocol == "coco":
        if captions is None:
            raise DatoError("--protocol coco: give --captions with COCO's captions_val2014.json")
        return coco_captions(captions, images or COCO_COUNT)
    if prompts is None and (model != EMBEDDED or protocol == "file"):
        raise DatoError(f"give --prompts or --protocol for {model}: the built-in prompts are {EMBEDDED}'s")
    return read_prompts(prompts, images, "evaluation")


def _metrics(text: str | None, model: str, files: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the metrics, each known."""
    if text is not None:
        names = tuple(dict.fromkeys(text.split(",")))
    else:
        own = ("clip-score", "frechet", "psnr", "ssim")
        names = own if model == EMBEDDED else ("clip-score", "image-reward", "psnr")
        if "real" in files:
            names = ("fid", *(["kid"] if Path(files["real"]).is_dir() else []), *names)
    for name in names:
        if name not in METRICS:
            raise DatoError(f"--metrics: unknown metric {name!r}; known are {', '.join(METRICS)}")
    return names


def _own_steps(loaded: Mapping[str, Front | Schedule], reference: int) -> set[int]:
    """The numbers of steps for which the points of these fronts are meant."""
    fronts = [front for front in loaded.values() if isinstance(front, Front)]
    return {own_steps(point, front, reference) for front in fronts for point in front.points}


def _label(name: str) -> str:
    path = Path(name)
    return path.parent.name if path.name == "pareto.json" else path.stem


def _loaded(loaded: Mapping[str, Front | Schedule], facts: Facts, most: int | None, picks: Sequence[str]) -> Families:
    families: Families = {}
    for name, strategy in loaded.items():
        label = _label(name)
        if not isinstance(strategy, Front):
            if picks:
                raise DatoError(f"--pick {picks[0]}: {name} is one schedule, there is nothing to pick")
            families[label] = of_schedule(strategy, label, facts)
            continue
        numbers = {id(point): number for number, point in enumerate(strategy.points)}
        picked = {numbers[id(point)]: point for point in (opt.pick_point(strategy, text) for text in picks)}
        families[label] = of_front(strategy, label, facts, dict(sorted(picked.items())) or thinned(strategy, most))
    return families


def _points(
    found: Mapping[str, Row], contenders: Mapping[str, Contender], unique: Mapping[Contender, str], facts: Facts
) -> dict[str, Point]:
    """Stock and all contenders that gave images, as points."""
    points = {}
    for name, contender in {STOCK: Schedule.full(facts.calls, rungs=facts.rungs), **contenders}.items():
        row = found.get(STOCK if name == STOCK else unique[contender])
        if row is None:
            continue
        schedule = contender.schedule if isinstance(contender, Peer) else contender
        metrics = row.metrics | {"unet_ms": row.unet_ms}
        if row.peak_bytes:
            metrics["peak_mb"] = row.peak_bytes / 2**20
        steps = facts.steps_of[len(schedule)]
        quality = next(iter(row.metrics.values()))
        points[name] = Point(schedule, quality, row.latency_ms, row.speedup, metrics, steps)
    return points


def _at_speedups(points: Mapping[str, Mapping[str, Point]]) -> list[tuple[str, str]]:
    """(label, row) of each family's row that is nearest to 3x, 5x and 8x, where one is near enough to compare."""
    found = []
    for target in SPEEDUPS:
        for label, family in points.items():
            name, point = min(family.items(), key=lambda item: abs(math.log(item[1].speedup / target)))
            if 1 / 1.15 < point.speedup / target < 1.15:
                psnr = f", {point.metrics['psnr']:.1f} dB" if "psnr" in point.metrics else ""
                found.append((f"{label}\n{point.speedup:.1f}x{psnr}", name))
    return found


def _cells(judged: Mapping[str, Point], names: Sequence[str]) -> list[dict[str, str]]:
    """The papers' table, row by row, {column: text}, fastest first."""
    stock = judged[STOCK]
    found = []
    for name, point in sorted(judged.items(), key=lambda row: row[1].latency_ms):
        cells = {"method": name, "speed-up": f"{point.speedup:.2f}x", "ms": f"{point.latency_ms:.0f}"}
        if "peak_mb" in stock.metrics:
            own, whole = point.metrics.get("peak_mb", math.nan), stock.metrics["peak_mb"]
            cells |= {"MB": f"{own:.0f}", "compression": f"{whole / own:.2f}x"}
        for metric_name in names:
            cells[label_of(metric_name)] = text_of(metric_name, point.metrics[metric_name])
        cells |= {
            "steps": f"{point.steps}",
            "order": forecast_of(point.schedule),
            "depth by call": strip(point.schedule),
        }
        found.append(cells)
    return found


def _table(cells: Sequence[Mapping[str, str]], images: int, own: set[str]) -> Table:
    """For the terminal, which has no room for the schedules."""
    style = {"box": box.SIMPLE, "header_style": "bold", "padding": (0, 1, 0, 0)}
    table = Table(title=f"{images} prompts", title_justify="left", **style)
    columns = [column for column in cells[0] if column != "depth by call"]
    for column in columns:
        # Where there is no room for everything, names are folded and numbers stay whole.
        first = column == "method"
        table.add_column("" if first else column, justify="left" if first else "right", no_wrap=not first)
    for row in cells:
        name = row["method"]
        table.add_row(*(row[c] for c in columns), style="bold" if name == STOCK else "" if name in own else "dim")
    return table
