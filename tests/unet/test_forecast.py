"""Forecasts, compared with a slow version of their definition, and on UNets whose future values are known."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import PROMPTS, draw, tiny_unet, unet_inputs
from devices import device, put, randn
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

import dato
from dato import Schedule
from dato.call import LAST
from dato.forecast_rule import ALL, RULES
from dato.samplers import num_calls
from dato.unet.cache import Cache
from dato.unet.forecast import align, chebyshev, combine, polynomial


def plain_forecast(history: list[tuple[float, np.ndarray]], now: float, order: int) -> np.ndarray:
    """The polynomial through the last order + 1 values at different timesteps; of equal ones the later counts."""
    distinct: list[tuple[float, np.ndarray]] = []
    for time, value in history:
        if distinct and distinct[-1][0] == time:
            distinct.pop()
        distinct.append((time, value))
    points = distinct[-order - 1 :]
    times = np.array([time for time, _ in points])
    values = np.stack([value.ravel() for _, value in points])
    # In the distance from the last one, in units of a hundred timesteps: numpy's fit is ill-conditioned otherwise.
    fit = np.polyfit((times - times[-1]) / 100, values, len(points) - 1)
    x = (now - times[-1]) / 100
    return sum(c * x**power for power, c in enumerate(fit[::-1])).reshape(points[-1][1].shape)


@st.composite
def runs(draw):
    """(depths, orders, timesteps) of a generation with falling timesteps, some of them used twice."""
    n = draw(st.integers(2, 14))
    falls = draw(st.lists(st.sampled_from([0, 17, 20, 40]), min_size=n - 1, max_size=n - 1))
    times = (981.0 - np.cumsum([0, *falls])).tolist()
    depths = [5, *draw(st.lists(st.integers(0, 5), min_size=n - 1, max_size=n - 1))]
    orders = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    return depths, orders, times


def _normal(rng, *shape):
    return put(torch.from_numpy(rng.normal(size=shape).astype(np.float32)))


@settings(max_examples=200, deadline=None)
@given(runs(), st.sampled_from(["aligned", "chebyshev"]))
def test_what_other_rules_read_is_kept_and_forgotten_in_time(run, rule):
    depths, orders, times = run
    schedule = Schedule(depths, orders=orders, rungs=5, forecast=rule)
    cache, everything = Cache(RULES[rule], len(depths)), Cache(RULES[rule], len(depths))
    rng = np.random.default_rng(0)
    for call, depth, time in zip(schedule.calls(times), depths, times, strict=True):
        cache.begin(call, time)
        everything.begin(replace(call, keep=dict.fromkeys(range(-1, 5), ALL)), time)
        skips = [_normal(rng, 2, 2, 2, 2) for _ in range(5)]
        if depth < 5:
            skip = skips[depth - 1] if depth else None
            assert torch.equal(cache.recall(depth - 1, skip), everything.recall(depth - 1, skip))
        for place in [*(range(4) if depth == 5 else range(depth - 1)), LAST] if depth else []:
            value = _normal(rng, 2, 3, 2, 2)
            for held in (cache, everything):
                held.store(place, value, skips[place] if place >= 0 else None)
        cache.end()
    assert not cache._past


@settings(max_examples=300, deadline=None)
@given(runs(), st.booleans())
def test_the_cache_forecasts_as_defined_and_keeps_no_more_than_it_will_need(run, times_are_known):
    depths, orders, times = run
    schedule = Schedule(depths, orders=orders, rungs=5)
    described = schedule.calls(times if times_are_known else None)
    rng = np.random.default_rng(0)
    cache, history = Cache(span=len(depths)), {}
    for call, (depth, order, time) in enumerate(zip(depths, orders, times, strict=True)):
        cache.begin(described[call], time)
        if depth < 5:
            expected = plain_forecast(history[depth - 1], time, order)
            np.testing.assert_allclose(cache.recall(depth - 1).cpu().numpy(), expected, rtol=1e-3, atol=1e-4)
        computed = range(4) if depth == 5 else range(depth - 1)
        for place in [*computed, LAST] if depth else []:
            value = rng.normal(size=(2, 3)).astype(np.float32)
            history.setdefault(place, []).append((time, value.astype(float)))
            cache.store(place, put(torch.from_numpy(value)))
        cache.end()
        # A place that no later call reads holds nothing; the others hold no more values than the orders read.
        for place, past in cache._past.items():
            later = [o for d, o in zip(depths[call + 1 :], orders[call + 1 :], strict=True) if d - 1 == place]
            assert later and len(past) <= max(later) + 1
    assert not cache._past


def retention(schedule, times):
    return tuple(call.keep for call in schedule.calls(times))


def test_what_an_order_needs_is_kept_and_nothing_else():
    times = tuple(float(t) for t in range(900, 0, -100))
    assert retention(Schedule.uniform(9, 3, 1), times) == ({0: 1}, {0: 1}, {}) * 3
    one = retention(Schedule.uniform(9, 3, 1, order=1), times)
    assert one == ({0: 2}, {0: 2}, {0: 1}, {0: 2}, {0: 2}, {0: 1}, {0: 2}, {0: 2}, {})
    # PLMS uses its second timestep twice, and the second value replaces the first: call 0's is still needed.
    assert retention(Schedule([12, 12, 12, 1], orders=1), (9.0, 5.0, 5.0, 1.0))[1] == {0: 2}
    assert retention(Schedule([12, 12, 12, 1], orders=1), (9.0, 7.0, 5.0, 1.0))[1] == {0: 1}
    assert retention(Schedule.full(9), times) == ({},) * 9


@pytest.mark.parametrize("sampler", ["plms", "dpm++2m", "heun"])
@pytest.mark.parametrize("seed", range(3))
def test_in_the_pipeline_what_arrives_at_each_rung_is_the_plain_forecast(pipe, sampler, seed):
    if sampler != "plms":
        kind = DPMSolverMultistepScheduler if sampler == "dpm++2m" else HeunDiscreteScheduler
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    steps = 5 if sampler == "heun" else 9
    calls = num_calls(pipe, steps)
    rng = np.random.default_rng(seed)
    depths = [12, *rng.choice([0, 1, 2, 4, 12], size=calls - 1)]
    schedule = Schedule(depths, orders=rng.integers(0, 3, size=calls).tolist())
    dato.apply_patch(pipe, schedule)
    ladder = pipe.unet._dato_patch.ladder
    history: dict[int, list] = {}
    checked, state = [], {"call": -1}

    def on_call(module, args, kwargs):
        state["call"] += 1
        state["time"] = float(args[1] if len(args) > 1 else kwargs["timestep"])

    def on_up(index):
        skip_channels = ladder.rungs[index].up.conv1.in_channels

        def hook(module, args):
            depth, order = schedule.depths[state["call"]], schedule.orders[state["call"]]
            arrived = args[0][:, : skip_channels - _skip_channels(pipe.unet, index)].double().cpu().numpy()
            if index == depth - 1 and depth < 12:
                expected = plain_forecast(history[index], state["time"], order)
                np.testing.assert_allclose(arrived, expected, rtol=1e-3, atol=2e-3)
                checked.append(index)
            else:
                history.setdefault(index, []).append((state["time"], arrived))

        return hook

    handles = [pipe.unet.register_forward_pre_hook(on_call, with_kwargs=True)]
    handles += [rung.up.register_forward_pre_hook(on_up(i)) for i, rung in enumerate(ladder.rungs)]

    def on_output(module, args, kwargs, output):
        depth, order = schedule.depths[state["call"]], schedule.orders[state["call"]]
        prediction = output[0].double().cpu().numpy()
        if depth:
            history.setdefault(LAST, []).append((state["time"], prediction))
        else:
            expected = plain_forecast(history[LAST], state["time"], order)
            np.testing.assert_allclose(prediction, expected, rtol=1e-3, atol=1e-3)
            checked.append(LAST)

    handles.append(pipe.unet.register_forward_hook(on_output, with_kwargs=True))
    draw(pipe, steps)
    for handle in handles:
        handle.remove()
    assert state["call"] == calls - 1 and len(checked) == sum(d < 12 for d in depths)


def _skip_channels(unet, index):
    """Channels of the skip connection that rung `index` leaves."""
    below = [unet.conv_in]
    for block in unet.down_blocks:
        below += [*block.resnets, *(block.downsamplers or [])]
    return below[index].out_channels


class LinearInTime(torch.nn.Module):
    """Stands in for a part of the UNet: what it gives depends on the timestep alone, and on that linearly."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module, self.time, self.line = module, 0.0, None

    def forward(self, *args, **kwargs):
        output = self.module(*args, **kwargs)
        if self.line is None:
            generator = torch.Generator().manual_seed(1)
            self.line = [randn(*output.shape, generator=generator) for _ in range(2)]
        return self.line[0] + self.time / 500 * self.line[1]


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("order", [1, 2])
def test_where_time_passes_linearly_a_forecast_is_the_stock_result(depth, order):
    unet = tiny_unet(up_block_types=("UpBlock2D",) * 4)
    block = unet.up_blocks[-1]
    if depth == 0:
        stub = unet.conv_out = LinearInTime(unet.conv_out)
    else:
        # What arrives at rung d-1 is what the up-going resnet of rung d gives.
        stub = block.resnets[2 - depth] = LinearInTime(block.resnets[2 - depth])
    x, text = unet_inputs()
    times = [900.0, 810.0, 700.0, 650.0, 500.0, 420.0]

    def run():
        outputs = []
        for i, time in enumerate(times):
            stub.time = time
            with torch.no_grad():
                outputs.append(unet(x + 0.1 * i, time, text).sample)
        return outputs

    stock = run()
    with dato.patched(unet, Schedule([12, 12, depth, depth, 12, depth], orders=order)):
        ours = run()
    with dato.patched(unet, Schedule([12, 12, depth, depth, 12, depth], orders=0)):
        reuse = run()
    for a, b in zip(stock, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert (stock[3] - reuse[3]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_does_not_overflow_and_is_summed_in_float32(dtype):
    big = put(torch.tensor([[-6e4, 6e4, 100.0]])).to(dtype)
    for weights in (polynomial([900.0, 800.0], 750.0), polynomial([900.0, 800.0, 700.0], 650.0)):
        values = [big, -big, big][: len(weights)]
        out = combine(values, weights)
        exact = sum(w * v.double() for w, v in zip(weights, values, strict=True))
        limit = torch.finfo(dtype).max
        assert out.dtype == dtype and out.isfinite().all()
        torch.testing.assert_close(out.double(), exact.clamp(-limit, limit), rtol=1e-2, atol=1e-2)

    def constant(value):
        return torch.full((2, 4, 8, 8), value, dtype=dtype, device=device())

    skips = [constant(v) for v in (0.0, 300.0, 450.0)]
    torch.testing.assert_close(align([constant(0.0), constant(10.0)], skips, 0.5), constant(15.0))


@pytest.mark.parametrize("past", [2, 3])
@pytest.mark.parametrize("ridge", [0.0, 0.1, 1.0])
def test_an_aligned_forecast_is_ridge_regression_on_the_skips_for_each_image(past, ridge):
    torch.manual_seed(past)
    skips = [randn(2, 4, 8, 8) for _ in range(past + 1)]
    values = [randn(2, 3, 8, 8) for _ in range(past)]
    ours = align(values, skips, 1.5, ridge=ridge)
    for image in range(2):
        *known, now = (s[image].double().flatten().cpu().numpy() for s in skips)
        secants = np.stack([b - a for a, b in pairwise(known)], axis=1)
        prior = np.array([0.0] * (past - 2) + [1.5])
        penalty = np.sqrt(ridge * np.square(secants).sum(0).mean())
        design = np.vstack([secants, penalty * np.eye(past - 1)])
        steps = np.linalg.lstsq(design, np.concatenate([now - known[-1], penalty * prior]), rcond=None)[0]
        expected = values[-1][image].double()
        for c, (a, b) in zip(steps, pairwise(values), strict=True):
            expected = expected + c * (b[image] - a[image]).double()
        torch.testing.assert_close(ours[image].double(), expected, rtol=1e-4, atol=1e-4)
    # The scale of the skips does not matter.
    small = align(values, [skip * 1e-2 for skip in skips], 1.5, ridge=ridge)
    torch.testing.assert_close(small, ours, rtol=1e-3, atol=1e-3)
    # The ridge that schedules are defined with is a tenth.
    assert torch.equal(align(values, skips, 1.5), align(values, skips, 1.5, ridge=0.1))


def test_an_aligned_forecast_goes_as_far_as_its_skip_has_gone():
    torch.manual_seed(0)
    s0, s1, v0, v1 = (randn(2, 4, 8, 8) for _ in range(4))
    steps = put(torch.tensor([0.5, -0.25])).view(2, 1, 1, 1)
    moved = align([v0, v1], [s0, s1, s1 + steps * (s1 - s0)], 9.0, ridge=0)
    torch.testing.assert_close(moved, v1 + steps * (v1 - v0))
    still = torch.zeros_like(s0)
    assert torch.equal(align([v0, v1], [still, still, still], 0.5), v1)  # a skip that never moves tells nothing


def test_aligned_schedules_use_it_at_inner_rungs_and_time_at_depth_zero(pipe, monkeypatch):
    calls = []
    monkeypatch.setattr("dato.unet.cache.align", lambda v, s, k: calls.append(len(v)) or align(v, s, k))
    schedule = Schedule([12, 12, 1, 0, 12, 3], orders=1, forecast="aligned")
    with dato.patched(pipe, schedule):
        aligned = draw(pipe, 5)
    assert calls == [2, 3]
    with dato.patched(pipe, Schedule(schedule.depths, orders=1)):
        assert not torch.equal(aligned, draw(pipe, 5))
    with dato.patched(pipe, Schedule(schedule.depths, orders=0, forecast="aligned")):
        reuse = draw(pipe, 5)
    with dato.patched(pipe, Schedule(schedule.depths)):
        assert torch.equal(reuse, draw(pipe, 5))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_spectrums_weights_are_ridge_regression_mixed_with_the_line(calls, ahead):
    calls = sorted(calls)
    values = np.random.default_rng(0).normal(size=(len(calls), 3))
    now = calls[-1] + ahead

    def basis(call):
        x = np.arccos(np.clip(2 * call / 50 - 1, -1, 1))
        return np.array([np.cos(m * x) for m in range(5)])

    # Ridge regression as least squares with one more row for each coefficient.
    design = np.vstack([*(basis(c) for c in calls), np.sqrt(0.1) * np.eye(5)])
    fitted = basis(now) @ np.linalg.lstsq(design, np.vstack([values, np.zeros((5, 3))]), rcond=None)[0]
    line = plain_forecast([(float(c), v) for c, v in zip(calls, values, strict=True)], float(now), 1)
    ours = np.array(chebyshev(calls, now, 50)) @ values
    np.testing.assert_allclose(ours, 0.5 * fitted + 0.5 * line, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("growth", "whole"), [(0.75, 14), (3.0, 10)])
def test_growing_windows_are_spectrums(growth, whole):
    expected, window, cached = [], 2.0, 0
    for call in range(50):
        actual = call < 5 or (cached + 1) % int(window) == 0
        if actual and call >= 5:
            window += growth
        cached = 0 if actual else cached + 1
        expected.append(12 if actual else 0)
    schedule = Schedule.growing(50, growth=growth, forecast="chebyshev")
    assert list(schedule.depths) == expected and schedule.depths.count(12) == whole


def test_spectrum_forecasts_the_last_feature_from_all_past_ones(pipe):
    steps = 12
    calls = num_calls(pipe, steps)
    features, heads = [], []
    handle = pipe.unet.conv_norm_out.register_forward_pre_hook(lambda m, a: heads.append(a[0].clone()))
    schedule = Schedule.growing(calls, forecast="chebyshev")
    with dato.patched(pipe, schedule):
        draw(pipe, steps)
    handle.remove()
    assert len(heads) == calls  # the head runs at every call
    past = []
    for call, (depth, feature) in enumerate(zip(schedule.depths, heads, strict=True)):
        if depth == 0:
            weights = chebyshev(past, call, calls)
            expected = sum(w * v for w, v in zip(weights, features, strict=True))
            torch.testing.assert_close(feature, expected, rtol=1e-3, atol=1e-3)
        elif past and call == 2:  # PLMS uses the second timestep twice: the second value replaces the first
            past[-1], features[-1] = call, feature
        else:
            past.append(call)
            features.append(feature)


@pytest.mark.parametrize("forecast", ["polynomial", "aligned", "chebyshev"])
def test_no_state_survives_a_generation(make_pipe, forecast):
    first, second = Schedule.uniform(9, 3, 1, 2, ratio=0.25), Schedule([12, 12, 0, 3, 1, 12, 0, 2, 0], orders=1)
    schedules = [Schedule(s.depths, s.ratios, s.orders, forecast=forecast) for s in (first, second)]
    alone = []
    for schedule in schedules:
        alone.append(draw(dato.apply_patch(make_pipe(), schedule), 8))
    pipe = make_pipe()
    for turn in (0, 1, 0):
        dato.apply_patch(pipe, schedules[turn])
        assert torch.equal(draw(pipe, 8), alone[turn])
        assert not any(g.lanes and not g.lanes[0].cache.empty for g in pipe.unet._dato_patch._generations.running)
        assert torch.equal(draw(pipe, 8), alone[turn])
    # A generation that was stopped leaves nothing to the next.
    with pytest.raises(RuntimeError, match="stop"):
        draw(pipe, 8, callback_on_step_end=_stop)
    assert torch.equal(draw(pipe, 8), alone[0])


def _stop(pipe, step, timestep, kwargs):
    if step == 4:
        raise RuntimeError("stop")
    return kwargs


def test_img2img_forecasts_only_from_what_it_computed_itself(pipe):
    """It starts midway, at a call that the schedule has at depth 0 and that has to be whole for want of a cache."""
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    img2img = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    depths = [12, 0, 0, 12, 0, 0, 12, 0, 0, 12, 0, 12]
    dato.apply_patch(img2img, Schedule(depths, orders=1))
    seen = []
    handle = pipe.unet.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((float(args[1]), out[0].double().cpu().numpy())), with_kwargs=True
    )
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    img2img(PROMPTS[0], image=image, strength=2 / 3, num_inference_steps=12, generator=generator)
    handle.remove()
    assert len(seen) == 8  # calls 4 to 11
    history = []
    for depth, (time, prediction) in zip([12, *depths[5:]], seen, strict=True):
        if depth == 0:
            np.testing.assert_allclose(prediction, plain_forecast(history, time, 1), rtol=1e-3, atol=1e-3)
        else:
            history.append((time, prediction))
    # Two forecasts had one value to go by and are that value; the others are not the last one.
    assert np.array_equal(seen[1][1], seen[0][1]) and not np.allclose(seen[3][1], seen[2][1], atol=1e-2)


@pytest.mark.thorough
def test_forecasting_comes_closer_to_stock_than_reuse(pipe):
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    stock = draw(pipe, 20, 2)
    errors = []
    for order in (0, 1):
        with dato.patched(pipe, Schedule.uniform(20, 2, 1, order)):
            errors.append((draw(pipe, 20, 2) - stock).square().mean().item())
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_forecasts_of_a_half_precision_unet_are_finite(dtype):
    unet = tiny_unet().to(dtype)
    x, text = (tensor.to(dtype) for tensor in unet_inputs())
    for forecast in ("polynomial", "aligned", "chebyshev"):
        dato.apply_patch(
            unet, Schedule([12, 12, 1, 0, 3], orders=2 if forecast == "polynomial" else 1, forecast=forecast)
        )
        for time in (900, 800, 700, 600, 500):
            with torch.no_grad():
                out = unet(x, time, text).sample
            assert out.dtype == dtype and out.isfinite().all()


@st.composite
def turning_runs(draw):
    """(depths, orders, timesteps) of a generation whose timesteps rise and fall, and come back."""
    n = draw(st.integers(2, 14))
    times = draw(st.lists(st.sampled_from([900.0, 700.0, 500.0, 300.0, 100.0]), min_size=n, max_size=n))
    depths = [5, *draw(st.lists(st.integers(0, 5), min_size=n - 1, max_size=n - 1))]
    orders = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    return depths, orders, times


def since_the_turn(history, times, now):
    """What a call may read: values since the timesteps last turned, else the last value alone.

    `history` holds (call, value) of one place.
    """
    recent = [(times[call], value) for call, value in history if not turns(times[call : now + 1])]
    return recent or [(times[call], value) for call, value in history[-1:]]


def turns(times):
    """Whether timesteps both rise and fall."""
    steps = [b - a for a, b in pairwise(times)]
    return min(steps, default=0) < 0 < max(steps, default=0)


@settings(max_examples=300, deadline=None)
@given(turning_runs())
def test_where_timesteps_turn_round_forecasts_read_what_was_computed_since(run):
    depths, orders, times = run
    schedule = Schedule(depths, orders=orders, rungs=5)
    rng = np.random.default_rng(0)
    cache, history = Cache(span=len(depths)), {}
    for call, depth, order, time in zip(schedule.calls(times), depths, orders, times, strict=True):
        cache.begin(call, time)
        if depth < 5:
            known = since_the_turn(history[depth - 1], times, call.index)
            expected = plain_forecast(known, time, order)
            np.testing.assert_allclose(cache.recall(depth - 1).cpu().numpy(), expected, rtol=1e-3, atol=1e-4)
            assert len(call.sources) == min(len({time for time, _ in known}), order + 1)
        for place in [*(range(4) if depth == 5 else range(depth - 1)), LAST] if depth else []:
            value = rng.normal(size=(2, 3)).astype(np.float32)
            history.setdefault(place, []).append((call.index, value.astype(float)))
            cache.store(place, put(torch.from_numpy(value)))
        cache.end()
    assert not cache._past


def predictions(schedule, times):
    """The predictions of a patched UNet at these timesteps, each of other latents."""
    unet, (x, text) = tiny_unet(), unet_inputs()
    dato.apply_patch(unet, schedule)
    with torch.no_grad():
        return [unet(x + i, time, text).sample for i, time in enumerate(put(torch.tensor(times)))]


@pytest.mark.parametrize(
    ("times", "whole", "weights"),
    [
        ((900.0, 500.0, 700.0, 300.0), 3, (0, 0, 1)),  # what was before the turn is not mixed in
        ((900.0, 700.0, 500.0, 700.0, 500.0, 300.0), 5, (0, 0, 0, -1, 2)),  # a restart
        ((900.0, 500.0, 700.0, 700.0, 500.0, 300.0), 5, (0, 0, 0, -1, 2)),  # ... that calls twice
        ((900.0, 700.0, 500.0, 700.0), 3, (0, 0, 1)),
        ((100.0, 300.0, 500.0, 700.0), 3, (1, -3, 3)),  # inversion
        ((900.0, 700.0, 500.0, 300.0), 3, (1, -3, 3)),
    ],
)
def test_a_prediction_is_forecast_where_timesteps_rise(times, whole, weights):
    *computed, forecast = predictions(Schedule([12] * whole + [0], orders=2), times)
    expected = sum(weight * value for weight, value in zip(weights, computed, strict=True))
    assert torch.allclose(forecast, expected, atol=1e-4)


@pytest.mark.parametrize("forecast", ["polynomial", "aligned", "chebyshev"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_no_rule_fails_where_timesteps_turn_round(forecast, order, depth):
    times = (900.0, 500.0, 700.0, 500.0, 500.0, 700.0, 300.0, 100.0, 0.0)
    schedule = Schedule([12, 12, depth, 12, 12, depth, 12, 12, depth], orders=order, forecast=forecast)
    assert all(prediction.isfinite().all() for prediction in predictions(schedule, times))
