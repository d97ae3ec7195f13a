"""Which rules are seeds and which are validated, by what is predicted."""

import math

import numpy as np

from dato.search.rule_choice import best_of_each, closest_rivals

NAMES = list("abcdef")  # what is chosen may be anything


def test_the_best_between_each_speedup_and_the_next():
    quality, latency = np.array([40.0, 50, 45, 30, 60, 70]), np.array([50.0, 49, 40, 26, 25, 101])
    # Stock takes 100: b and c are between 2x and 4x, d too, e is 4x, a is 2x, f is slower than stock.
    assert best_of_each(NAMES, (quality, latency), 100.0, [2.0, 4.0, 8.0]) == ["b", "e"]
    assert best_of_each(NAMES, (quality, latency), 100.0, [2.0, 2.01, 4.0, 4.1, 9.0]) == ["a", "b", "e"]


def test_of_equal_qualities_the_faster_one():
    assert best_of_each(["slow", "fast"], (np.array([40.0, 40]), np.array([40.0, 30])), 100.0, [2.0, 4.0]) == ["fast"]


def rivals(quality, latency, count, front=((50.0, 30.0), (20.0, 10.0))):
    front_quality, front_latency = map(np.array, front)
    names = NAMES[: len(quality)]
    return closest_rivals(names, (np.array(quality), np.array(latency)), (front_quality, front_latency), count)


def test_the_closest_to_the_front_come_first():
    # Against 30 dB (10 ms) a is 1 worse and b 2 better; against 50 dB (20 ms) c is 5 worse.
    assert rivals([29.0, 32, 45], [12.0, 15, 25], 3) == ["b", "a", "c"]
    assert rivals([29.0, 32, 45], [12.0, 15, 25], 2) == ["b", "a"]


def test_a_schedule_is_compared_with_what_is_no_slower():
    assert rivals([49.0, 31], [19.0, 30], 1) == ["a"]  # at 19 ms the front has 30 dB
    assert rivals([49.0, 31], [19.9, 11], 1) == ["b"]  # 19.9 ms counts as 20
    assert rivals([52.0, 33], [30.0, 15], 1, front=((50.0, 30.0), (20.0, 25.0))) == ["a"]  # 30 dB at 25 ms is no better


def test_one_that_is_faster_than_the_front_is_compared_with_its_fastest_point():
    assert rivals([28.0, 29], [5.0, 15], 2) == ["b", "a"]


def test_equal_latencies_give_one_rival_and_minus_infinity_none():
    assert rivals([29.0, 28, 27], [12.0, 12.1, 12.2], 3) == ["a", "c"]
    assert rivals([-math.inf, 28, -math.inf], [12.0, 13, 14], 3) == ["b"]


def test_a_gap_of_the_front_gets_one_rival_unless_a_second_one_is_better():
    # a and b are far better than 30 dB (10 ms). After a, b is 1 worse than a, and c is 0.5 worse than the front.
    assert rivals([40.0, 39, 29.5], [14.0, 16, 12], 2) == ["a", "c"]
    # The slower one of the two is better than the faster one by 4.
    assert rivals([40.0, 44, 29.5], [14.0, 16, 12], 3) == ["b", "a", "c"]
