"""The guided search: trials go where the model sees gains, the budget is kept, and no rule beats the front."""

import math
from dataclasses import replace

import numpy as np
import pytest
from which_tests import thorough

from dato.evaluation.rules import rules
from dato.point import Point, non_dominated
from dato.schedule import Schedule
from dato.search import guided
from dato.search.guided import PATIENCE, Evolution, Trials, guided_search, quality_at
from dato.search.spaces import DepthSpace

SPACE = DepthSpace([20], 12, [0, 1], [0, 1], order_by_call=True)
STOCK_MS = 20.0


@pytest.fixture(autouse=True)
def few_generations(monkeypatch):
    """The toy's space is small, so it needs fewer generations."""
    monkeypatch.setattr(guided, "FIRST_GENERATIONS", 60)
    monkeypatch.setattr(guided, "GENERATIONS", 15)


def latency(schedule):
    return sum(1.0 if depth == 12 else 0.1 * depth for depth in schedule.depths) + 0.02


class Toy:
    """A judge and an adviser. Quality is best if the gaps between whole calls shrink towards the end."""

    def __init__(self, wrong=0.0):
        self.asked, self.told, self.wrong = [], 0, wrong

    def quality(self, schedule):
        gap, loss = 0, 0.0
        for call, (depth, _, order) in enumerate(schedule.entries):
            gap = 0 if depth == 12 else gap + 1
            loss += gap**2 * (0.3 + call / 20) * (1.2 - 0.2 * order) / (1 + depth)
        return -10 * math.log10(loss + 1e-3)

    def ask(self, schedules):
        for schedule in schedules:
            self.asked.append(schedule)
            ms = latency(schedule)
            yield Point(schedule, self.quality(schedule), ms, STOCK_MS / ms)

    def guess_all(self, schedules):
        rng = np.random.default_rng(len(schedules))
        quality = np.array([self.quality(schedule) for schedule in schedules])
        return quality + self.wrong * rng.normal(size=len(schedules)), np.array([latency(s) for s in schedules])

    def tell(self, points):
        self.told = len(points)


def trials(low=2.0, high=8.0):
    return Trials((low, high), STOCK_MS, lambda point: point.latency_ms / STOCK_MS)


def searched(toy, budget=6.0, **options):
    tried = trials()
    seeds = [rule for rule in rules([20], 12) if 2 <= STOCK_MS / latency(rule) <= 8]
    return tried, list(guided_search(Evolution(SPACE, toy, tried, seeds), toy.ask, budget=budget, **options))


def beaten(toy, points):
    """Rules that are better than the front in their class of speed-up."""
    tried, front = trials(), non_dominated(points)
    ends = [STOCK_MS / one.slowest for one in tried.classes]
    return [
        rule
        for rule in rules([20], 12)
        if 2 <= STOCK_MS / latency(rule) <= 8
        and toy.quality(rule) > quality_at(front, ends[tried.classes.index(tried.class_of(latency(rule)))])
    ]


def test_no_rule_beats_the_front_in_its_class_of_speed_up():
    toy = Toy()
    _, points = searched(toy, 12.0)
    assert not beaten(toy, points)
    assert toy.told == len(points) == len(set(toy.asked))


def test_a_front_that_a_rule_beats_is_noticed():
    """The check above can fail: an adviser that knows nothing loses to rules."""

    class Blind(Toy):
        def guess_all(self, schedules):
            return np.zeros(len(schedules)), super().guess_all(schedules)[1]

    toy = Blind()
    assert beaten(toy, searched(toy, 12.0)[1])


@pytest.mark.parametrize("budget", [1.0, *thorough(3.0, 6.0)])
def test_the_budget_is_kept(budget):
    tried, points = searched(Toy(), budget)
    assert tried.spent == pytest.approx(sum(point.latency_ms for point in points) / STOCK_MS)
    assert tried.spent < budget + 0.5  # the last trial was begun within the budget


def test_the_same_seed_and_judgements_give_the_same_points():
    assert searched(Toy(), 1.0)[1] == searched(Toy(), 1.0)[1]


