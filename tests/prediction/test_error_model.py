"""The sensitivity model and the plans made with it."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PROMPTS, draw
from diffusers import DDIMScheduler, PNDMScheduler
from error_models import random_model
from hypothesis import given, settings
from hypothesis import strategies as st

import dato
from dato.errors import DatoError
from dato.generation.sampling import Sampling
from dato.prediction.error_measure import final_latent, measure_sensitivity
from dato.prediction.error_model_file import sensitivity_from_dict, sensitivity_to_dict
from dato.prediction.sampler_response import effective_weights, sampler_response
from dato.samplers import SAMPLERS, num_calls, set_scheduler
from dato.schedule import Schedule
from dato.search.planner import plan

STEPS = 6
SAMPLING = Sampling(STEPS, 3.0, 64, 64, 0, 2)


@pytest.fixture(scope="module")
def measured(make_pipe):
    """A tiny pipeline with DDIM, and its model; its partial calls were measured at every age."""
    pipe = make_pipe(seed=3)
    set_scheduler(pipe, "ddim")
    ages = range(1, STEPS)
    model = measure_sensitivity(pipe, PROMPTS[:2], SAMPLING, (0, 1, 3), ratios=(0.5,), ages=ages)
    return pipe, model


def final(pipe, schedule: Schedule):
    with dato.patched(pipe, schedule):
        return draw(pipe, STEPS, images=2, height=64, width=64)


def test_stock_has_no_error(measured):
    _, model = measured
    assert model.error(Schedule.full(STEPS)) == 0
    assert all(np.isfinite(model.weights)) and model.unet_calls > 2 * STEPS


def test_error_of_one_partial_call(measured):
    pipe, model = measured
    stock = final(pipe, Schedule.full(STEPS))
    # A forecast's error is a difference of larger ones; and six steps of a random UNet are far from linear.
    for depth, call, order, factor in [(0, 2, 0, 2), (1, 4, 0, 2), (3, 3, 0, 2), (1, 2, 1, 4), (0, 5, 1, 1.3)]:
        depths = [12] * STEPS
        depths[call] = depth
        schedule = Schedule(depths, orders=order)
        true = (final(pipe, schedule) - stock).square().mean().item()
        predicted = np.square(model.weights @ model.totals(schedule)[0]).sum() / model.images
        assert true / factor < predicted < factor * true
        assert predicted < model.error(schedule)  # doubt comes on top


def test_measuring_leaves_the_pipeline_stock(measured):
    pipe, _ = measured
    assert "forward" not in pipe.unet.__dict__
    assert not pipe.unet._forward_hooks


def test_without_guidance_and_in_batches(make_pipe):
    pipe = make_pipe()
    sampling = Sampling(4, 1.0, 64, 64, 0, 1)
    model = measure_sensitivity(pipe, PROMPTS[:2], sampling, (1,), ages=(1, 3))
    assert len(model) == num_calls(pipe, 4) == 5
    assert model.error(Schedule.uniform(5, 2, 1)) > 0


def test_a_ratio_adds_its_error(measured):
    _, model = measured
    base = Schedule.uniform(STEPS, 2, 1)
    assert model.error(Schedule.full(STEPS).with_ratios(0.5)) > 0
    assert model.error(base.with_ratios(0.5)) != model.error(base)
    with pytest.raises(DatoError, match=r"ratio 0\.3"):
        model.error(base.with_ratios(0.3))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_response_of_every_sampler(pipe, name):
    set_scheduler(pipe, name)
    calls = num_calls(pipe, STEPS)
    response, scales, times = sampler_response(pipe.scheduler, STEPS)
    assert len(times) == calls
    assert response.shape == (calls + 1, calls) and scales.shape == (calls,)
    assert np.isfinite(response).all() and (scales > 0).all()
    assert not np.triu(response[:-1]).any()  # no latent depends on the predictions that come after it
    assert response[-1].any()


def test_response_of_ddim_is_the_closed_form(pipe):
    set_scheduler(pipe, "ddim")
    scheduler: DDIMScheduler = pipe.scheduler
    response = sampler_response(scheduler, STEPS, torch.randn(9), torch.randn(STEPS, 9)).latents
    scheduler.set_timesteps(STEPS)
    stride = scheduler.config.num_train_timesteps // STEPS
    # x' / a' = x / a + (s' / a' - s / a) prediction, with a = alpha_bar^(1/2) and s = (1 - alpha_bar)^(1/2).
    expected = []
    for t in scheduler.timesteps.tolist():
        now = scheduler.alphas_cumprod[t]
        then = scheduler.alphas_cumprod[t - stride] if t >= stride else scheduler.final_alpha_cumprod
        expected.append(((1 - then) / then) ** 0.5 - ((1 - now) / now) ** 0.5)
    expected = np.array(expected) * float(then) ** 0.5
    assert np.allclose(response[-1], expected, rtol=1e-3)
    assert np.allclose(effective_weights(response, np.zeros(STEPS)), response[-1])


def test_response_of_plms_without_a_unet(pipe):
    scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    scheduler.set_timesteps(STEPS)
    predictions = torch.randn(7, 1, 1, 1, 5, dtype=torch.float64)

    def run(predictions):
        own, x = PNDMScheduler.from_config(scheduler.config), torch.ones(1, 1, 1, 5, dtype=torch.float64)
        own.set_timesteps(STEPS)
        for prediction, t in zip(predictions, own.timesteps, strict=True):
            x = own.step(prediction, t, x).prev_sample
        return x.flatten().numpy()

    response = sampler_response(scheduler, STEPS).latents
    change = np.random.default_rng(0).normal(size=7)
    changed = predictions + torch.tensor(change).view(7, 1, 1, 1, 1)
    assert np.allclose(run(changed) - run(predictions), response[-1] @ change)


def test_feedback_takes_errors_back():
    """With x' = x - 0.5 prediction and prediction = x every step halves the error of the one before."""
    response = np.tril(np.full((5, 4), -0.5), -1)
    assert np.allclose(effective_weights(response, np.ones(4)), [-0.0625, -0.125, -0.25, -0.5])


