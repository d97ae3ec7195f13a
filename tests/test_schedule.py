"""Schedules: what is valid, what is equal, what resampling keeps."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dato import DatoError, Pruning, Schedule
from dato.strategies import load_strategy


@st.composite
def schedules(draw):
    rungs = draw(st.sampled_from([9, 12]))
    rest = draw(st.lists(st.integers(0, rungs), max_size=60))
    calls = len(rest) + 1
    ratios = draw(st.lists(st.sampled_from([0.0, 0.3, 0.7]), min_size=calls, max_size=calls))
    return Schedule((rungs, *rest), ratios, rungs=rungs, pruning=Pruning(score=draw(st.sampled_from(["sito", "dato"]))))


def test_full_and_uniform():
    assert Schedule.full(3).depths == (12, 12, 12)
    assert Schedule.uniform(7, 3, 1).depths == (12, 1, 1, 12, 1, 1, 12)
    assert Schedule.uniform(4, 2, 0, rungs=9).depths == (9, 0, 9, 0)
    assert Schedule([12, 1], 0.5).ratios == (0.5, 0.5)
    assert Schedule([12, 1], orders=1).orders == (1, 1)
    assert Schedule(np.array([12, 1]), np.array([0, 0.5])) == Schedule([12, 1], [0, 0.5])


def test_equality_and_hash_are_by_content_and_it_cannot_be_changed():
    a, b = Schedule([12, 1], [0, 0.5]), Schedule((12, 1), (0.0, 0.5))
    assert a == b and hash(a) == hash(b) and a != Schedule([12, 2], [0, 0.5])
    assert a != a.with_ratios(0.3)
    with pytest.raises(AttributeError):
        a.depths = (12, 2)


@settings(max_examples=50, deadline=None)
@given(schedules())
def test_json_there_and_back(schedule):
    assert Schedule.from_json(schedule.to_json()) == schedule


@settings(max_examples=100, deadline=None)
@given(schedules(), st.integers(1, 80))
def test_resampling_keeps_shares_and_starts_whole(schedule, calls):
    other = schedule.resampled(calls)
    assert len(other) == calls and other.depths[0] == schedule.rungs
    assert schedule.resampled(len(schedule)) is schedule
    assert set(other.entries) <= set(schedule.entries)
    for entry in set(schedule.entries):
        share = schedule.entries.count(entry) / len(schedule)
        # At most one call astray for each other kind of call that competes for places.
        assert abs(other.entries.count(entry) - share * calls) <= len(set(schedule.entries))


def test_resampling_does_not_alias():
    every_second = Schedule.uniform(51, 2, 1).resampled(25)
    assert every_second.depths == Schedule.uniform(25, 2, 1).depths
    assert 10 <= Schedule.uniform(25, 5, 0).resampled(51).depths.count(12) <= 11


@pytest.mark.parametrize(
    ("depths", "calls", "expected"),
    [
        ([12, 1, 1, 12, 1, 1], 2, [12, 1]),  # two thirds are shallow; the first call is whole all the same
        ([12, 1, 1, 12, 1, 1], 4, [12, 1, 1, 1]),  # a third of four calls is one
        ([12, 1, 1, 12, 1, 1], 12, [12, 12, 1, 1, 1, 1, 12, 12, 1, 1, 1, 1]),
        ([12, 0, 0, 0, 12], 10, [12, 12, 0, 0, 0, 0, 0, 0, 12, 12]),
        ([12, 3], 3, [12, 12, 3]),  # of two kinds that are owed alike the deeper one comes first
        ([12, 1, 1, 1], 1, [12]),
    ],
)
def test_each_new_call_gets_what_its_stretch_of_time_has(depths, calls, expected):
    assert list(Schedule(depths).resampled(calls).depths) == expected


def test_a_resampled_call_keeps_its_depth_ratio_and_order_together():
    entries = ((12, 0.3, 0), (1, 0.5, 1), (12, 0.3, 1), (0, 0.7, 1))
    schedule = Schedule(*zip(*entries, strict=True), rungs=12, pruning=Pruning(sx=4), forecast="aligned")
    twice = schedule.resampled(8)
    canonical = schedule.canonical().entries
    assert twice.entries == tuple(entry for entry in canonical for _ in range(2))
    assert (twice.pruning, twice.forecast, twice.rungs) == (Pruning(sx=4), "aligned", 12)


def test_a_reader_of_lower_orders_gets_lower_orders_by_polynomials():
    schedule = Schedule([12, 1, 0, 2], 0.3, [0, 1, 2, 2], forecast="chebyshev", pruning=Pruning(sx=4))
    for order, orders in ((0, (0, 0, 0, 0)), (1, (0, 1, 1, 1)), (2, (0, 1, 2, 2))):
        assert schedule.with_order_at_most(order) == Schedule([12, 1, 0, 2], 0.3, orders, pruning=Pruning(sx=4))


@pytest.mark.parametrize(
    ("make", "depths"),
    [
        (lambda: Schedule.growing(12), [12] * 5 + [0, 12, 0, 12, 0, 0, 12]),
        (lambda: Schedule.growing(8, 3, warmup=1, window=1, growth=0, rungs=9), [9] * 8),
        (lambda: Schedule.growing(8, 3, warmup=1, window=3, growth=0, rungs=9), [9, 3, 3, 9, 3, 3, 9, 3]),
        (lambda: Schedule.growing(9, 1, warmup=2, window=2, growth=0.5), [12, 12, 1, 12, 1, 12, 1, 1, 12]),
        (lambda: Schedule.full(3, rungs=9), [9] * 3),
        (lambda: Schedule.uniform(5, 1, 3), [12] * 5),
        (lambda: Schedule.uniform(5, 4, 3), [12, 3, 3, 3, 12]),
        (lambda: Schedule.spread(6, 1), [12, 0, 0, 0, 0, 0]),
        (lambda: Schedule.spread(6, 2, 1), [12, 1, 1, 1, 1, 12]),
        (lambda: Schedule.spread(7, 4, warmup=2, cooldown=2), [12, 12, 0, 0, 0, 12, 12]),
        (lambda: Schedule.spread(7, 3, warmup=2), [12, 12, 0, 0, 0, 0, 12]),
        (lambda: Schedule.spread(9, 5, growth=2), [12, 12, 12, 0, 12, 0, 0, 0, 12]),
        (lambda: Schedule.spread(9, 4, tail=2), [12, 0, 12, 0, 12, 0, 12, 0, 0]),
        (lambda: Schedule.spread(9, 3, growth=2, tail=1), [12, 0, 12, 0, 0, 0, 0, 12, 0]),
        (lambda: Schedule.spread(6, 4, shorter="last", tail=1), [12, 0, 12, 12, 12, 0]),
        (lambda: Schedule.spread(9, 4, shorter="first", rungs=9), [9, 0, 9, 0, 0, 9, 0, 0, 9]),
        (lambda: Schedule.spread(9, 4, shorter="last", rungs=9), [9, 0, 0, 9, 0, 0, 9, 0, 9]),
    ],
)
def test_where_the_whole_calls_are(make, depths):
    assert list(make().depths) == depths


def test_what_a_file_leaves_out_is_the_default():
    assert Schedule.from_json('{"format": "dato.schedule", "version": 1, "depths": [12, 1]}') == Schedule([12, 1])


def test_what_a_schedule_is_made_with_by_default():
    """By the docstrings: forecasts of order 1 where whole calls are spread, reuse with DeepCache's; nothing pruned."""
    uniform, spread, growing = Schedule.uniform(6, 3, 1), Schedule.spread(6, 2), Schedule.growing(6, warmup=1)
    assert set(uniform.orders) == {0} and set(spread.orders) == set(growing.orders) == {1}
    assert min(spread.depths) == min(growing.depths) == 0
    for schedule in (uniform, spread, growing, Schedule.full(6)):
        assert set(schedule.ratios) == {0.0} and schedule.rungs == 12 and schedule.forecast == "polynomial"
        assert schedule.pruning == Pruning()
    given = {"rungs": 9, "forecast": "aligned"}
    for schedule in (
        Schedule.uniform(6, 3, 1, 2, ratio=0.3, **given),
        Schedule.spread(6, 2, 1, 2, **given).with_ratios(0.3),
        Schedule.growing(6, 1, 2, warmup=1, **given).with_ratios(0.3),
    ):
        assert (schedule.rungs, schedule.forecast, set(schedule.orders)) == (9, "aligned", {2})
        assert set(schedule.ratios) == {0.3} and set(schedule.depths) == {1, 9}


