"""Which rules are seeds and which are validated, by what is predicted."""

import math

import numpy as np
import pytest

from dato.point import Point
from dato.schedule import Schedule
from dato.search.rule_choice import best_of_each, closest_rivals, corrected

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


def rivals(quality, latency, count, front=((50.0, 30.0), (20.0, 10.0))):
    points = [Point(Schedule.full(4, rungs=3), q, ms, 100 / ms) for q, ms in zip(*front, strict=True)]
    return closest_rivals(NAMES[: len(quality)], (np.array(quality), np.array(latency)), points, count)


def test_the_closest_to_the_front_come_first():
    # Against 50 dB (20 ms) a is 21 worse, b 1 worse and c 5 worse; against 30 dB (10 ms) d is 2 worse.
    assert rivals([29.0, 49, 45, 28], [12.0, 15, 19, 8], 4) == ["b", "d", "c", "a"]
    assert rivals([29.0, 49, 45, 28], [12.0, 15, 19, 8], 2) == ["b", "d"]


def test_a_schedule_is_compared_with_what_is_no_faster():
    assert rivals([31.0, 49], [10.0, 11], 1) == ["a"]  # at 10 ms the front has 30 dB, and at 11 ms nothing but 50 dB
    assert rivals([31.0, 49], [10.09, 11], 1) == ["a"]  # 10.09 ms counts as 10
    assert rivals([31.0, 33], [15.0, 15.5], 1, front=((50.0, 30.0), (20.0, 25.0))) == ["b"]  # against 30 dB


def test_a_point_that_is_dominated_is_no_measure():
    assert rivals([49.0, 35], [12.0, 25], 1, front=((50.0, 30.0, 29.0), (20.0, 10.0, 30.0))) == ["a"]


def test_one_that_is_slower_than_the_front_is_no_rival():
    assert rivals([70.0, 29], [25.0, 5], 2) == ["b"]


def test_equal_latencies_give_one_rival_and_minus_infinity_none():
    assert rivals([29.0, 28, 27], [12.0, 12.1, 12.2], 3) == ["a", "c"]
    assert rivals([-math.inf, 28, -math.inf], [12.0, 13, 14], 3) == ["b"]