def test_json_round_trip(measured):
    _, model = measured
    again = sensitivity_from_dict(json.loads(json.dumps(sensitivity_to_dict(model))))
    for schedule in (Schedule.uniform(STEPS, 2, 1), Schedule.uniform(STEPS, 3, 0, 1, ratio=0.5)):
        assert again.error(schedule) == pytest.approx(model.error(schedule), rel=0.02)
    assert again.times == model.times


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"weights": [1.0]},
        {"weights": [float("nan")] * STEPS},
        {"ages": [3, 2, 1]},
        {"partial": [[40, None]]},
        {"predictions": {"shape": [2, 2], "scale": 1.0, "data": "AA=="}},
        {"times": []},
        {"pruning": {"nonsense": 1}},
    ],
)
def test_bad_data_is_refused(measured, change):
    _, model = measured
    with pytest.raises(DatoError):
        sensitivity_from_dict(sensitivity_to_dict(model) | change)


def test_what_was_not_measured_is_named(measured):
    _, model = measured
    with pytest.raises(DatoError, match="depth 5"):
        model.error(Schedule.uniform(STEPS, 2, 5))
    with pytest.raises(DatoError, match="6 calls"):
        model.error(Schedule.full(9))
    with pytest.raises(DatoError, match="depth 2"):
        plan(model, lambda kind: 1.0, 5, depths=(0, 2))
    with pytest.raises(DatoError, match="no sensitivity model"):
        plan([], lambda kind: 1.0, 5)
    with pytest.raises(DatoError, match="Chebyshev"):
        plan(model, lambda kind: 1.0, 5, orders=(1,), forecast="chebyshev")


