"""The cache by itself: whose memory it holds, what it forgets, and what it can serve."""

import pytest
import torch
from devices import randn

from dato.call import LAST, Call
from dato.forecast_rule import RULES
from dato.unet.cache import Cache

ALIGNED, SPECTRUM = RULES["aligned"], RULES["chebyshev"]


def begun(cache, index, time, **call):
    """Begin a call that keeps what is given; by default two values of the prediction and of rungs 0 and 3."""
    cache.begin(Call(index, **{"keep": {LAST: 2, 0: 2, 3: 2}} | call), time)
    return cache


def test_it_holds_what_it_is_given_and_not_a_copy():
    cache, value = Cache(), randn(1, 2, 4, 4)
    for place in (LAST, 0):
        cache.store(place, value)
        assert cache.recall(place).data_ptr() == value.data_ptr()


def test_a_copy_is_not_written_over():
    cache = Cache(ALIGNED)
    values, skips = [randn(1, 2, 4, 4) for _ in range(3)], [randn(1, 3, 4, 4) for _ in range(3)]
    for index in range(2):
        begun(cache, index, 900.0 - 100 * index).store(0, values[index].clone(), skips[index])
    expected = begun(cache, 2, 700.0, reads=0, rule=ALIGNED, values=2).recall(0, skips[2])
    again = Cache(ALIGNED)
    for index in range(2):
        value, skip = values[index].clone(), skips[index].clone()
        begun(again, index, 900.0 - 100 * index).store(0, value, skip, copy=True)
        value.fill_(torch.nan), skip.fill_(torch.nan)
    assert torch.equal(begun(again, 2, 700.0, reads=0, rule=ALIGNED, values=2).recall(0, skips[2]), expected)


def test_only_aligned_forecasts_keep_skips():
    skip = randn(1, 3, 4, 4)
    for rule, kept in ((ALIGNED, True), (SPECTRUM, False), (RULES["polynomial"], False)):
        cache = Cache(rule)
        cache.store(0, randn(1, 2, 4, 4), skip)
        assert (cache._past[0][0].skip is not None) == kept
        cache.store(LAST, randn(1, 2, 4, 4))  # the prediction has none
        assert cache._past[LAST][0].skip is None


def test_it_keeps_no_graph():
    value = randn(1, 2, 4, 4).requires_grad_()
    for rule in (ALIGNED, RULES["polynomial"]):
        cache = Cache(rule)
        cache.store(0, value * 2, value * 3)
        assert not cache._past[0][0].value.requires_grad
        assert rule is not ALIGNED or not cache._past[0][0].skip.requires_grad


def test_without_a_word_on_what_to_keep_it_keeps_the_last_value_of_every_place():
    cache, values = Cache(), [randn(1, 2) for _ in range(2)]
    assert cache.empty and cache.call.keep is None and cache.time == 0.0
    for index, value in enumerate(values):
        cache.begin(Call(index), 900.0 - index)
        cache.store(5, value)
        cache.end()
    assert len(cache._past[5]) == 1 and torch.equal(cache.recall(5), values[1]) and not cache.empty
    cache.begin(Call(2))
    assert cache.time == 0.0
    cache.clear()
    assert cache.empty


def test_it_keeps_as_many_values_as_later_calls_need():
    cache, values = Cache(), [randn(1, 2) for _ in range(4)]
    for index, value in enumerate(values[:3]):
        begun(cache, index, 900.0 - 100 * index, keep={0: 2})
        for place in (0, 3):
            cache.store(place, value)
        cache.end()
    assert [computed.moment for computed in cache._past[0]] == [(1, 800.0), (2, 700.0)] and set(cache._past) == {0}
    begun(cache, 3, 600.0, keep={0: 1}).end()
    assert [computed.moment.call for computed in cache._past[0]] == [2]
    begun(cache, 4, 500.0, keep={}).end()
    assert cache.empty


