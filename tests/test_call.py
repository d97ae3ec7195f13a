"""Calls: what each computes, reads and keeps, compared with a simple version of the definition and with the ladder."""

from collections import defaultdict

import pytest
import torch
from conftest import tiny_unet, unet_inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from dato import DatoError, Schedule
from dato.call import LAST, forecasts_made, place_read, places_computed
from dato.forecast_rule import FORECASTS, RULES
from dato.unet.cache import Cache
from dato.unet.ladder import Ladder

RUNGS = 5


@st.composite
def runs(draw):
    """(schedule, timesteps) with falling timesteps, some of them used twice, or None."""
    n = draw(st.integers(1, 14))
    falls = draw(st.lists(st.sampled_from([0, 20, 40]), min_size=n - 1, max_size=n - 1))
    times = [981.0 - sum(falls[:call]) for call in range(n)]
    depths = [RUNGS, *draw(st.lists(st.integers(0, RUNGS), min_size=n - 1, max_size=n - 1))]
    orders = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    schedule = Schedule(depths, orders=orders, rungs=RUNGS, forecast=draw(st.sampled_from(FORECASTS)))
    return schedule, draw(st.sampled_from([times, None]))


@settings(deadline=None)
@given(runs())
def test_what_forecasts_are_made_is_found_without_describing_calls(run):
    schedule = run[0].canonical()
    made = forecasts_made(schedule.depths, schedule.orders, schedule.rungs, schedule.forecast)
    assert made == [(call.order, call.forecast) for call in schedule.calls()]


def values_read(forecast: str, depth: int, order: int) -> int:
    """How many past values a call reads at most, by the definitions in `Schedule` and `dato.unet.forecast`."""
    if forecast == "aligned" and order == 1 and depth:
        return 3
    return 100 if forecast == "chebyshev" and order else order + 1


@settings(max_examples=300, deadline=None)
@given(runs())
def test_sources_are_the_last_calls_that_computed_the_place_at_different_timesteps(run):
    schedule, times = run
    computed = defaultdict(list)
    calls = schedule.calls(times)
    for call, (depth, _, order) in zip(calls, schedule.entries, strict=True):
        if depth == RUNGS:
            assert call.reads is None and not call.sources and call.order == 0
        else:
            place = LAST if depth == 0 else depth - 1
            past = {times[i] if times else i: i for i in computed[place]}  # of one timestep the later call counts
            expected = list(past.values())[-values_read(schedule.forecast, depth, order) :]
            assert call.reads == place and list(call.sources) == expected
            assert call.order <= order and (call.order == 0) == (len(expected) == 1)
            assert call.forecast in ("polynomial", schedule.forecast)
        expected = {LAST, *range(RUNGS - 1)} if depth == RUNGS else {LAST, *range(depth - 1)} if depth else set()
        assert set(call.computes) == expected
        for place in expected:
            computed[place].append(call.index)


@settings(max_examples=300, deadline=None)
@given(runs())
def test_what_is_kept_after_each_call_is_enough_and_nothing_is_kept_for_nobody(run):
    schedule, times = run
    held = defaultdict(list)
    for call in schedule.calls(times):
        assert call.reads is None or held[call.reads][-call.values :] == list(call.sources)
        for place in call.computes:
            if times and held[place] and times[held[place][-1]] == times[call.index]:
                held[place].pop()
            held[place].append(call.index)
        for place in list(held):
            held[place] = held[place][-call.keep[place] :] if place in call.keep else []
        later = schedule.calls(times)[call.index + 1 :]
        assert set(call.keep) <= {other.reads for other in later}
    assert not any(held.values())


@pytest.mark.parametrize(
    ("forecast", "order", "depth", "made"),
    [
        ("polynomial", 2, 1, (2, "polynomial")),
        ("aligned", 1, 1, (1, "aligned")),
        ("aligned", 1, 0, (1, "polynomial")),
        ("aligned", 2, 1, (2, "polynomial")),
        ("chebyshev", 1, 0, (1, "chebyshev")),
        ("chebyshev", 2, 1, (1, "chebyshev")),
        ("chebyshev", 0, 1, (0, "polynomial")),
    ],
)
def test_which_rule_really_applies(forecast, order, depth, made):
    call = Schedule([12, 12, 12, 12, depth], orders=order, forecast=forecast).calls()[-1]
    assert (call.order, call.forecast) == made
    first = Schedule([12, depth], orders=order, forecast=forecast).calls()[-1]
    assert (first.order, first.forecast) == (0, "polynomial")  # there is one value only


def test_a_rule_says_what_it_needs():
    assert [name for name, rule in RULES.items() if rule.uses_skips] == ["aligned"]
    assert [name for name, rule in RULES.items() if rule.caches_last_feature] == ["chebyshev"]
    assert [name for name, rule in RULES.items() if not rule.can_be_planned] == ["chebyshev"]


def test_there_are_as_many_timesteps_as_calls():
    with pytest.raises(DatoError, match="3 calls, and there are 2 timesteps"):
        Schedule.full(3).calls((9.0, 5.0))


class Recorder(Cache):
    """A cache that notes what is stored and recalled."""

    def __init__(self):
        super().__init__()
        self.read, self.stored = [], []

    def store(self, place, value, skip=None, *, copy=False):
        self.stored.append(place)
        super().store(place, value, skip, copy=copy)

    def recall(self, place, skip=None):
        self.read.append(place)
        return super().recall(place, skip)


@pytest.mark.parametrize(("kind", "rungs"), [("sd", 12), ("sdxl", 9)])
def test_the_ladder_does_what_is_described(kind, rungs):
    ladder, cache = Ladder(tiny_unet(kind)), Recorder()
    x, text = unet_inputs()
    with torch.no_grad():
        for depth in (rungs, *range(rungs)):
            cache.read.clear(), cache.stored.clear()
            ladder.run(depth, cache, x, 500, text)
            assert sorted(cache.stored) == list(places_computed(depth))
            place = place_read(depth, rungs)
            assert cache.read == ([] if place is None else [place])
