"""Which rules are seeds and which are validated, by what is predicted."""

import math

import numpy as np
import pytest

from dato.point import Point
from dato.schedule import Schedule
from dato.search.rule_choice import ERROR, best_of_each, corrected, worth_validating

NAMES = list("abcdef")  # what is chosen may be anything


def test_the_best_between_each_speedup_and_the_next():
    quality, latency = np.array([40.0, 50, 45, 30, 60, 70]), np.array([50.0, 49, 40, 26, 25, 101])
    # Stock takes 100: b and c are between 2x and 4x, d too, e is 4x, a is 2x, f is slower than stock.
    assert best_of_each(NAMES, (quality, latency), 100.0, [2.0, 4.0, 8.0]) == ["b", "e"]
    assert best_of_each(NAMES, (quality, latency), 100.0, [2.0, 2.01, 4.0, 4.1, 9.0]) == ["a", "b", "e"]


def test_of_equal_qualities_the_faster_one():
    assert best_of_each(["slow", "fast"], (np.array([40.0, 40]), np.array([40.0, 30])), 100.0, [2.0, 4.0]) == ["fast"]


def test_predictions_are_corrected_by_known_ones_of_about_the_same_latency():
    guesses = np.array([30.0, 40, 50, -math.inf, 60]), np.array([5.0, 20, 40, 20, 90])
    # At 10 ms they are 2 too high, and at 40 ms 4 too low; 20 ms is in the middle. The third one has no prediction.
    known = np.array([52.0, 32, -math.inf]), np.array([40.0, 10, 20])
    assert corrected(guesses, known, [56.0, 30, 45]).tolist() == pytest.approx([28, 41, 54, -math.inf, 64])


@pytest.mark.parametrize("guess", [[], [-math.inf]])
def test_without_known_ones_predictions_stay(guess):
    guesses = np.array([30.0, 40]), np.array([5.0, 20])
    known = np.array(guess), np.array([10.0] * len(guess))
    assert corrected(guesses, known, [30.0] * len(guess)).tolist() == [30, 40]


def added(quality, latency, budget=9.0, front=((50.0, 30.0), (20.0, 10.0)), speedups=(2.0, 100.0)):
    points = [Point(Schedule.full(4, rungs=3), q, ms, 100 / ms) for q, ms in zip(*front, strict=True)]
    guesses = np.array(quality), np.array(latency)
    return worth_validating(NAMES[: len(quality)], guesses, points, 100.0, speedups, budget)


def test_the_one_that_adds_most_for_its_cost_comes_first():
    # Between 10 and 20 ms the front has 30 dB: b adds 19 dB there. c adds 5 dB above 40 ms, and d is dominated.
    assert added([31.0, 49, 55, 29], [10.0, 11, 40, 12]) == ["b", "c", "a"]
    # From 10 to 20 ms, a adds 6 dB. From 20 to 50 ms, b adds 6 dB, which is more. But b takes twice the time.
    assert added([36.0, 56], [10.0, 20]) == ["a", "b"]
    assert added([36.0, 63], [10.0, 20]) == ["b", "a"]


def test_each_is_chosen_as_if_those_before_it_were_on_the_front():
    # a and b fill the same gap. With b on the front, a adds 15 dB from 11 to 11.1 ms only, so c is worth more.
    assert added([45.0, 49, 55], [11.0, 11.1, 20]) == ["b", "c", "a"]
    assert added([49.0, 49], [11.0, 11]) == ["a"]


def test_they_cost_no_more_than_the_budget():
    assert added([31.0, 49, 55], [10.0, 11, 40], budget=0.5) == ["b", "a"]  # c would make it 0.51 images of stock
    assert added([31.0, 49, 55], [10.0, 11, 40], budget=0.52) == ["b", "c"]


def test_one_that_adds_nothing_is_not_chosen():
    assert added([28.0, 48.2, 48], [12.0, 21, 20]) == []
    assert added([28.0], [5.0]) == []  # faster than the front, and worse than all of it
    assert added([31.0], [5.0]) == ["a"]


def test_what_is_left_goes_to_those_that_add_something_if_predictions_err():
    # c adds 5 dB. Then a and b may add something, as predictions err: b would add more, and a nothing with b there.
    assert added([48.5, 48.9, 55], [21.0, 21, 40]) == ["c", "b"]
    assert added([48.5, 48.9, 55], [21.0, 21, 40], budget=0.6) == ["c"]  # nothing is left for them
    assert added([50.0 - ERROR - 0.01], [20.0]) == []
    assert added([50.0 - ERROR + 0.01], [20.0]) == ["a"]
    # What was chosen may be better, too: a, 0.1 dB below it at no less time, adds nothing.
    assert added([54.9, 55], [40.0, 40]) == ["b"]


def test_what_is_dominated_is_no_part_of_the_front():
    # The point of 40 dB at 30 ms is dominated by that of 42 dB at 15 ms.
    assert added([40.2], [31.0], front=((40.0, 42.0), (30.0, 15.0))) == []


def test_none_without_prediction_and_none_outside_the_speedups():
    assert added([-math.inf, 60, 60, 60], [12.0, 51, 24, 26], speedups=(2.0, 4.0)) == ["d"]


def test_a_front_may_be_empty():
    assert added([30.0, -math.inf], [12.0, 5], front=((), ())) == ["a"]