def test_the_same_number_of_steps_is_the_same_model(measured):
    pipe, model = measured
    again = model.for_steps(pipe.scheduler, STEPS, model.final)
    for schedule in (Schedule.uniform(STEPS, 2, 1), Schedule.uniform(STEPS, 3, 3, 1), Schedule.uniform(STEPS, 6, 0)):
        assert again.error(schedule) == pytest.approx(model.error(schedule), rel=1e-3)


def test_another_number_of_steps(measured):
    pipe, model = measured
    steps = STEPS - 2
    shorter = model.for_steps(
        pipe.scheduler, steps, final_latent(pipe, PROMPTS[:2], replace(SAMPLING, steps=steps))
    ).against(model)
    stock = Schedule.full(steps)
    with dato.patched(pipe, stock):
        latents = draw(pipe, steps, images=2, height=64, width=64)
    true = (latents - final(pipe, Schedule.full(STEPS))).square().mean().item()
    assert shorter.error(stock) == pytest.approx(true, rel=0.4)  # it is projected
    assert shorter.error(Schedule.uniform(steps, 2, 0)) > 0
    again = sensitivity_from_dict(json.loads(json.dumps(sensitivity_to_dict(shorter))))
    assert again.error(stock) == pytest.approx(shorter.error(stock), rel=1e-3)
    found = plan([shorter, model], lambda kind: 1.0 if kind.depth == 12 else 0.1, 20, depths=(0, 1))
    assert {len(s) for s in found} <= {steps, STEPS} and model.error(found[-1]) == 0


COST = {0: 0.05, 1: 0.3, 2: 0.55, 3: 1.0}


def price(schedule: Schedule) -> float:
    return round(sum(COST[depth] for depth in schedule.depths), 6)


TIMES = None, (9.0, 5.0, 7.0, 5.0, 3.0, 1.0)  # as in PLMS, and of a sampler that restarts


@given(st.integers(0, 1000), st.sampled_from([0, 1, 2]), st.sampled_from(TIMES))
@settings(max_examples=12, deadline=None)
def test_a_plan_is_the_front_of_all_schedules(seed, order, times):
    model = random_model(seed)
    model = replace(model, times=times or model.times)
    every = [Schedule((3, *rest), orders=order, rungs=3) for rest in itertools.product((0, 1, 3), repeat=5)]
    errors = {s.depths: (price(s), model.error(s)) for s in every}
    front = [
        own
        for own in errors.values()
        if not any(o != own and o[0] <= own[0] and o[1] <= own[1] for o in errors.values())
    ]
    found = plan(model, lambda kind: COST[kind.depth], 1000, orders=(order,), width=10_000)
    assert np.allclose(sorted((price(s), model.error(s)) for s in found), sorted(set(front)))


def test_a_plan_spreads_over_the_budgets():
    model = random_model(calls=20, depths=(1, 2))
    found = plan(model, lambda kind: COST[kind.depth], 8, orders=(0, 1))
    prices, errors = [price(s) for s in found], [model.error(s) for s in found]
    assert 4 <= len(found) <= 8
    assert prices == sorted(prices) and errors == sorted(errors, reverse=True)
    assert errors[-1] == 0  # the whole


def test_a_plan_costs_calls_as_the_table_does():
    """Every kind of call that a plan asks the cost of is one that its schedules have."""
    from dato.prediction.latency_table import LatencyTable, call_kinds
    from dato.search.spaces import DepthSpace

    model, space = random_model(calls=12), DepthSpace([12], 3, (0, 1), (0, 1), "aligned")
    kinds = {kind for s in space.examples() for kind in call_kinds(s)}
    table = LatencyTable(3, {kind: COST[kind.depth] for kind in kinds}, 1.0, 0.0, 0.0)
    for schedule in plan(model, table.calls.__getitem__, 6, orders=(0, 1), forecast="aligned"):
        assert table.predict_unet(schedule) > 0
        assert space.encode(schedule) is not None