def test_every_octave_gets_its_share():
    tried, _ = searched(Toy(1.0), 8.0)
    spent = [one.spent for one in tried.classes]
    assert len(spent) == 12 and min(spent) > 0 and max(spent) < 0.5 * sum(spent)
    assert tried.classes[-1].trials > tried.classes[0].trials  # fast ones cost little


def test_it_stops_where_nothing_is_gained():
    class Flat(Toy):
        def quality(self, schedule):
            return 1.0

    tried, points = searched(Flat(), math.inf)
    assert len(points) <= PATIENCE * len(tried.classes) + 4


def test_classes_without_trials_have_a_schedule_of_best_prediction():
    toy, tried = Toy(), trials()
    evolution = Evolution(SPACE, toy, tried, rules([20], 12))
    list(guided_search(evolution, toy.ask, budget=0.3))
    untried = evolution.untried()
    classes = [tried.classes.index(tried.class_of(ms)) for ms, _ in untried]
    assert 5 < len(classes) == len(set(classes)) and all(not tried.classes[number].trials for number in classes)
    for (ms, schedule), number in zip(untried, classes, strict=True):
        rivals = [s for s in evolution.schedules if tried.class_of(latency(s)) is tried.classes[number]]
        assert ms == pytest.approx(latency(schedule)) and toy.quality(schedule) == max(map(toy.quality, rivals))


def test_a_trial_that_failed_is_no_gain():
    tried = trials()
    tried.add(Point(Schedule.full(20), -math.inf, math.inf, 0.0))
    assert tried.classes[-1].trials == 1 and tried.classes[-1].better == 0
    good = Point(Schedule.uniform(20, 4, 0), 30.0, 5.0, 4.0)
    tried.add(good)
    tried.add(replace(good, quality=20.0))
    assert tried.class_of(5.0).better == 1 and tried.class_of(5.0).in_vain == 1


def test_classes_of_speed_up():
    tried = trials(2, 4)
    assert [round(one.slowest, 2) for one in tried.classes] == [2, 2.24, 2.52, 2.83, 3.17, 3.56]
    assert tried.class_of(STOCK_MS / 3.2) is tried.classes[4]
    assert tried.class_of(STOCK_MS) is tried.classes[0] and tried.class_of(STOCK_MS / 100) is tried.classes[-1]


def test_a_round_costs_no_more_than_what_is_left():
    toy, tried = Toy(), trials()
    evolution = Evolution(SPACE, toy, tried, rules([20], 12))
    evolution.run(5, 0)
    every = evolution.promising(4)
    prices = [tried.class_of(latency(schedule)).price for schedule in every]
    assert len(every) == 4 and evolution.promising(4, sum(prices)) == every
    assert evolution.promising(4, sum(prices[:2])) == every[:2]
    assert evolution.promising(4, 0.0) == every[:1]


def test_after_its_first_trial_a_class_tries_the_best_seed_of_each_order():
    toy, tried = Toy(), trials()
    seeds = [Schedule.spread(20, whole, 0, order) for whole in (3, 4, 5) for order in (0, 1)]
    seeds += [Schedule.spread(20, whole, 0, 1, growth=3) for whole in (3, 4, 5)]  # worse than even ones
    points = list(guided_search(Evolution(SPACE, toy, tried, seeds), toy.ask, budget=6.0))
    for whole in (3, 4, 5):
        one = tried.class_of(latency(Schedule.spread(20, whole)))
        trials_of_class = [point.schedule for point in points if tried.class_of(point.latency_ms) is one]
        # The first trial may be the seed itself, with an order for each call.
        assert Schedule.spread(20, whole, 0, 1).depths in [schedule.depths for schedule in trials_of_class[:2]]
    assert Schedule.spread(20, 4, 0, 1, growth=3) not in [point.schedule for point in points[:10]]


def test_depths_are_judged_once():
    toy = Toy(1.0)
    _, points = searched(toy, 6.0)
    assert len({point.schedule.depths for point in points}) == len(points) > 10


def test_fast_classes_have_several_trials_before_a_slow_one_has_its_first():
    _, points = searched(Toy(), 1.2)
    assert min(point.speedup for point in points) > 3.4 and len(points) >= 6
