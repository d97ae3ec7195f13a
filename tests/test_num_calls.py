"""The number of UNet calls of a sampler can be asked for at any time, and asking does not change the sampler."""

import copy

import pytest
import torch
from conftest import draw
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler
from which_tests import thorough

from dato import DatoError, num_calls, set_scheduler
from dato.samplers import SAMPLERS, lengths

CALLS_OF_10_STEPS = {"plms": 11, "heun": 19, "dpm++sde": 19}


def state(scheduler):
    """What a scheduler holds, with the schedulers inside it."""
    values = {name: value for name, value in vars(scheduler).items() if name != "noise_sampler"}
    inner = {name: state(value) for name, value in values.items() if isinstance(value, SchedulerMixin)}
    return copy.deepcopy({**values, **inner})


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool((one == other) if not hasattr(one, "shape") else (one == other).all())


EVERYDAY = ("plms", "dpm++2m", "heun", "euler-a")  # one of each kind: repeated, multistep, two calls a step, noisy


@pytest.mark.parametrize("name", [*EVERYDAY, *thorough(*(name for name in SAMPLERS if name not in EVERYDAY))])
def test_a_generation_is_not_disturbed(pipe, name):
    set_scheduler(pipe, name)
    expected = draw(pipe, steps=5)
    scheduler, seen = pipe.scheduler, []

    def ask(pipe, step, timestep, tensors):
        before = state(pipe.scheduler)
        seen.append((num_calls(pipe, 10), max(lengths(pipe, 7)), same(before, state(pipe.scheduler))))
        return tensors

    assert torch.equal(draw(pipe, steps=5, callback_on_step_end=ask), expected)
    assert pipe.scheduler is scheduler
    assert len(seen) >= 5 and set(seen) == {(CALLS_OF_10_STEPS.get(name, 10), 7, True)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_scheduler_that_has_not_run_stays_so(pipe, name):
    set_scheduler(pipe, name)
    before = state(pipe.scheduler)
    assert num_calls(pipe, 10) == CALLS_OF_10_STEPS.get(name, 10)
    assert same(before, state(pipe.scheduler))


def test_a_scheduler_inside_another_stays_as_it_is(pipe):
    inner = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, solver_p=inner)
    pipe.scheduler.set_timesteps(5)
    before = state(inner)
    assert num_calls(pipe, 10) == 10
    assert pipe.scheduler.solver_p is inner and len(inner.timesteps) == 5 and same(before, state(inner))


def test_it_is_as_many_as_there_are_timesteps(pipe):
    for name in SAMPLERS:
        set_scheduler(pipe, name)
        for steps in (2, 7, 20):
            calls = num_calls(pipe, steps)
            pipe.scheduler.set_timesteps(steps)
            assert calls == len(pipe.scheduler.timesteps), name


def test_what_cannot_be_is_named(pipe):
    with pytest.raises(DatoError, match="steps must be at least 1, not 0"):
        num_calls(pipe, 0)
    set_scheduler(pipe, "ddim")
    with pytest.raises(DatoError, match="cannot do 2000 steps"):
        num_calls(pipe, 2000)
