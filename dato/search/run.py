"""One run of a search: from a recipe to a front on disk, gone on from where it was left."""

from __future__ import annotations

import contextlib
import hashlib
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from dato.cli.display import Display
from dato.cli.latency import HOW, check_of
from dato.errors import DatoError
from dato.evaluation.evaluator import precision_errors
from dato.evaluation.pool import Facts, Recipe
from dato.evaluation.ray_pool import make_pool
from dato.front import Front
from dato.metrics import shown
from dato.point import Point, competing
from dato.prediction.latency_table import is_stock
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.search.adviser import Advice
from dato.search.nsga2 import Space, first_generation, search
from dato.search.presets import Preset
from dato.search.run_folder import Folder
from dato.search.spaces import DepthSpace
from dato.search.study import Study
from dato.utils.hardware import versions

# Of a preset, what stands elsewhere in a front's conditions.
_ELSEWHERE = ("steps", "orders", "forecast", "scheduler", "guidance_scale", "alphabet")


@dataclass(frozen=True)
class Plan:
    """What is searched.

    Attributes:
        space: The schedules to choose from.
        references: Named schedules that compete too.
        seeds: Schedules to begin from.
        pruning: The settings that ratios are meant with.
        settings: What a front's conditions say of the space.
    """

    space: Space
    references: Mapping[str, Schedule]
    seeds: Sequence[Schedule]
    pruning: Pruning
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Order:
    """What a command asks for.

    Attributes:
        kind: "depth", "ratio" or "joint".
        folder: Where everything goes.
        options: The command line's, for who resumes it.
        recipe: What judges schedules.
        preset: The search's settings.
        plan: Makes the plan, once the pipeline is known.
        timing: "table" or "measured".
        seed: Fixes everything random.
        floor: The least quality that counts, as `Point.quality`.
        min_quality: The same as the user calls it.
        rounds: The front is timed again so often.
        workers: How many evaluators.
        address: Of a Ray cluster.
        files: What metrics are made from, by the names of `Setup`, where the user named it.
    """

    kind: str
    folder: Folder
    options: Mapping[str, Any]
    recipe: Recipe
    preset: Preset
    plan: Callable[[Facts], Plan]
    timing: str
    seed: int
    floor: float | None
    min_quality: float | None
    rounds: int
    workers: int = 1
    address: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def conditions(self, facts: Facts, plan: Plan) -> dict[str, Any]:
        """Everything that is needed to trust and repeat the search, but for what it will find out itself."""
        recipe, sampling = self.recipe, self.recipe.sampling
        texts = list(recipe.prompts)
        settings = {k: v for k, v in asdict(self.preset).items() if k not in _ELSEWHERE}
        return {
            "model": recipe.model,
            **({} if recipe.config is None else {"config": recipe.config}),
            "dtype": recipe.dtype,
            "height": sampling.height or facts.pixels,
            "width": sampling.width or facts.pixels,
            "scheduler": facts.scheduler,
            "scheduler_name": facts.scheduler_name,
            "steps": sampling.steps,
            "calls": facts.calls,
            "guidance_scale": sampling.guidance_scale,
            "prompts": texts,
            "prompts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
            "seeds": [sampling.seed + i for i in range(len(texts))],
            "batch_size": sampling.batch_size,
            "safety_checker": False,
            "quality": recipe.metrics[0],
            **({"clip": None, "statistics": None} | dict(self.files)),
            "latency": HOW[self.timing],
            "search": settings
            | dict(plan.settings)
            | {"kind": self.kind, "min_quality": self.min_quality, "seed": self.seed},
        }


def run(order: Order, display: Display) -> tuple[Front, bool]:
    """Search, or go on with a search, and write the front; also whether the search came to its end.

    References compete for the front: a schedule that stock with fewer steps or a rival beats is not on it.

    Raises:
        DatoError: if something cannot be had, or nothing could be judged.
    """
    with contextlib.ExitStack() as stack:
        with display.status(f"Loading {order.recipe.model}"):
            judges = make_pool(order.recipe, order.workers, order.address)
            stack.callback(judges.close)
        facts = judges.facts
        plan = order.plan(facts)
        conditions = order.conditions(facts, plan)
        study = Study(order.folder, judges)
        stack.callback(study.close)
        # Where times are measured, those of another machine would not compare.
        machine = {"hardware": facts.hardware} if order.timing == "measured" else {}
        machine["device"] = torch.device(order.recipe.device).type
        study.begin(order.kind, order.options, {**conditions, **machine}, plan.pruning, order.floor)
        if study.torn:
            display.note("The journal's last line was torn, as by a crash; that candidate is judged again.")
        if study.other_versions:
            changed = ", ".join(f"{name}: {change}" for name, change in study.other_versions.items())
            display.note(f"warning: libraries have changed since the search was begun ({changed})")
        if study.replayed:
            display.note(f"Going on with {order.folder.path}: {study.replayed} candidates are known.")
        stopping = stack.enter_context(_stop_on_signals(display))
        front, finished = _search(order, plan, study, display, stopping, conditions)
        front.save(order.folder.front)
    return front, finished