def test_another_height_keeps_whole_calls_whole():
    assert Schedule.uniform(4, 2, 1).for_rungs(9) == Schedule.uniform(4, 2, 1, rungs=9)
    assert Schedule([12, 8]).for_rungs(9).depths == (9, 8)
    assert Schedule.full(2).for_rungs(1).depths == (1, 1)
    for depth in (9, 10):  # 9 would be the whole UNet there
        with pytest.raises(DatoError, match=f"depth {depth} does not exist in a UNet of 9 rungs"):
            Schedule([12, depth, 1]).for_rungs(9)
    pruned = Schedule([12, 1], [0.3, 0.5], [0, 1], pruning=Pruning(sx=4), forecast="aligned")
    assert pruned.for_rungs(12) is pruned
    assert pruned.for_rungs(9) == Schedule([9, 1], [0.3, 0.5], [0, 1], 9, Pruning(sx=4), "aligned")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule([]), "depths is empty"),
        (lambda: Schedule([1, 12]), "first call must run the whole UNet"),
        (lambda: Schedule([12, 13]), "depth 13 of call 1"),
        (lambda: Schedule([12, -1]), "depth -1 of call 1"),
        (lambda: Schedule([12, 1.5]), "depth 1.5 of call 1"),
        (lambda: Schedule([12, True]), "depth True of call 1"),
        (lambda: Schedule("12"), "depths must be a list"),
        (lambda: Schedule(b"12"), "depths must be a list"),
        (lambda: Schedule({12: 1}), "depths must be a list"),
        (lambda: Schedule(12), "depths must be a list"),
        (lambda: Schedule([12, 1], True), "ratios must be a list"),
        (lambda: Schedule([12, 1], [False, 0]), "ratio False of call 0"),
        (lambda: Schedule([12, 1], [0, -0.1]), "ratio -0.1 of call 1"),
        (lambda: Schedule([12, 1], orders=True), "orders must be a list"),
        (lambda: Schedule([12, 1], orders=[0, 1.0]), "order 1.0 of call 1"),
        (lambda: Schedule([12, 1], orders=[0, -1]), "order -1 of call 1"),
        (lambda: Schedule([12], rungs=True), "rungs must be a whole number of at least 1, not True"),
        (lambda: Schedule([12, 1], forecast="hope"), "unknown forecast 'hope'; known are polynomial, aligned"),
        (lambda: Schedule([12, 1], [0.5]), "ratios has 1 entries and depths has 2"),
        (lambda: Schedule([12, 1], 1.0), "ratio 1.0 of call 0"),
        (lambda: Schedule([12, 1], float("nan")), "ratio nan of call 0"),
        (lambda: Schedule([12, 1], ["a", 0]), "ratio 'a' of call 0"),
        (lambda: Schedule([12, 1], orders=3), "order 3 of call 0"),
        (lambda: Schedule([12], rungs=0), "rungs must be"),
        (lambda: Schedule.uniform(0, 1, 1), "calls must be"),
        (lambda: Schedule.uniform(5, 0, 1), "interval must be"),
        (lambda: Schedule.full(5).resampled(0), "calls must be"),
        (lambda: Schedule.from_json("{"), "not JSON"),
        (lambda: Schedule.from_json("[]"), '"format" is not'),
        (
            lambda: Schedule.from_json('{"format": "dato.schedule", "version": 2, "depths": [12]}'),
            "version 2 is not known",
        ),
        (lambda: Schedule.from_json('{"format": "dato.schedule", "version": 0, "depths": [12]}'), "version 0 is not"),
        (lambda: Schedule.from_json('{"format": "dato.schedule", "version": true, "depths": [12]}'), "version True is"),
        (lambda: Schedule.from_json('{"format": "dato.schedule", "depths": [12]}'), "version None is not known"),
        (lambda: Schedule.growing(0), "calls must be"),
        (lambda: Schedule.spread(0, 1), "calls must be a whole number of at least 1, not 0"),
        (lambda: Schedule.spread(8, 2, tail=-1), "tail must be a whole number of at least 0, not -1"),
        (lambda: Schedule.spread(8, 2, tail=1.5), "tail must be a whole number of at least 0, not 1.5"),
        (lambda: Schedule.spread(8, 7, tail=2), "it takes warmup <= whole <= calls - tail"),
        (lambda: Schedule.spread(8, 0), "whole must be a whole number of at least 1, not 0"),
        (lambda: Schedule.spread(8, 2, warmup=0), "warmup must be a whole number of at least 1, not 0"),
        (lambda: Schedule.spread(8, 2, cooldown=0), "cooldown must be a whole number of at least 1, not 0"),
        (lambda: Schedule.spread(8, 2.0), "whole must be a whole number of at least 1, not 2.0"),
        (lambda: Schedule.growing(9, warmup=0), "growing windows need warmup >= 1"),
        (lambda: Schedule.growing(9, window=0.9), "growing windows need"),
        (lambda: Schedule.growing(9, growth=-0.1), "growing windows need"),
        (lambda: Schedule([12, 1]).with_order_at_most(3), "`order` must be 0, 1 or 2, not 3"),
        (lambda: Schedule([12, 1]).with_order_at_most(True), "`order` must be 0, 1 or 2, not True"),
        (lambda: Schedule([12, 1]).with_order_at_most(1.0), "`order` must be 0, 1 or 2, not 1.0"),
        (lambda: Schedule.from_json('{"format": "dato.schedule", "version": 1}'), '"depths" is missing'),
        (
            lambda: Schedule.from_json('{"format": "dato.schedule", "version": 1, "depths": [12], "x": 1}'),
            "unknown key 'x'",
        ),
        (lambda: Schedule([12], pruning={"score": "sito"}), "pruning must be a dato.Pruning"),
        (lambda: Pruning(score="best"), "score must be one of"),
        (lambda: Pruning(sx=0), "sx must be a whole number"),
        (lambda: Pruning(sx=1, sy=1), "1 x 1"),
        (lambda: Pruning(noise_alpha="x"), "noise_alpha must be a number"),
        (lambda: Pruning(sim_beta=float("inf")), "sim_beta must be a number, not inf"),
        (lambda: Pruning(diff_gamma=float("nan")), "diff_gamma must be a number, not nan"),
        (lambda: Pruning(seed=2**64), "seed must be below 18446744073709551616"),
        (lambda: Schedule([12, 1], [float("nan"), 0]), "ratio nan of call 0"),
        (lambda: Pruning(self_attention=1), "self_attention must be true or false"),
        (lambda: Pruning(reduction="merge", recover_from="kept"), "merge"),
        (lambda: Pruning(reduction="merge", recover_from="past"), "merge"),
        (lambda: Pruning(noise="loud"), "noise must be one of absolute, relative"),
        (lambda: Pruning(recover_from="future"), "recover_from must be one of base, kept, past"),
        (lambda: Pruning.from_dict({"patch": 2}), "unknown setting 'patch'"),
    ],
)
def test_bad_input_is_named_in_one_line(make, message):
    with pytest.raises(DatoError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def shipped_schedules():
    """Every schedule of every shipped file, by where it is."""
    found = {}
    for path in sorted((Path(__file__).parent.parent / "strategies").glob("*.json")):
        front = load_strategy(path)
        if isinstance(front, Schedule):
            found[path.name] = front
            continue
        points = [*front.points, front.baseline, *front.references.values()]
        found |= {f"{path.name} {number}": point.schedule for number, point in enumerate(points)}
    return found


def test_what_makes_no_difference_makes_no_other_schedule():
    base = Schedule([12, 1, 12, 0], [0, 0.5, 0, 0], 1, forecast="aligned")
    same = Schedule(base.depths, base.ratios, [0, 1, 2, 1], forecast="aligned")  # whole calls read nothing
    assert same == base and hash(same) == hash(base) and len({same, base}) == 1
    assert same.orders == (0, 1, 2, 1) and same.to_json() != base.to_json()  # what is written stays what was given
    assert same.canonical().to_json() == base.to_json() and base.canonical() is base
    reuse = Schedule([12, 1, 12, 0], orders=0, forecast="chebyshev")
    assert reuse == Schedule([12, 1, 12, 0]) and reuse.canonical().forecast == "polynomial"
    assert reuse.rule.name == "polynomial" and base.rule.name == "aligned"
    assert Schedule.full(4) == Schedule([12] * 4, orders=2, forecast="aligned")
    assert Schedule([12] * 4, orders=2, forecast="aligned").canonical().to_json() == Schedule.full(4).to_json()
    for other in (
        Schedule(base.depths, base.ratios, [1, 0, 1, 1], forecast="aligned"),
        Schedule(base.depths, base.ratios, 1),
        Schedule(base.depths, base.ratios, 1, pruning=Pruning(sx=4), forecast="aligned"),
        base.with_ratios(0.5),
        "a string",
    ):
        assert base != other


@settings(max_examples=100, deadline=None)
@given(schedules(), st.sampled_from(["polynomial", "aligned", "chebyshev"]), st.data())
def test_the_canonical_spelling_describes_the_same_calls(schedule, forecast, data):
    orders = data.draw(st.lists(st.integers(0, 2), min_size=len(schedule), max_size=len(schedule)))
    spelt = Schedule(schedule.depths, schedule.ratios, orders, schedule.rungs, schedule.pruning, forecast)
    canonical = spelt.canonical()
    assert canonical == spelt and canonical.canonical() is canonical and canonical.calls() == spelt.calls()
    assert canonical.depths == spelt.depths and canonical.ratios == spelt.ratios
    calls = data.draw(st.integers(1, 80))
    assert canonical.resampled(calls) == spelt.resampled(calls)
    partial = [call for call, depth in enumerate(spelt.depths) if depth < spelt.rungs]
    assert [canonical.orders[call] for call in partial] == [spelt.orders[call] for call in partial]
    assert Schedule.from_json(spelt.to_json()).to_json() == spelt.to_json()


@pytest.mark.parametrize("where", shipped_schedules())
def test_shipped_schedules_are_canonical_already(where):
    schedule = shipped_schedules()[where]
    assert schedule.canonical() is schedule


@pytest.mark.parametrize(
    ("calls", "whole", "warmup", "cooldown", "growth"),
    [
        (50, 10, 1, 1, 1),
        (50, 4, 1, 1, 1),
        (9, 9, 3, 1, 1),
        (50, 20, 3, 1, 2),
        (50, 12, 2, 3, 1),
        (50, 20, 2, 2, 1.5),
        (9, 9, 3, 3, 1.5),
        (50, 4, 2, 2, 1),
    ],
)
def test_spread_whole_calls_from_the_first_to_the_last(calls, whole, warmup, cooldown, growth):
    depths = Schedule.spread(calls, whole, 1, warmup=warmup, cooldown=cooldown, growth=growth).depths
    places = [call for call, depth in enumerate(depths) if depth == 12]
    gaps = [b - a for a, b in pairwise(places)]
    assert len(depths) == calls and len(places) == whole and set(depths) <= {1, 12}
    assert places[:warmup] == list(range(warmup)) and places[-cooldown:] == list(range(calls - cooldown, calls))
    between = gaps[warmup - 1 : len(gaps) - (cooldown - 1)]
    if growth == 1 or calls == whole:
        assert max(between) - min(between) <= 1
    else:
        assert between[-1] > between[1]


@pytest.mark.parametrize(("calls", "whole"), [(50, 14), (50, 4), (20, 13), (9, 9), (9, 1)])
def test_spread_sorts_the_distances(calls, whole):
    gaps = {}
    for shorter in ("first", "last"):
        schedule = Schedule.spread(calls, whole, shorter=shorter)
        places = [call for call, depth in enumerate(schedule.depths) if depth == 12]
        gaps[shorter] = [b - a for a, b in pairwise(places)]
        assert len(places) == whole and places[0] == 0 and places[-1] == (calls - 1 if whole > 1 else 0)
    assert gaps["first"] == sorted(gaps["first"]) == gaps["last"][::-1]
    assert max(gaps["first"], default=0) - min(gaps["first"], default=0) <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"whole": 0},
        {"whole": 9},
        {"whole": 2, "warmup": 3},
        {"whole": 2, "cooldown": 0},
        {"whole": 4, "warmup": 2, "cooldown": 3},
        {"whole": 2, "growth": 0},
        {"whole": 4, "shorter": "middle"},
        {"whole": 4, "shorter": "first", "warmup": 2},
        {"whole": 4, "shorter": "first", "cooldown": 2},
        {"whole": 4, "shorter": "last", "growth": 2},
    ],
)
def test_spread_refuses_what_cannot_be(options):
    with pytest.raises(DatoError, match="schedule: "):
        Schedule.spread(8, **options)


def test_noise_is_written_only_if_it_is_not_the_papers():
    """Old files, and the names of files that are hashes of their text, stay valid."""
    assert "noise" not in Pruning().to_dict() and Pruning.from_dict(Pruning().to_dict()) == Pruning()
    relative = Schedule([12], 0.5, pruning=Pruning(noise="relative"))
    assert relative.to_dict()["pruning"]["noise"] == "relative"
    assert Schedule.from_json(relative.to_json()) == relative != Schedule([12], 0.5)
