"""The course of a guided search: predict, judge the most promising, validate the finalists.

The budget is in minutes. What the search spends before its candidates is measured, what validation will take is
reserved, and the rest is for candidates. It is counted in images of stock, so a search that is resumed takes the same
decisions on a machine of any speed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import pairwise

from dato.errors import DatoError
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.rules import rule_name
from dato.front import Front
from dato.point import Point, competing, without_equals
from dato.prediction.latency_table import LatencyTable, is_stock
from dato.schedule import Schedule
from dato.search.adviser import Advice
from dato.search.budget import Budget, divided
from dato.search.course import Course
from dato.search.guided import Evolution, Trials, evenly, guided_search, per_octave
from dato.search.rule_choice import best_of_each, corrected, rules_of, worth_validating
from dato.unet.speedup_rule import rule

START = 30.0  # seconds that a search takes before this course begins and after it ends: loading, the page
PLANS = 14  # schedules by the planner that the evolution begins from
SPEEDUPS_TO_AN_OCTAVE = 1  # for which the rule's own schedule (`dato.rule`) is validated
FURTHER_SHARE = 0.3  # what further rules may cost, as a share of what the finalists may
SEEDS_TO_AN_OCTAVE = 12  # rules that the evolution begins from
THINKING = 0.1  # share of the time that predictions take
# What is generated on average before a rival is given up: this share of a rule's images, so many of a reference's.
RULES_SHARE, REFERENCE_IMAGES = 0.7, 3.0


class GuidedCourse(Course):
    """One course of a guided search.

    Its references are judged by the validation prompts only, and only those that may say something of the front.
    """

    _validated_rules: Sequence[Schedule] = ()

    def front(self) -> Front:
        """Take all steps and return the front."""
        began = time.monotonic()
        table = self._measure_table(self.prepared.timing == "table")
        self._generate_stock()
        advice = self._measure_advice(self.problem.space, table)
        if advice is None:
            raise DatoError(
                "predictions are not finite in this dtype, and this preset needs them: run the model in float32 or "
                "bfloat16 (`dtype`), or use `preset` quick"
            )
        seeds = [*self._rules_for_speedups, *self._seeds(advice)]
        budget = self.study.budget(lambda: self._budget(time.monotonic() - began, table))
        most = self._cost_of_finalists if budget.finalists is None else budget.finalists
        with self.progress.running():
            evolution = self._guide(advice, [*seeds, *advice.plans(self.problem.space, PLANS)], budget.candidates)
            finalists = self._finalists(evolution, most)
            points = self._validate(advice, finalists)
            baseline, rounds = self.study.validated_stock(), self.prepared.preset.rounds if self.finished else 0
            if rounds:  # rivals too: if only the front were timed again, its speed-ups would not compare with theirs
                baseline, points, rounds = self._timed_again(baseline, points)
        self._warn(competing(points.values(), self.prepared.floor), baseline, points, rounds)
        return self._conclude(baseline, points, rounds)

    def _timed_again(self, baseline: Point, points: dict[Schedule, Point]) -> tuple[Point, dict[Schedule, Point], int]:
        """Return stock's point and all others, timed side by side, and how many rounds it took; 0 if it was stopped."""
        stock, timed, rounds = self._time_side_by_side(list(points.values()))
        if not rounds:
            return baseline, points, 0
        measured = {name: stock.metrics[name] for name in ("unet_ms", "measured_ms")}
        baseline = replace(baseline, latency_ms=stock.latency_ms, metrics={**baseline.metrics, **measured})
        return baseline, timed, rounds

    def _kinds_to_time(self) -> list[Schedule]:
        return [*super()._kinds_to_time(), *self._rules_for_speedups]

    @cached_property
    def _rules_for_speedups(self) -> list[Schedule]:
        """The rule's schedules (`dato.rule`) for speed-ups in the middle of each octave of the range."""
        ends = per_octave(self.prepared.preset.speedups, SPEEDUPS_TO_AN_OCTAVE)
        speedups = [math.sqrt(low * high) for low, high in pairwise(ends)]
        chosen = self.study.pool.ask(rules_for, self.study.pool.facts.calls, [s for s in speedups if s > 1])
        return [schedule for schedule in dict.fromkeys(chosen) if not is_stock(schedule)]

    @cached_property
    def _rules(self) -> list[Schedule]:
        return [schedule for schedule in rules_of(self.problem.space) if not is_stock(schedule)]

    def _seeds(self, advice: Advice) -> list[Schedule]:
        """Return the rules of best predicted quality before any trial, for every speed-up."""
        speedups = per_octave(self.prepared.preset.speedups, SEEDS_TO_AN_OCTAVE)
        return best_of_each(self._rules, advice.guess_all(self._rules), self.study.stock.point.latency_ms, speedups)

    def _further_rules(self, advice: Advice, points: Mapping[Schedule, Point]) -> list[Schedule]:
        """Return the rules that are expected to add most to what was validated; see `worth_validating`.

        Args:
            advice: Predicts their qualities. They are corrected by those of `dato.rule`'s schedules.
            points: What was validated, with `dato.rule`'s schedules.
        """
        known = [schedule for schedule in self._rules_for_speedups if schedule in points]  # others have failed
        every = [schedule for schedule in self._rules if schedule not in points]
        quality, latency = advice.guess_all(every)
        quality = corrected((quality, latency), advice.guess_all(known), [points[s].quality for s in known])
        stock_ms, speedups = self.study.stock.point.latency_ms, self.prepared.preset.speedups
        budget = self._cost_of_further_rules
        return worth_validating(every, (quality, latency), points.values(), stock_ms, speedups, budget)

    def _budget(self, seconds: float, table: LatencyTable) -> Budget:
        """Return what the search may spend.

        Args:
            seconds: What was spent so far.
            table: Predicts latencies.
        """
        recipe, preset = self.prepared.recipe, self.prepared.preset
        stock, wanted = self.study.stock.point, self._cost_of_finalists
        stock_ms = stock.latency_ms
        # A table of one round may be off by a tenth. What was measured of stock's images is what images will take.
        seconds_per_image = stock.metrics["measured_ms"] / 1000
        references = sum(table.predict(s) for s in self._references()) / stock_ms
        rules_cost = sum(table.predict(s) for s in self._rules_for_speedups) / stock_ms
        rules_cost += self._cost_of_further_rules
        images, timed = len(recipe.validation), preset.rounds * preset.batch_size
        others = images * (1 + rules_cost * RULES_SHARE) + references * REFERENCE_IMAGES
        others += timed * (1 + rules_cost + references)
        left = (preset.minutes * 60 - START - seconds) / seconds_per_image * (1 - THINKING)
        budget, too_much = divided(left - others, wanted, prompts=len(recipe.prompts), images=images + timed)
        if too_much:
            self.progress.note(
                f"warning: {preset.minutes:g} minutes are too few here; the search will take about "
                f"{preset.minutes + too_much * seconds_per_image / 60:.1f}. Give more `minutes`, or fewer `images` and "
                "`validation` prompts."
            )
        elif budget.finalists < wanted:
            self.progress.note(
                f"{preset.minutes:g} minutes allow {budget.finalists / wanted:.0%} of the usual points here. More "
                "`minutes` give more points."
            )
        return budget

    @property
    def _cost_of_finalists(self) -> float:
        """What one image of each finalist costs, in images of stock, if their speed-ups are spaced evenly."""
        preset = self.prepared.preset
        return sum(1 / speedup for speedup in evenly(preset.speedups, preset.finalists)[:-1])

    @property
    def _cost_of_further_rules(self) -> float:
        """What one image of each further rule may cost together, in images of stock."""
        return self._cost_of_finalists * FURTHER_SHARE

    def _references(self) -> list[Schedule]:
        """Return the baselines that are about as fast as the front, and stock with fewer steps if it is slower."""
        low, high = self.prepared.preset.speedups
        stock_ms = self.study.stock.point.latency_ms
        speedups = {s: stock_ms / self.study.table.predict(s) for s in self.problem.references.values()}
        return [s for s, speedup in speedups.items() if (is_stock(s) or low / 1.1 <= speedup) and speedup <= high * 1.1]

    def _guide(self, advice: Advice, seeds: Sequence[Schedule], budget: float) -> Evolution:
        """Judge candidates until the budget is spent."""
        stock_ms, judged = self.study.stock.point.latency_ms, self.study.judged

        def cost_of(point: Point) -> float:
            share = min(1.0, point.latency_ms / stock_ms)  # a candidate that failed counts as stock
            return share * judged[point.schedule].images

        low, high = self.prepared.preset.speedups
        images = len(self.prepared.recipe.prompts)
        trials = Trials((low, high), stock_ms, cost_of, images)
        usual = images / math.sqrt(low * high)  # what a candidate costs
        self.progress.phase("Search", max(1, round(budget / usual)))
        evolution = Evolution(self.problem.space, advice, trials, seeds)
        seed = self.prepared.options.seed
        first = self.problem.warm_start.schedules
        judge = partial(self.study, race=True)
        for point in guided_search(evolution, judge, seed=seed, budget=budget, first=first):
            self.searched.append(point.schedule)
            self._show(point)
            if self.progress.should_stop():
                self.finished = False
                break
        return evolution

    def _finalists(self, evolution: Evolution, most: float) -> list[Schedule]:
        """Return the schedules to validate, spread over the speed-ups.

        They are the front's, and where the budget was too small for any trial, those of best predicted quality. If
        they cost too much, the slow ones that are closest to their neighbours are left out first.

        Args:
            evolution: The population after the last trial.
            most: What one image of each may cost, in images of stock.
        """
        stock_ms = self.study.stock.point.latency_ms
        front = without_equals(self._competing(self.searched if self.finished else self.study.judged))
        chosen = [(point.latency_ms, point.schedule) for point in front]
        if self.finished:
            chosen += evolution.untried()
        chosen.sort(key=lambda one: one[0])
        while len(chosen) > 2 and sum(ms for ms, _ in chosen) > most * stock_ms:
            gaps = [math.log(b[0] / a[0]) / ms[0] for a, ms, b in zip(chosen, chosen[1:], chosen[2:], strict=False)]
            del chosen[1 + min(range(len(gaps)), key=gaps.__getitem__)]
        return [schedule for _, schedule in chosen] or [point.schedule for point in self._best()]

    def _may_be_on_the_front(self, schedule: Schedule) -> bool:
        # Of one that was given up, only the expected quality is known. Timed again it may seem to be the fastest.
        return self.study.is_validated(schedule)

    def _named(self) -> Mapping[str, Schedule]:
        """Return the references, and the rules that were validated."""
        named, times = {**self.problem.references}, Counter[str]()
        for schedule in self._validated_rules:
            if schedule not in named.values():
                name = rule_name(schedule)
                times[name] += 1
                named[name if times[name] == 1 else f"{name} ({times[name]})"] = schedule
        return named

    def _validate(self, advice: Advice, finalists: Sequence[Schedule]) -> dict[Schedule, Point]:
        """Return the points of finalists, rules and references by the validation prompts.

        The further rules are chosen when the finalists are validated. Finalists were evolved on predictions, so these
        are too good. Predictions alone cannot tell which rules are better than them.
        """
        own = self._rules_for_speedups
        rivals = list(dict.fromkeys([*self._references(), *own])) if self.finished else []
        self.progress.phase("Validation", 1 + len(finalists) + len(rivals))
        self.study.validated_stock()
        self.progress.advance()
        points = self._points(finalists, race=False)
        if self.finished:
            self._validated_rules = own
            points |= self._points(rivals, race=True)
        if self.finished and (further := self._further_rules(advice, points)):
            self._validated_rules = [*own, *further]
            self.progress.phase("Validation of rules", len(further))
            points |= self._points(further, race=True)
        return points

    def _points(self, schedules: Sequence[Schedule], race: bool) -> dict[Schedule, Point]:
        """Return the points of schedules that did not fail, until the search is stopped."""
        points = {}
        for judgement in self.study.validate(schedules, race):
            self.progress.advance()
            if judgement.failure is None:
                point = judgement.point
                if point.schedule in self.study.judged:
                    quality = self.study.judged[point.schedule].point.quality
                    point = replace(point, metrics={**point.metrics, "search_quality": quality})
                points[point.schedule] = point
            if self.progress.should_stop():
                self.finished = False
                break
        return points


def rules_for(evaluator: Evaluator, calls: int, speedups: Sequence[float]) -> list[Schedule]:
    """Return the schedules that `dato.apply_patch(pipe, speedup=...)` would run here.

    Args:
        evaluator: It has the pipeline.
        calls: UNet calls of one generation.
        speedups: One for each schedule.
    """
    guidance_scale = evaluator.sampling.guidance_scale
    return [rule(evaluator.pipe, calls, speedup, guidance_scale=guidance_scale).canonical() for speedup in speedups]
