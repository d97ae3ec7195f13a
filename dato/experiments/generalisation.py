"""What a front is worth under other conditions than its search's: other prompts, seeds, steps, samplers, guidance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation import baselines
from dato.evaluation.pool import Pool, Recipe
from dato.evaluation.ray_pool import make_pool
from dato.experiments.held_out import Row, fill, rows, settings_of, stock_of
from dato.experiments.image_store import ImageStore
from dato.experiments.method_families import deepcache, fewer_steps, fitted, steps_of_point
from dato.experiments.progress import Progress, silent
from dato.front import Front
from dato.generation.sampling import Sampling
from dato.point import Point

OTHER_SEED = 1000
PSNR = "psnr"


@dataclass(frozen=True)
class ConditionResult:
    """The results under one condition.

    Attributes:
        condition: Its name, for example "other seeds".
        images: Number of prompts.
        rows: Name of a method -> its results: stock, the points, and the methods that need no search.
        points: The names of the points.
    """

    condition: str
    images: int
    rows: Mapping[str, Row]
    points: Sequence[str]

    def cells(self) -> dict[str, str]:
        """Return a row of a table: for each point its speed-up, its PSNR, and the best that needs no search.

        That best is among the methods that are at least as fast as the point.
        """
        cells = {"condition": self.condition, "images": f"{self.images}"}
        for name in self.points:
            point = self.rows[name]
            others = [row for other, row in self.rows.items() if other not in self.points]
            rivals = [row.metrics[PSNR] for row in others if row.speedup >= point.speedup]
            cells[f"{name}: time"] = f"{point.speedup:.2f}x"
            cells[f"{name}: dB"] = f"{point.metrics[PSNR]:.1f}"
            cells[f"{name}: best without search"] = f"{max(rivals):.1f}" if rivals else "none as fast"
        return cells

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """Return plain JSON values: name of a method -> speed-up and metrics; None for a value that is not finite."""
        return {
            name: {"speedup": row.speedup}
            | {metric: value if math.isfinite(value) else None for metric, value in row.metrics.items()}
            for name, row in self.rows.items()
        }


def generalise(
    front: Front,
    points: Mapping[str, Point],
    recipes: Mapping[str, Recipe],
    folder: Path,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    progress: Progress = silent,
) -> Iterator[ConditionResult]:
    """Judge points of a front under several conditions, beside stock with fewer steps and DeepCache's schedules.

    Args:
        front: The front.
        points: Name -> point of the front.
        recipes: Name of a condition -> what to generate, as from `recipes_of`. They measure PSNR.
        folder: Of the images, a folder in it for each condition. What it holds is not generated again.
        workers: As in `dato.evaluation.ray_pool.make_pool`.
        ray_address: As in `make_pool`.
        progress: Shows how far it is.

    Raises:
        DatoError: if something cannot be loaded, the folder holds other images, or a method gives no images.
    """
    for condition, recipe in recipes.items():
        reference = recipe.sampling.steps
        counts = {steps_of_point(point, front, reference) for point in points.values()}
        recipe = replace(recipe, steps=tuple(counts | set(baselines.fewer_steps(reference))))
        with progress(f"Loading {recipe.model}"):
            pool = make_pool(recipe, workers, ray_address)
        try:
            results = _judge(condition, recipe, pool, front, points, folder, progress)
        finally:
            pool.close()
        yield ConditionResult(condition, len(recipe.prompts), results, list(points))


def recipe_of_search(front: Front, images: int, batch_size: int, device: str = "cpu", dtype: str = "float32") -> Recipe:
    """Return a recipe that generates what the search of a front generated, from the front's conditions.

    Args:
        front: The front.
        images: The largest number of its prompts to use.
        batch_size: Images per generation.
        device: As in `Recipe`.
        dtype: As in `Recipe`.

    Raises:
        DatoError: if the front does not say with what prompts, seeds, steps and guidance it was searched.
    """
    conditions = front.conditions
    prompts, seeds = conditions.get("prompts"), conditions.get("seeds")
    has_seeds = isinstance(seeds, list) and seeds and isinstance(seeds[0], int)
    if not prompts or not has_seeds or any(name not in conditions for name in ("steps", "guidance_scale")):
        raise DatoError("the front does not say with what prompts, seeds, steps and guidance it was searched")
    sampling = Sampling(
        conditions["steps"],
        conditions["guidance_scale"],
        conditions.get("height"),
        conditions.get("width"),
        seeds[0],
        batch_size,
    )
    return Recipe(
        conditions.get("model", EMBEDDED),
        device,
        dtype,
        conditions.get("scheduler_name"),
        tuple(prompts[:images]),
        sampling,
        (),
        (PSNR,),
        config=conditions.get("config"),
        variant=conditions.get("variant"),
    )


def recipes_of(
    searched: Recipe,
    prompts: Sequence[str],
    steps: Sequence[int] = (),
    schedulers: Sequence[str] = (),
    guidance_scales: Sequence[float] = (),
) -> dict[str, Recipe]:
    """Return name -> recipe of the conditions to try.

    The first ones are the search's own, other seeds, and other prompts and seeds. Each further one differs from the
    search in prompts, seeds and one thing more.

    Args:
        searched: As from `recipe_of_search`.
        prompts: Other prompts than the search's.
        steps: Numbers of steps of the reference.
        schedulers: Samplers, by their names in `dato.samplers.SAMPLERS`.
        guidance_scales: Guidance scales.
    """
    other_seed = replace(searched, sampling=replace(searched.sampling, seed=OTHER_SEED))
    other = replace(other_seed, prompts=tuple(prompts))
    recipes = {"as searched": searched, "other seeds": other_seed, "other prompts and seeds": other}
    for count in steps:
        if count != searched.sampling.steps:
            recipes[f"{count} steps"] = replace(other, sampling=replace(other.sampling, steps=count))
    for scheduler in schedulers:
        if scheduler != searched.scheduler:
            recipes[scheduler] = replace(other, scheduler=scheduler)
    for scale in guidance_scales:
        if scale != searched.sampling.guidance_scale:
            recipes[f"guidance {scale:g}"] = replace(other, sampling=replace(other.sampling, guidance_scale=scale))
    return recipes


def _judge(
    condition: str,
    recipe: Recipe,
    pool: Pool,
    front: Front,
    points: Mapping[str, Point],
    folder: Path,
    progress: Progress,
) -> dict[str, Row]:
    """Return the results of stock, the methods that need no search, and the points, under one condition."""
    facts, batch_size = pool.facts, recipe.sampling.batch_size
    methods = fewer_steps(facts) + deepcache(facts)
    for name, point in points.items():
        calls = facts.calls_of[steps_of_point(point, front, recipe.sampling.steps)]
        methods.append(replace(fitted(name, point.schedule, calls, facts), name=name))
    settings = settings_of(recipe, facts) | {"condition": condition}
    store = ImageStore(folder / condition.replace(" ", "-"), settings, recipe.prompts, stock_of(facts), methods)
    with progress(condition) as update:
        for there, total in fill(store, pool, batch_size, memory=False):
            update(there, total)
    results, failures = rows(store, pool, batch_size)
    for name, reason in failures.items():
        raise DatoError(f"{name}: {reason}; lower the batch size")
    return results