def test_a_second_value_of_a_timestep_replaces_the_first():
    cache, values = Cache(), [randn(1, 2) for _ in range(3)]
    for index, time in enumerate((900.0, 700.0, 700.0)):
        begun(cache, index, time).store(0, values[index])
    assert [computed.moment for computed in cache._past[0]] == [(0, 900.0), (2, 700.0)]
    line = begun(cache, 3, 600.0, reads=0, values=2).recall(0)
    assert torch.allclose(line, values[2] + 0.5 * (values[2] - values[0]), atol=1e-6)


def test_a_call_reads_as_many_values_as_it_says_and_none_before_the_turn_but_the_last():
    cache, values = Cache(), [randn(1, 2) for _ in range(3)]
    for index, time in enumerate((900.0, 800.0, 700.0)):
        begun(cache, index, time, keep={0: 3}).store(0, values[index])

    def recalled(**call):
        return begun(cache, 3, 600.0, reads=0, **call).recall(0)

    assert torch.equal(recalled(values=1), values[2])
    assert torch.allclose(recalled(values=2), 2 * values[2] - values[1], atol=1e-6)
    parabola = 3 * values[2] - 3 * values[1] + values[0]
    assert torch.allclose(recalled(values=3), parabola, atol=1e-5)
    assert torch.allclose(recalled(values=3, since=1), 2 * values[2] - values[1], atol=1e-6)
    for since in (2, 3):
        assert torch.equal(recalled(values=3, since=since), values[2])


def test_an_aligned_forecast_goes_by_the_timesteps_where_the_skip_says_nothing():
    """Where a skip goes on along its line, the value does, by the share of the last step that has passed."""
    cache = Cache(ALIGNED)
    (v0, v1), (s0, s1) = ([randn(1, 2, 4, 4) for _ in range(2)] for _ in range(2))
    begun(cache, 0, 900.0, keep={0: 3}).store(0, v0, s0)
    begun(cache, 1, 700.0, keep={0: 3}).store(0, v1, s1)
    call = begun(cache, 2, 600.0, reads=0, rule=ALIGNED, values=3)
    assert call.recalled(0).step == 0.5
    assert torch.allclose(call.recall(0, s1 + 0.5 * (s1 - s0)), v1 + 0.5 * (v1 - v0), atol=1e-5)
    begun(cache, 2, 600.0, keep={0: 3}).store(0, randn(1, 2, 4, 4), randn(1, 3, 4, 4))
    for values, known in ((3, 3), (2, 2)):  # the step goes by the last two of them
        recalled = begun(cache, 3, 550.0, reads=0, rule=ALIGNED, values=values).recalled(0)
        assert len(recalled.values) == known and recalled.step == 0.5


@pytest.mark.parametrize("inference", [True, False])
def test_the_prediction_is_copied_only_where_pytorch_cannot_tell_whether_it_is_written_into(inference):
    with torch.inference_mode(inference):
        for rule in (RULES["polynomial"], SPECTRUM):
            cache, value = Cache(rule), randn(1, 2, 4, 4)
            for place in (LAST, 0):
                cache.store(place, value)
            held = [cache._past[place][0].value.data_ptr() for place in (LAST, 0)]
            assert held == [held[0], value.data_ptr()] and (held[0] != value.data_ptr()) == inference
            # The pipeline may write into what it gets. Spectrum's feature never leaves the UNet.
            assert (cache.last().data_ptr() != held[0]) == (inference and rule is not SPECTRUM)
            assert torch.equal(cache.last(), value)


def test_what_it_can_serve():
    cache = Cache()
    assert not any(cache.can_serve(depth) for depth in range(5))
    prediction, arrived = randn(1, 2), randn(1, 2)
    cache.store(LAST, prediction)
    cache.store(3, arrived)
    assert [cache.can_serve(depth) for depth in range(6)] == [True, False, False, False, True, False]
    arrived.add_(1)
    prediction.add_(1)  # the pipeline has written into it
    assert [cache.can_serve(depth) for depth in (0, 4)] == [False, True]
    cache.begin(Call(1), 500.0)
    cache.store(LAST, prediction)
    assert cache.can_serve(0)
