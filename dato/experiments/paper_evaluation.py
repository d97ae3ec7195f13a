"""Evaluate fronts and other methods as the papers do: on held-out prompts, beside stock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dato.errors import DatoError
from dato.evaluation.baselines import fewer_steps
from dato.evaluation.evaluator import Evaluator, precision_errors
from dato.evaluation.methods import STOCK, Method
from dato.evaluation.pool import Facts, Pool, Recipe
from dato.evaluation.ray_pool import make_pool
from dato.experiments.front_claims import Claim, claims, objective_of, said_of
from dato.experiments.held_out import Row, fill, rows, settings_of, stock_of
from dato.experiments.image_store import ImageStore
from dato.experiments.method_families import FAMILIES, Families, families_of, of_front, of_schedule, steps_of_point
from dato.experiments.progress import Progress, silent
from dato.experiments.speed import sample_shape
from dato.front import Front
from dato.point import Point
from dato.prediction.flops import flop_share
from dato.report.columns import FLOPS, TOTAL_MEMORY
from dato.report.plots import quality_plot
from dato.report.schedule_and_sample_pictures import image_grid
from dato.report.tables import rows_of
from dato.schedule import Schedule
from dato.utils.files import dumps, write_atomic
from dato.utils.hardware import versions
from dato.utils.markdown import markdown

SPEEDUPS = (3.0, 5.0, 8.0)  # at which the grid compares images
NEAR = 1.15  # a method whose speed-up differs from one of them by a larger factor is left out
GRID_IMAGES = 8
PLOTTED = ("psnr", "clip-score", "image-reward", "fid")  # the metrics that a plot prefers, in this order


@dataclass(frozen=True)
class Entry:
    """A front or a schedule to evaluate.

    Attributes:
        label: What its rows are called.
        strategy: The front or the schedule.
        points: Of a front: number -> point, of the points to evaluate.
    """

    label: str
    strategy: Front | Schedule
    points: Mapping[int, Point]


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        recipe: What was evaluated with.
        conditions: What the results depend on, as JSON values.
        families: Title -> names of the methods that gave images. A method may be in several families.
        points: Name -> point, of stock and of all methods that gave images.
        failures: Name -> what was wrong with its images, or why there are none.
        no_images: Name -> why there are none.
        precision_errors: Metric -> the largest change of its values by half precision here.
        store: The images.
        stored_as: Name -> name in the store, which holds methods that give equal images once.
        plain_by: The metric by which plain steps are as good as a method. None: the first one.
    """

    recipe: Recipe
    conditions: Mapping[str, Any]
    families: Mapping[str, Sequence[str]]
    points: Mapping[str, Point]
    failures: Mapping[str, str]
    no_images: Mapping[str, str]
    precision_errors: Mapping[str, float]
    store: ImageStore
    stored_as: Mapping[str, str]
    plain_by: str | None = None

    @property
    def stock(self) -> Point:
        """Stock as a point."""
        return self.points[STOCK]

    def rows(self) -> list[dict[str, str]]:
        """Return the papers' table: a row {heading: text} for each method, fastest first."""
        return rows_of(self.points, self.stock, list(self.recipe.metrics), self.plain_by)

    def claims(self) -> list[Claim]:
        """Return for each front what it says of its points, beside what was measured."""
        return claims(self.families, self.points, self.recipe.metrics)

    def save(self) -> None:
        """Write evaluation.json and table.md to the folder of the images."""
        finite = {
            name: point.to_dict()
            for name, point in self.points.items()
            if all(map(math.isfinite, point.metrics.values()))
        }
        data = {
            **self.conditions,
            "images": len(self.recipe.prompts),
            "metrics": list(self.recipe.metrics),
            "precision_errors": dict(self.precision_errors),
            "failed": dict(self.no_images),
            "claims": [asdict(claim) for claim in self.claims()],
            "versions": versions("dato", "torch", "diffusers", "transformers"),
            "rows": finite,
        }
        write_atomic(self.store.folder / "table.md", markdown(self.rows()))
        write_atomic(self.store.folder / "evaluation.json", dumps(data) + "\n")

    def plot(self, path: Path, flops: bool = False) -> None:
        """Write a PNG: two of the metrics against the share of stock's time or FLOPs, a line for each family."""
        metrics = self.recipe.metrics
        preferred = [name for name in PLOTTED if name in metrics]
        lines = {title: [self.points[name] for name in names] for title, names in self.families.items()}
        quality_plot(lines, self.stock, (preferred or metrics)[:2], path, flops)

    def grid(self, path: Path) -> None:
        """Write a PNG: images of the first prompts by stock, and by each family's method nearest to each speed-up."""
        titles = {f"stock\n{self.recipe.sampling.steps} steps": STOCK} | self._at_speedups()
        images = {
            title: self.store.images(self.stored_as.get(name, name), GRID_IMAGES) for title, name in titles.items()
        }
        image_grid(images, self.recipe.prompts[:GRID_IMAGES], path)

    def _at_speedups(self) -> dict[str, str]:
        """Return title of a row of the grid -> name of the method."""
        names_of = {}
        for speedup in SPEEDUPS:
            for title, names in self.families.items():
                name = min(names, key=lambda name: abs(math.log(self.points[name].speedup / speedup)))
                point = self.points[name]
                if 1 / NEAR < point.speedup / speedup < NEAR:
                    psnr = f", {point.metrics['psnr']:.1f} dB" if "psnr" in point.metrics else ""
                    names_of[f"{title}\n{point.speedup:.1f}x{psnr}"] = name
        return names_of