def _search(
    order: Order, plan: Plan, study: Study, display: Display, stopping: Callable[[], bool], conditions: dict[str, Any]
) -> tuple[Front, bool]:
    advised = order.preset.advised and isinstance(plan.space, DepthSpace) and plan.space.can_be_planned
    if order.timing == "table" or advised:
        with display.status("Measuring the latency table") as progress:
            table = study.measured_table([*plan.space.examples(), *plan.references.values()], progress)
        display.note(f"Latency table: {len(table.calls)} kinds of call measured.")
        conditions["latency_table"] = table.to_dict()
        if order.timing == "table":
            study.use_table(table)
    with display.status("Generating stock's images"):
        stock = study.stock
    display.note(f"Stock takes {stock.point.latency_ms:.0f} ms for an image.")
    some = stock.images[:8], order.recipe.prompts[: len(stock.images[:8])]
    if errors := study.judges.ask(precision_errors, *some):
        conditions["precision_errors"] = errors
        found = ", ".join(f"{name} by at most {error:.2g}" for name, error in errors.items())
        display.note(f"In half precision metrics differ from float32 on stock's images: {found}.")
    seeds, adviser = plan.seeds, None
    if advised:
        advice = _advice(plan, study, display)
        if advice is not None:
            seeds = plan.space.also_pruned(advice.plans(plan.space, order.preset.pop_size // len(plan.space.kinds)))
            # What pruning does to images the models do not know: there they plan the depths to begin with.
            adviser = advice if len(plan.space.ratios) == 1 else None
    if stopping():
        raise KeyboardInterrupt
    searched: list[Schedule] = []

    def best(known: Iterable[Schedule]) -> tuple[Point, ...]:
        # Stock is what the front is compared with; on it, its equality with itself would outshine all others.
        unique = [s for s in dict.fromkeys(known) if not (is_stock(s) and len(s) == study.judges.facts.calls)]
        every = [study.judged[schedule].point for schedule in unique if schedule in study.judged]
        return competing(every, order.floor)

    def show(point: Point) -> None:
        new = list(study.judged.values())[study.replayed :]
        display.judged(point, best([*plan.references.values(), *searched]), sum(judgement.images for judgement in new))

    preset, finished = order.preset, True
    with display.running():
        display.phase("Reference schedules", len(plan.references))
        for point in study(list(plan.references.values())):
            show(point)
            if stopping():
                finished = False
                break
        if finished:
            first = len(first_generation(plan.space, preset, order.seed, seeds))
            display.phase("Search", first + preset.pop_size * (preset.generations - 1))
            options = {"seed": order.seed, "seeds": seeds, "min_quality": order.floor, "adviser": adviser}
            for point in search(plan.space, lambda asked: study(asked, race=True), preset, **options):
                searched.append(point.schedule)
                show(point)
                if stopping():
                    finished = False
                    break
        # Where a search was stopped while it went through its journal again, that holds more than it has reached.
        found = best([*plan.references.values(), *searched] if finished else study.judged)
        if not found:
            raise DatoError(_nothing(study))
        again = {point.schedule: point for point in found}
        for schedule in plan.references.values():
            if schedule in study.judged and study.judged[schedule].failure is None:
                again.setdefault(schedule, study.judged[schedule].point)
        rounds = order.rounds if finished else 0
        display.phase("Timing side by side", rounds * (1 + len(again)))

        def advance() -> None:
            display.advance()
            if stopping():
                raise _Stopped

        try:
            baseline, points = study.retime(again, rounds, advance)
        except _Stopped:
            finished, rounds = False, 0
            baseline, points = study.retime(again, rounds, advance)
    if order.floor is not None and found[-1].quality < order.floor:
        best_quality = shown(order.recipe.metrics[0], found[-1].quality)
        display.note(f"warning: no schedule reached --min-quality; the best has {best_quality:g}")
    if rounds and order.timing == "table":
        display.note(f"{check_of(baseline, points)}")
    timed = dict(zip(again, points, strict=True))
    failures = Counter(judgement.failure for judgement in study.judged.values() if judgement.failure is not None)
    if failures:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in failures.items())
        display.note(f"Candidates that failed, and count as infeasible: {reasons}")
    conditions["hardware"] = study.judges.facts.hardware
    conditions["versions"] = versions("dato", "torch", "diffusers", "transformers", "pymoo")
    conditions["search"] |= {
        "rounds": rounds,
        "finished": finished,
        "candidates": len(study.judged),
        "images": len(stock.images) + sum(judgement.images for judgement in study.judged.values()),
        "failures": dict(failures),
    }
    front = Front(
        competing(points, order.floor),
        replace(baseline, schedule=replace(baseline.schedule, pruning=plan.pruning)),
        {name: timed[s] for name, s in plan.references.items() if s in timed},
        conditions,
    )
    return front, finished


class _Stopped(Exception):
    """The user has stopped the final timing."""


def _advice(plan: Plan, study: Study, display: Display) -> Advice | None:
    """What the sensitivity models, one for each length, have to say; None if they could not be measured."""
    space, steps_of = plan.space, study.judges.facts.steps_of
    with display.status("Measuring the sensitivity model"):
        models = study.sensitivity([steps_of[calls] for calls in space.calls], space.depths[:-1])
    if not models:
        display.note("The sensitivity model is not finite in this dtype: going on without it.")
        return None
    advice = Advice(models, study.table)
    display.note(f"Sensitivity model: measured with {advice.unet_calls:.0f} UNet calls of one image.")
    return advice


def _nothing(study: Study) -> str:
    reason = next(iter(study.judged.values())).failure
    return f"no schedule could be judged ({reason}); images that are not finite need --dtype float32 or bfloat16"


@contextlib.contextmanager
def _stop_on_signals(display: Display) -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C (or SIGTERM) asks to stop, which the yielded function tells; twice stops at once."""
    asked = False

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        display.urgent("Stopping after this candidate; Ctrl-C once more stops at once.")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
