"""The course of a search, step by step, from the latency table to the front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dato.errors import DatoError
from dato.evaluation.evaluator import precision_errors
from dato.front import Front
from dato.metrics import shown
from dato.point import Point, competing, without_equals
from dato.prediction.latency_table import LatencyTable, is_stock
from dato.schedule import Schedule
from dato.search.adviser import Advice
from dato.search.candidate_timing import check_of
from dato.search.nsga2 import first_generation, search
from dato.search.prepare import PreparedSearch
from dato.search.problem import SearchProblem
from dato.search.progress import SearchProgress
from dato.search.spaces import DepthSpace
from dato.search.study import Study
from dato.utils.hardware import versions


class _Stopped(Exception):
    """The progress object has stopped the final timing."""


class Course:
    """One course of a search, step by step.

    Attributes:
        conditions: Of the front. The steps add what they find out.
        searched: Schedules that the evolution has asked for.
        finished: Whether nothing stopped it so far.
    """

    def __init__(
        self,
        prepared: PreparedSearch,
        problem: SearchProblem,
        study: Study,
        progress: SearchProgress,
        conditions: dict[str, Any],
    ) -> None:
        self.prepared, self.problem, self.study, self.progress = prepared, problem, study, progress
        self.conditions = conditions
        self.searched: list[Schedule] = []
        self.finished = True

    def front(self) -> Front:
        """Take all steps and return the front."""
        space, by_table = self.problem.space, self.prepared.timing == "table"
        advised = self.prepared.preset.advised and isinstance(space, DepthSpace) and space.can_be_planned
        table = self._measure_table(by_table) if by_table or advised else None
        self._generate_stock()
        advice = self._measure_advice(space, table) if advised else None
        seeds, adviser = self.problem.seeds, None
        if advice is not None:
            plans = advice.plans(space, self.prepared.preset.pop_size // len(space.seed_ratios))
            seeds = space.also_pruned(plans)
            # The models do not know what pruning does to images. So with ratios they only plan the first depths.
            adviser = advice if len(space.ratios) == 1 else None
        with self.progress.running():
            self._judge_references()
            self._evolve([*self.problem.warm_start.schedules, *seeds], adviser)
            best = self._best()
            baseline, timed, rounds = self._time_side_by_side(best)
        self._warn(best, baseline, timed, rounds)
        return self._conclude(baseline, timed, rounds)

    def _measure_table(self, used: bool) -> LatencyTable:
        """Measure the latency table, or read it from the journal. If it is used, latencies are predicted by it."""
        with self.progress.status("Measuring the latency table") as progress:
            table = self.study.measured_table(self._kinds_to_time(), progress)
        self.progress.note(f"Latency table: {len(table.calls)} kinds of call measured.")
        self.conditions["latency_table"] = table.to_dict()
        if used:
            self.study.use_table(table)
        return table

    def _kinds_to_time(self) -> list[Schedule]:
        """Return schedules that together have every kind of call whose time has to be known."""
        return [*self.problem.space.examples(), *self.problem.references.values()]

    def _generate_stock(self) -> None:
        with self.progress.status("Generating stock's images"):
            stock = self.study.stock
        self.progress.note(f"Stock takes {stock.point.latency_ms:.0f} ms for an image.")
        some = stock.images[:8], self.prepared.recipe.prompts[: len(stock.images[:8])]
        if errors := self.study.pool.ask(precision_errors, *some):
            self.conditions["precision_errors"] = errors
            differences = ", ".join(f"{name} by at most {error:.2g}" for name, error in errors.items())
            self.progress.note(f"In half precision metrics differ from float32 on stock's images: {differences}.")

    def _measure_advice(self, space: DepthSpace, table: LatencyTable) -> Advice | None:
        """Measure the sensitivity models, one for each length; return None if they are not finite."""
        steps_of = self.study.pool.facts.steps_of
        with self.progress.status("Measuring the sensitivity model"):
            prompts = self.prepared.recipe.prompts[: self.prepared.preset.model_images]
            models = self.study.sensitivity([steps_of[calls] for calls in space.calls], space.depths[:-1], prompts)
        if not models:
            self.progress.note("The sensitivity model is not finite in this dtype: going on without it.")
            return None
        advice = Advice(models, table)
        self.progress.note(f"Sensitivity model: measured with {advice.unet_calls:.0f} UNet calls of one image.")
        return advice

    def _judge_references(self) -> None:
        references = list(self.problem.references.values())
        self.progress.phase("Reference schedules", len(references))
        for point in self.study(references):
            self._show(point)
            if self.progress.should_stop():
                self.finished = False
                return

    def _evolve(self, seeds: Sequence[Schedule], adviser: Advice | None) -> None:
        if not self.finished:
            return
        space, preset, seed = self.problem.space, self.prepared.preset, self.prepared.options.seed
        first = len(first_generation(space, preset, seed, seeds))
        self.progress.phase("Search", first + preset.pop_size * (preset.generations - 1))
        options = {"seed": seed, "seeds": seeds, "min_quality": self.prepared.floor, "adviser": adviser}
        for point in search(space, lambda asked: self.study(asked, race=True), preset, **options):
            self.searched.append(point.schedule)
            self._show(point)
            if self.progress.should_stop():
                self.finished = False
                return

    def _show(self, point: Point) -> None:
        new = list(self.study.judged.values())[self.study.replayed :]
        self.progress.judged(point, self._competing(self._reached()), sum(judgement.images for judgement in new))

    def _reached(self) -> list[Schedule]:
        return [*self.problem.references.values(), *self.searched]

    def _competing(self, schedules: Iterable[Schedule]) -> tuple[Point, ...]:
        """Return the front of these schedules, as far as they were judged."""
        calls, judged = self.study.pool.facts.calls, self.study.judged
        # Stock is what the front is compared with. On the front it would have the best quality of all, because it
        # equals itself.
        rivals = [s for s in dict.fromkeys(schedules) if not (is_stock(s) and len(s) == calls)]
        return competing([judged[schedule].point for schedule in rivals if schedule in judged], self.prepared.floor)

    def _best(self) -> tuple[Point, ...]:
        """Return the front by the judgements. Raise DatoError if every candidate failed."""
        # If a search was stopped while it replayed its journal, the journal has more judgements than the search has
        # read.
        best = self._competing(self._reached() if self.finished else self.study.judged)
        if not best:
            reason = next(iter(self.study.judged.values())).failure
            raise DatoError(
                f"no schedule could be judged ({reason}); if images are not finite, run the model in float32 or "
                "bfloat16 (`dtype`)"
            )
        return best

    def _time_side_by_side(self, best: Sequence[Point]) -> tuple[Point, dict[Schedule, Point], int]:
        """Return stock's point, the front's and the references' by schedule, timed again, and how many rounds it took.

        If the search or the timing is stopped, they are as they were judged, after 0 rounds.
        """
        points = {point.schedule: point for point in best}
        for schedule in self.problem.references.values():
            if schedule in self.study.judged and self.study.judged[schedule].failure is None:
                points.setdefault(schedule, self.study.judged[schedule].point)
        rounds = self.prepared.preset.rounds if self.finished else 0
        self.progress.phase("Timing side by side", rounds * (1 + len(points)))

        def advance() -> None:
            self.progress.advance()
            if self.progress.should_stop():
                raise _Stopped

        try:
            baseline, timed = self.study.retime(points, rounds, advance)
        except _Stopped:
            self.finished, rounds = False, 0
            baseline, timed = self.study.retime(points, rounds, advance)
        return baseline, dict(zip(points, timed, strict=True)), rounds

    def _warn(self, best: Sequence[Point], baseline: Point, timed: Mapping[Schedule, Point], rounds: int) -> None:
        floor = self.prepared.floor
        if floor is not None and best[-1].quality < floor:
            quality = shown(self.prepared.recipe.metrics[0], best[-1].quality)
            self.progress.note(f"warning: no schedule reached `min_quality`; the best has {quality:g}")
        if rounds and self.prepared.timing == "table":
            self.progress.note(f"{check_of(baseline, list(timed.values()))}")
        if failures := self._failures():
            reasons = ", ".join(f"{count} x {reason}" for reason, count in failures.items())
            self.progress.note(f"Candidates that failed, and count as infeasible: {reasons}")

    def _failures(self) -> Counter[str]:
        return Counter(judgement.failure for judgement in self.study.judged.values() if judgement.failure is not None)

    def _may_be_on_the_front(self, schedule: Schedule) -> bool:
        return True

    def _named(self) -> Mapping[str, Schedule]:
        """Return the schedules that the front keeps as references, by name."""
        return self.problem.references

    def _conclude(self, baseline: Point, timed: Mapping[Schedule, Point], rounds: int) -> Front:
        judged = self.study.judged
        self.conditions["hardware"] = self.study.pool.facts.hardware
        self.conditions["versions"] = versions("dato", "torch", "diffusers", "transformers", "pymoo")
        self.conditions["search"] |= {
            "rounds": rounds,
            "finished": self.finished,
            "candidates": len(judged),
            "images": len(self.study.stock.images) + sum(judgement.images for judgement in judged.values()),
            **({} if not self.study.validated_images else {"validation_images": self.study.validated_images}),
            "failures": dict(self._failures()),
            **({} if self.prepared.kind == "depth" else {"pruning": self.problem.pruning.to_dict()}),
        }
        rivals = [point for schedule, point in timed.items() if self._may_be_on_the_front(schedule)]
        return Front(
            without_equals(competing(rivals, self.prepared.floor)),
            replace(baseline, schedule=replace(baseline.schedule, pruning=self.problem.pruning)),
            {name: timed[s] for name, s in self._named().items() if s in timed},
            self.conditions,
        )