def evaluate(
    recipe: Recipe,
    folder: Path,
    families: Sequence[str] = (),
    entries: Sequence[Entry] = (),
    *,
    workers: int = 1,
    ray_address: str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Generate the recipe's prompts with stock and with all methods in turn, and measure the images.

    What the folder holds is not generated again, so a run that was stopped goes on.

    Args:
        recipe: The model, the prompts, the sampling, the metrics. Numbers of steps that the methods need are added.
        folder: Of the images and the results.
        families: Names in `dato.experiments.method_families.FAMILIES` of methods to compare with.
        entries: Fronts and schedules.
        workers: As in `dato.evaluation.ray_pool.make_pool`.
        ray_address: As in `make_pool`.
        progress: Shows how far it is.

    Raises:
        DatoError: if something cannot be loaded, the folder is of another evaluation, or stock gives no images.
    """
    recipe = replace(recipe, steps=tuple({*recipe.steps, *_steps_of(entries, recipe.sampling.steps)}))
    with progress(f"Loading {recipe.model}"):
        pool = make_pool(recipe, workers, ray_address)
    try:
        return _evaluate(recipe, pool, folder, families, entries, progress)
    finally:
        pool.close()


def _evaluate(
    recipe: Recipe,
    pool: Pool,
    folder: Path,
    names: Sequence[str],
    entries: Sequence[Entry],
    progress: Progress,
) -> Evaluation:
    batch_size = recipe.sampling.batch_size
    families = families_of(names, pool.facts) | {entry.label: _methods_of(entry, pool.facts) for entry in entries}
    methods = {method.name: method for family in families.values() for method in family}
    stored = _without_doubles(list(methods.values()))
    conditions = settings_of(recipe, pool.facts)
    store = ImageStore(folder, conditions, recipe.prompts, stock_of(pool.facts), list(stored.values()))
    with progress("Batches, all methods in turn") as update:
        for there, total in fill(store, pool, batch_size):
            update(there, total)
    results, no_images = rows(store, pool, batch_size)
    some = store.images(STOCK, GRID_IMAGES)
    errors = pool.ask(precision_errors, some, recipe.prompts[: len(some)])
    stored_as = {name: stored[method.identity].name for name, method in methods.items()}
    with_stock = {STOCK: store.stock} | methods
    further = _merged(_flops(pool, with_stock), _said(families, entries, recipe.metrics))
    points = {
        name: _point(method, results[stored_as.get(name, STOCK)], pool.facts, further.get(name, {}))
        for name, method in with_stock.items()
        if stored_as.get(name, STOCK) in results
    }
    flaws = {name: row.failure for name, row in results.items() if row.failure}
    names_of = _names_with_images(families, points)
    all_failures, plain_by = no_images | flaws, _plain_by(entries, recipe.metrics)
    return Evaluation(recipe, conditions, names_of, points, all_failures, no_images, errors, store, stored_as, plain_by)


def _flops(pool: Pool, methods: Mapping[str, Method]) -> dict[str, dict[str, float]]:
    """Return name of a method -> its share of stock's FLOPs, for those whose FLOPs can be counted."""
    counted = {name: method.schedule for name, method in methods.items() if method.flops_known}
    shares = pool.ask(flop_shares, list(counted.values()))
    return {name: {FLOPS: share} for name, share in zip(counted, shares, strict=True) if share is not None}


def flop_shares(evaluator: Evaluator, schedules: Sequence[Schedule]) -> list[float | None]:
    """Return the FLOPs of the UNet by each schedule as a share of stock's; None if they cannot be counted."""
    pipe = evaluator.pipe
    try:
        shape = sample_shape(pipe, evaluator.sampling, 1)
        return [flop_share(pipe.unet, s, sample_shape=shape, calls=evaluator.calls) for s in schedules]
    except DatoError:
        return [None] * len(schedules)


def title_of(family: str) -> str:
    """Return the title of a family of `FAMILIES`. Entries need other labels."""
    return FAMILIES[family][0]


def _steps_of(entries: Sequence[Entry], reference: int) -> set[int]:
    """Return the numbers of steps of stock's baselines, and those that all points of these fronts are meant for."""
    fronts = [entry.strategy for entry in entries if isinstance(entry.strategy, Front)]
    of_points = {steps_of_point(point, front, reference) for front in fronts for point in front.points}
    return of_points | set(fewer_steps(reference))


def _methods_of(entry: Entry, facts: Facts) -> list[Method]:
    if isinstance(entry.strategy, Front):
        return of_front(entry.strategy, entry.label, facts, entry.points)
    return [of_schedule(entry.strategy, entry.label, facts)]


def _without_doubles(methods: Sequence[Method]) -> dict[tuple[str, Schedule], Method]:
    """Return the methods by identity. Of methods that give equal images only the first stays."""
    return {method.identity: method for method in reversed(methods)}


def _names_with_images(families: Families, points: Mapping[str, Point]) -> dict[str, list[str]]:
    """Return the names of the methods that gave images, by family; families without any are left out."""
    names = {title: [m.name for m in methods if m.name in points] for title, methods in families.items()}
    return {title: family for title, family in names.items() if family}


def _said(families: Families, entries: Sequence[Entry], metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return name of a method -> what its front says of it."""
    return {
        method.name: said_of(point, entry.strategy, metrics)
        for entry in entries
        if isinstance(entry.strategy, Front)
        for method, point in zip(families[entry.label], entry.points.values(), strict=True)
    }


def _merged(*tables: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return one table of metrics by name of tables of different metrics."""
    return {
        name: {metric: value for table in tables for metric, value in table.get(name, {}).items()}
        for name in dict.fromkeys(name for table in tables for name in table)
    }


def _plain_by(entries: Sequence[Entry], metrics: Sequence[str]) -> str | None:
    """Return the metric for plain steps: the first front's objective if it is measured, else PSNR, else the first."""
    objectives = [objective_of(entry.strategy) for entry in entries if isinstance(entry.strategy, Front)]
    return next((name for name in (*objectives, "psnr") if name in metrics), None)


def _point(method: Method, row: Row, facts: Facts, further: Mapping[str, float]) -> Point:
    """Return what was measured of a method as a point, with further metrics."""
    metrics = row.metrics | {"unet_ms": row.unet_ms} | further
    if row.peak_bytes:
        metrics["peak_mb"] = row.peak_bytes / 2**20
        metrics[TOTAL_MEMORY] = (row.peak_bytes + facts.weights_bytes) / 2**20
    steps, quality = facts.steps_of[len(method.schedule)], next(iter(row.metrics.values()))
    return Point(method.schedule, quality, row.latency_ms, row.speedup, metrics, steps)
