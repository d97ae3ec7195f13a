"""The family of rules: every kind is there, once, and valid."""

from itertools import pairwise

import pytest

from dato import DatoError, Schedule
from dato.evaluation.rules import rule_name, rules, whole_calls

LENGTHS = (10, 15, 20, 25, 50)


@pytest.fixture(scope="module")
def schedules():
    return rules(LENGTHS, 12)


def test_every_kind_is_there(schedules):
    found = set(schedules)
    assert all(Schedule.full(calls) in found for calls in LENGTHS)
    for calls in LENGTHS:
        for order in (0, 1):
            for depth in (0, 1):
                expected = [Schedule.uniform(calls, interval, depth, order) for interval in range(1, 11)]
                expected += [Schedule.spread(calls, whole, depth, order) for whole in range(2, calls)]
                expected += [
                    Schedule.growing(calls, depth, order),
                    Schedule.growing(calls, depth, order, growth=3.0),
                    Schedule.spread(calls, 4, depth, order, warmup=2),
                    Schedule.spread(calls, 4, depth, order, warmup=2, cooldown=2),
                    Schedule.spread(calls, 4, depth, order, growth=1.5),
                    Schedule.spread(calls, 4, depth, order, growth=1.25, tail=1),
                    Schedule.spread(calls, 3, depth, order, tail=2),
                ]
                assert found.issuperset(expected)


def test_each_is_there_once_and_none_too_many(schedules):
    assert len(set(schedules)) == len(schedules) < 3500
    assert all(s == s.canonical() and s.to_dict() == s.canonical().to_dict() for s in schedules)
    assert {len(s) for s in schedules} == set(LENGTHS)
    assert rules((50, 50), 12) == rules((50,), 12)


def test_they_are_for_the_unet_and_the_forecast_that_is_asked_for():
    for schedule in rules((7, 12), 9, depths=(1, 3), orders=(1,), forecast="aligned"):
        assert schedule.rungs == 9 and set(schedule.depths) <= {1, 3, 9} and schedule.depths[0] == 9
        if any(depth != 9 for depth in schedule.depths):
            assert schedule.forecast == "aligned" and set(schedule.orders) == {1}
    assert rules((8,), 1) == rules((8,), 1, depths=(0,))  # such a UNet has no depth of 1
    assert rules((1,), 12) == [Schedule.full(1)]


def test_what_is_not_valid():
    with pytest.raises(DatoError, match="a UNet of 2 rungs has none of the depths"):
        rules((8,), 2, depths=(2, 5))
    with pytest.raises(DatoError, match="calls must be a whole number of at least 1, not 0"):
        rules((0,), 12)
    with pytest.raises(DatoError, match="unknown forecast 'hope'"):
        rules((8,), 12, forecast="hope")


def test_numbers_of_whole_calls():
    assert whole_calls(50) == [25, 21, 17, 14, 12, 10, 8, 7, 6, 5, 4]
    assert whole_calls(10) == [5, 4] and whole_calls(6) == [] and whole_calls(6, fewest=3) == [3]
    for calls in range(8, 200):
        counts = whole_calls(calls)
        assert counts[-1] == 4 and counts[0] <= calls / 2 and counts == sorted(set(counts), reverse=True)
        assert all(a / b <= 1.45 for a, b in pairwise(counts))


def test_a_rule_is_named_by_how_its_whole_calls_are_spread():
    names = {
        "rule: 10 of 50 whole": [Schedule.spread(50, 10), Schedule.spread(50, 10, 0, 1)],
        "rule: 11 of 50 whole, growing": [Schedule.spread(50, 11, 0, 1, growth=1.25)],
        "rule: 7 of 50 whole, ending early": [
            Schedule.spread(50, 7, tail=1),
            Schedule.spread(50, 7, growth=1.5, tail=2),
        ],
        "rule: 8 of 50 whole, else d=1": [Schedule.spread(50, 8, 1), Schedule.uniform(50, 7, 1)],
        "rule: 1 of 4 whole, ending early": [Schedule([12, 0, 0, 0], rungs=12)],
    }
    for name, schedules in names.items():
        assert {rule_name(schedule) for schedule in schedules} == {name}
