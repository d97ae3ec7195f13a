"""`generalise`: what a front is worth where it was not searched: other prompts, seeds, steps, samplers, guidance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from dato.cli import options as opt
from dato.cli.console import err, out, progress
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation import baselines as references
from dato.evaluation.pool import Judges, Recipe, make_judges
from dato.experiments.held_out import Row, fill, rows, settings_of
from dato.experiments.image_store import Gallery
from dato.experiments.method_families import deepcache, fewer_steps, fitted, own_steps
from dato.front import Front
from dato.generation.prompts import read_prompts
from dato.generation.sampling import Sampling
from dato.point import Point
from dato.samplers import SAMPLERS
from dato.strategies import load_front
from dato.utils.files import dumps, write_atomic
from dato.utils.hardware import versions
from dato.utils.markdown import markdown

OTHER_SEED = 1000
PICKS = ("speedup=3", "speedup=5")
STEPS = "25,50,100"
SCHEDULERS = "dpm++2m,plms,ddim,euler"
GUIDANCE = "1.5,3,5,7.5"


def generalise(
    front: Annotated[str, typer.Argument(help=f"A front: {opt.STRATEGY}.")],
    pick: Annotated[
        list[str] | None,
        typer.Option(
            help="A point of it: knee, speedup=NUMBER or quality=NUMBER; may be repeated.",
            show_default=" and ".join(PICKS),
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file with other prompts, one a line.", show_default="the embedded model's evaluation split"
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="How many prompts.")] = 8,
    steps: Annotated[str, typer.Option(help="Sampler steps of the reference to try.")] = STEPS,
    schedulers: Annotated[str, typer.Option(help=f"Samplers to try, of {', '.join(SAMPLERS)}.")] = SCHEDULERS,
    guidance: Annotated[str, typer.Option(help="Guidance scales to try.")] = GUIDANCE,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per generation.")] = 2,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    workers: Annotated[int, typer.Option(min=1, help="GPUs (or shares of a CPU) at work together; with Ray.")] = 1,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster, as auto or ray://host:10001.")] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of images and tables; what it holds is not made again.",
            show_default="runs/generalisation-<time>",
        ),
    ] = None,
) -> None:
    """Judge points of a front where they were not searched, beside the best that needs no search.

    A point's PSNR is to stock under the same condition. Beside it stands that of the better of stock with fewer steps
    and DeepCache's uniform schedules, among those that are at least as fast there: where that is higher, search again.
    """
    loaded = load_front(front)
    points = {text: opt.pick_point(loaded, text) for text in pick or _reachable(loaded)}
    model = loaded.conditions.get("model", EMBEDDED)
    if model != EMBEDDED and prompts is None:
        raise DatoError(f"give --prompts FILE for {model}: the built-in ones are {EMBEDDED}'s")
    other = read_prompts(prompts, images, "evaluation")
    where = opt.device_of(device, elsewhere=ray_address is not None)
    base = _as_searched(loaded.conditions, images, batch_size)
    base = replace(base, device=str(where), dtype=opt.dtype_name(dtype, where))
    samplers = schedulers.split(",")
    for name in samplers:
        if name not in SAMPLERS:
            raise DatoError(f"--schedulers: unknown scheduler {name!r}; known are {', '.join(SAMPLERS)}")
    counts = opt.whole_numbers("--steps", steps) or ()
    scales = opt.numbers("--guidance", guidance, float) or []
    folder = out_folder or opt.new_folder(None, "generalisation")
    table, data = [], {}
    for name, recipe in _conditions(base, tuple(other), counts, samplers, scales):
        with err.status(f"Loading {model}"):
            judges = make_judges(_with_steps(recipe, loaded, points), workers, ray_address)
        try:
            found = _judged(name, judges, recipe, loaded, points, folder)
        finally:
            judges.close()
        data[name] = {row: {"speedup": r.speedup} | _finite(r.metrics) for row, r in found.items()}
        table.append({"condition": name, "images": f"{len(recipe.prompts)}"} | _cells(found, list(points)))
    out.print(_table(table))
    write_atomic(folder / "table.md", markdown(table))
    setting = {"front": front, "picks": list(points), "images": len(other)}
    setting |= {"versions": versions("dato", "torch", "diffusers")}
    write_atomic(folder / "generalisation.json", dumps(setting | {"conditions": data}) + "\n")
    out.print(f"written to {folder}", highlight=False, soft_wrap=True, markup=False)


def _as_searched(conditions: Mapping[str, Any], images: int, batch_size: int) -> Recipe:
    """What the search generated, by the front's conditions."""
    known = conditions.get("prompts")
    if not known or any(name not in conditions for name in ("steps", "guidance_scale", "seeds")):
        raise DatoError("the front does not say with what prompts, seeds, steps and guidance it was searched")
    sampling = Sampling(
        conditions["steps"],
        conditions["guidance_scale"],
        conditions.get("height"),
        conditions.get("width"),
        conditions["seeds"][0],
        batch_size,
    )
    model, sampler = conditions.get("model", EMBEDDED), conditions.get("scheduler_name")
    config = conditions.get("config")
    return Recipe(model, "cpu", "float32", sampler, tuple(known[:images]), sampling, (), ("psnr",), config=config)


