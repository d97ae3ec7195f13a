"""Comparing kinds of search: the hypervolume that each reaches, for the UNet calls that it spends.

All searches use one study, so a schedule that two of them ask for is generated once. Each search has its own `Account`
of what it would have spent alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from dato import emoji_sd
from dato.emoji_sd import EMBEDDED
from dato.errors import DatoError
from dato.evaluation import baselines
from dato.evaluation.pool import InProcess, Recipe
from dato.evaluation.racing import expected_if_beaten, rival_for, rivals_of
from dato.evaluation.rules import whole_calls
from dato.experiments.compared_searches import PLANNED, SEARCHES, WIDE
from dato.experiments.progress import Progress, counting, silent
from dato.generation.sampling import Sampling
from dato.point import Point, non_dominated
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.search.adviser import Advice
from dato.search.guided import Evolution, Trials, evenly, guided_search, per_octave
from dato.search.guided_course import PLANS, SEEDS_TO_AN_OCTAVE
from dato.search.hypervolume import Scale, by_evaluation
from dato.search.nsga2 import search
from dato.search.presets import DEPTH_PRESETS
from dato.search.rule_choice import best_of_each, rules_of
from dato.search.run_folder import Folder
from dato.search.spaces import DepthSpace
from dato.search.study import Study
from dato.utils.hardware import versions

WORST, BEST = 20.0, 100.0  # dB of the reference point, and of images equal to stock's
SHARES = (1.0, 0.15)  # of stock's time, of the reference points
OTHER_SEED = 1000
GROWING = {"warmup": 2, "cooldown": 2, "growth": 1.25}  # what the growing rules have beside even ones


@dataclass(frozen=True)
class ComparisonSettings:
    """What is compared.

    Attributes:
        searches: Names in `SEARCHES`.
        repeats: Seeds 0, 1, ... of each search.
        candidates: Number of candidates of each search but the papers'.
        images: Images (prompts) for each candidate.
        held_out: Number of other prompts, on which the fronts are judged again.
        steps: PLMS steps.
        guidance_scale: Classifier-free guidance.
        device: Where the embedded model runs.

    Raises:
        DatoError: if a search is unknown.
    """

    searches: tuple[str, ...] = tuple(SEARCHES)
    repeats: int = 5
    candidates: int = 45
    images: int = 4
    held_out: int = 8
    steps: int = 50
    guidance_scale: float = 3.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in self.searches:
            if name not in SEARCHES:
                raise DatoError(f"unknown search {name!r}; known are {'; '.join(SEARCHES)}")

    def conditions(self, hardware: Any) -> dict[str, Any]:
        """Return what the numbers depend on, as JSON values."""
        return {
            "model": EMBEDDED,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "images": self.images,
            "held_out": self.held_out,
            "candidates": self.candidates,
            "worst": WORST,
            "hardware": hardware,
            "versions": versions("dato", "torch", "diffusers", "pymoo"),
        }


@dataclass(frozen=True)
class Comparison:
    """What a comparison gave.

    Attributes:
        conditions: What the numbers depend on, as JSON values.
        rows: For each search and seed `search`, `seed`, `candidates`, `unet_calls`, `points`, hypervolumes on the
            search's and on held-out prompts, `curve` and `front`, as JSON values.
    """

    conditions: dict[str, Any]
    rows: list[dict[str, Any]]


def compare_searches(settings: ComparisonSettings, folder: Path, progress: Progress = silent) -> Comparison:
    """Run kinds of search on the embedded model, several seeds each, and judge their fronts on held-out prompts.

    The objectives are PSNR to stock and the latency by one table for all.

    Args:
        settings: What is compared.
        folder: Of the journals. What they hold is not generated again.
        progress: Shows how far it is.
    """
    sampling = Sampling(settings.steps, settings.guidance_scale, batch_size=settings.images)
    prompts = emoji_sd.prompts("search")
    other = replace(sampling, seed=OTHER_SEED)
    with ExitStack() as stack:
        with progress("Loading"):
            searched = stack.enter_context(
                _study(folder / "search", prompts[: settings.images], sampling, settings.device)
            )
            held_out = stack.enter_context(
                _study(
                    folder / "held-out",
                    emoji_sd.prompts("evaluation")[: settings.held_out],
                    other,
                    settings.device,
                )
            )
        # The error model is measured on a prompt of its own.
        judging = _Judging(searched, held_out, prompts[settings.images : settings.images + 1])
        accounts = judging.search(settings, progress)
        again = judging.judge_again(accounts, progress)
        rows = [judging.row(name, seed, account, again[name, seed]) for (name, seed), account in accounts.items()]
        return Comparison(settings.conditions(searched.pool.facts.hardware), rows)


Key = tuple[str, int]  # (search, seed)


@dataclass
class _Judging:
    """The studies that all searches share.

    Attributes:
        searched: Judges on the prompts of the search.
        held_out: Judges on other prompts.
        model_prompts: The prompts that the error model is measured on.
    """

    searched: Study
    held_out: Study
    model_prompts: Sequence[str]

    def search(self, settings: ComparisonSettings, progress: Progress) -> dict[Key, Account]:
        facts = self.searched.pool.facts
        narrow = DepthSpace([facts.calls], facts.rungs, [0, 1])
        wide = DepthSpace([facts.calls], facts.rungs, [0, 1, 2, 3], (0, 1), "aligned")
        spaces = {WIDE: wide, "guided": DepthSpace([facts.calls], facts.rungs, [0], (0, 1), order_by_call=True)}
        spaces["rules"] = DepthSpace([facts.calls], facts.rungs, [0, 1], (0, 1))
        with progress("Measuring the latency table") as update:
            examples = [schedule for space in spaces.values() for schedule in space.examples()]
            table = self.searched.measured_table(examples, update)
        for study in (self.searched, self.held_out):
            study.use_table(table)
        advice = {}
        for name, depths in PLANNED.items():
            if name in settings.searches:
                with progress("Measuring the sensitivity model"):
                    models = self.searched.sensitivity([settings.steps], depths, self.model_prompts)
                advice[name] = Advice(models, table)
        accounts = {}
        with progress("Searches") as update:
            advance = counting(update, len(settings.searches) * settings.repeats)
            for name in settings.searches:
                space = spaces.get(name, narrow)
                for seed in range(settings.repeats):
                    accounts[name, seed] = _search(
                        name, seed, settings.candidates, self.searched, space, advice.get(name)
                    )
                    advance()
        return accounts

    def judge_again(self, accounts: dict[Key, Account], progress: Progress) -> dict[Key, list[Point]]:
        """Return the points of each search's front on the held-out prompts."""
        again = {}
        with progress("Held-out prompts") as update:
            advance = counting(update, len(accounts))
            for key, account in accounts.items():
                again[key] = list(self.held_out([point.schedule for point in account.front]))
                advance()
        return again

    def row(self, name: str, seed: int, account: Account, again: Sequence[Point]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "search": name,
            "seed": seed,
            "candidates": len(account.points),
            "unet_calls": account.calls,
            "points": len(account.front),
        }
        for share in SHARES:
            scale = Scale(WORST, BEST, share)
            row[f"hypervolume at {share:g}"] = by_evaluation(account.points, scale)[-1]
            row[f"held-out at {share:g}"] = by_evaluation(again, scale)[-1]
        row["curve"] = account.curve(Scale(WORST, BEST, SHARES[-1]))
        stock_ms = self.searched.table.predict(self.searched.stock.point.schedule)
        row["front"] = [
            [p.latency_ms / stock_ms, p.quality, a.quality] for p, a in zip(account.front, again, strict=True)
        ]
        return row