def _conditions(
    base: Recipe, other: tuple[str, ...], steps: Sequence[int], samplers: Sequence[str], scales: Sequence[float]
) -> Iterator[tuple[str, Recipe]]:
    """(name, recipe), each different from the search in its prompts and seeds and, after that, in one thing more."""
    yield "as searched", base
    yield "other seeds", replace(base, sampling=replace(base.sampling, seed=OTHER_SEED))
    away = replace(base, prompts=other, sampling=replace(base.sampling, seed=OTHER_SEED))
    yield "other prompts and seeds", away
    for count in steps:
        if count != base.sampling.steps:
            yield f"{count} steps", replace(away, sampling=replace(away.sampling, steps=count))
    for sampler in samplers:
        if sampler != base.scheduler:
            yield sampler, replace(away, scheduler=sampler)
    for scale in scales:
        if scale != base.sampling.guidance_scale:
            yield f"guidance {scale:g}", replace(away, sampling=replace(away.sampling, guidance_scale=scale))


def _reachable(front: Front) -> list[str]:
    """The usual points, as far as the front has them."""
    fastest = max(point.speedup for point in front.points)
    return [text for text in PICKS if float(text.partition("=")[2]) <= fastest] or ["knee"]


def _with_steps(recipe: Recipe, front: Front, points: Mapping[str, Point]) -> Recipe:
    """With all numbers of steps that will be generated."""
    reference = recipe.sampling.steps
    own = {own_steps(point, front, reference) for point in points.values()}
    return replace(recipe, steps=tuple(own | set(references.fewer_steps(reference))))


def _judged(
    name: str, judges: Judges, recipe: Recipe, front: Front, points: Mapping[str, Point], folder: Path
) -> dict[str, Row]:
    """Stock, the points and their rivals under one condition."""
    facts, size = judges.facts, recipe.sampling.batch_size
    contenders = fewer_steps(facts) | deepcache(facts)
    for text, point in points.items():
        calls = facts.calls_of[own_steps(point, front, recipe.sampling.steps)]
        contenders[text] = next(iter(fitted(text, point.schedule, calls, facts).values()))
    settings = settings_of(recipe, facts) | {"condition": name}
    gallery = Gallery(folder / name.replace(" ", "-"), settings, recipe.prompts, contenders)
    with progress() as bar:
        task = bar.add_task(name, total=None)
        for there, total in fill(gallery, judges, size, memory=False):
            bar.update(task, completed=there, total=total)
    found, failed = rows(gallery, judges, size)
    for method, reason in failed.items():
        raise DatoError(f"{method}: {reason}; lower --batch-size")
    return found


def _cells(found: Mapping[str, Row], own: Sequence[str]) -> dict[str, str]:
    """For each point its speed-up, its PSNR, and the best rival that is no slower."""
    cells = {}
    for text in own:
        row = found[text]
        faster = [r.metrics["psnr"] for n, r in found.items() if n not in own and r.speedup >= row.speedup]
        cells[f"{text}: time"] = f"{row.speedup:.2f}x"
        cells[f"{text}: dB"] = f"{row.metrics['psnr']:.1f}"
        cells[f"{text}: best without search"] = f"{max(faster):.1f}" if faster else "none as fast"
    return cells


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _table(cells: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title="PSNR to stock", title_justify="left", box=box.SIMPLE, header_style="bold")
    for column in cells[0]:
        table.add_column(column, justify="left" if column == "condition" else "right")
    for row in cells:
        table.add_row(*row.values())
    return table