@contextmanager
def _study(folder: Path, prompts: Sequence[str], sampling: Sampling, device: str) -> Iterator[Study]:
    """Open a study of one set of prompts, for a `with` block."""
    recipe = Recipe(EMBEDDED, device, "float32", "plms", tuple(prompts), sampling, (), ("psnr",))
    study = Study(Folder(folder), InProcess(recipe.evaluator()))
    settings = {
        "prompts": list(prompts),
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "seed": sampling.seed,
    }
    try:
        study.begin("compare", {}, settings, Pruning())
        yield study
    finally:
        study.close()


def _search(name: str, seed: int, candidates: int, study: Study, space: DepthSpace, advice: Advice | None) -> Account:
    """Run one search to its end, and return its account."""
    raced = name in ("raced", "planned", WIDE)
    account = Account(study, max(1, len(study.stock.images) // 2) if raced else None)
    if name == "paper":
        list(search(space, account, DEPTH_PRESETS["paper"], seed=seed))
        return account
    if name == "rules":
        list(account(_rules(space)))
        return account
    if name == "guided":
        _guided(seed, candidates, account, space, advice)
        return account
    preset = replace(DEPTH_PRESETS["quick"], pop_size=candidates // 3, generations=3)
    begin = baselines.seeds(space.calls, space.rungs, space.orders, space.forecast, preset.pop_size)
    options: dict[str, Any] = {}
    if advice is not None:
        account.calls = advice.unet_calls
        begin = advice.plans(space, preset.pop_size)
        options["adviser"] = Advice(advice.models, advice.table)
    list(search(space, account, preset, seed=seed, seeds=begin, **options))
    return account


def _rules(space: DepthSpace) -> list[Schedule]:
    """Return the rules that are compared: they need no search, so every seed has the same ones."""
    calls, rungs = max(space.calls), space.rungs
    return [
        Schedule.spread(calls, whole, depth, order, rungs=rungs, **shape).canonical()
        for whole in whole_calls(calls)
        for depth, order, shape in product((0, 1), (0, 1), ({}, GROWING))
    ]


def _guided(seed: int, candidates: int, account: Account, space: DepthSpace, advice: Advice) -> None:
    """Run a guided search. It spends what so many candidates cost that are spread evenly over the speed-ups."""
    study, preset, images = account.study, DEPTH_PRESETS["fast"], len(account.study.stock.images)
    stock_ms = study.table.predict(study.stock.point.schedule)
    account.calls = advice.unet_calls
    speedups = evenly(preset.speedups, candidates)[:-1]
    trials = Trials(preset.speedups, stock_ms, lambda point: images * point.latency_ms / stock_ms, images)
    adviser = Advice(advice.models, advice.table)
    every = rules_of(space)
    octaves = per_octave(preset.speedups, SEEDS_TO_AN_OCTAVE)
    seeds = best_of_each(every, adviser.guess_all(every), stock_ms, octaves)
    evolution = Evolution(space, adviser, trials, [*seeds, *adviser.plans(space, PLANS)])
    budget = images * sum(1 / speedup for speedup in speedups)
    list(guided_search(evolution, account, seed=seed, budget=budget))


@dataclass
class Account:
    """One search's use of a shared study. It is what the search gets as its `ask`.

    A race is simulated. The study has all images of a candidate. If its first images would have been enough to give it
    up, the search gets the point that a real race would have given, and only those images are counted.

    Attributes:
        study: Judges the candidates, with a latency table and without a race.
        race: After how many images a candidate may be given up; None: never.
        calls: What the search has spent so far, in whole UNet calls of one image.
        points: The points that the search got, in order.
        spent: `calls` after each of them.
    """

    study: Study
    race: int | None = None
    calls: float = 0.0
    points: list[Point] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    _judged_whole: dict[Schedule, Point] = field(default_factory=dict)

    def __call__(self, schedules: Sequence[Schedule]) -> Iterator[Point]:
        """See `dato.search.nsga2.search`."""
        judged, table = self.study.judged, self.study.table
        front = non_dominated(self._judged_whole.values())
        rivals = rivals_of([(p.latency_ms, judged[p.schedule].per_image) for p in front]) if self.race else ()
        told = {point.schedule: point for point in self.points}
        for point in self.study(schedules):
            if point.schedule in told:  # asking again costs nothing
                yield told[point.schedule]
                continue
            values = judged[point.schedule].per_image
            rival, images, expected = rival_for(point.latency_ms, rivals), len(values), None
            if rival is not None and self.race < len(values):
                expected = expected_if_beaten(values[: self.race], rival)
            if expected is None:
                self._judged_whole[point.schedule] = point
            else:
                images, point = self.race, replace(point, quality=expected)
            self.calls += images * table.predict_unet(point.schedule) / table.stock
            told[point.schedule] = point
            self.points.append(point)
            self.spent.append(self.calls)
            yield point

    @property
    def front(self) -> tuple[Point, ...]:
        """The non-dominated points among the candidates that got all their images."""
        return non_dominated(self._judged_whole.values())

    def curve(self, scale: Scale) -> list[tuple[float, float]]:
        """Return (calls spent, hypervolume) after each candidate."""
        return list(zip(self.spent, by_evaluation(self.points, scale), strict=True))
