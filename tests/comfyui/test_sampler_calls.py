"""Which call of a generation an evaluation of a sampler is."""

from types import SimpleNamespace

import pytest
import stand_in
import torch
from runs import STEPS, depths, runs, sample, scheduled, uniform

from dato.comfyui.sampler_calls import SamplerCalls, sampler_of
from dato.comfyui.summary import what_ran

SIGMAS = [8.0, 4.0, 2.0, 1.0, 0.0]


def indices(calls: SamplerCalls, *sigmas: float) -> list[int | None]:
    return [calls.begin([sigma]) for sigma in sigmas]


def test_one_call_a_step():
    calls = SamplerCalls(SIGMAS, "euler")
    assert calls.total == 4 and indices(calls, 8.0, 4.0, 2.0, 1.0) == [0, 1, 2, 3]


def test_levels_that_were_computed_anew():
    """UniPC computes a level from its logarithm."""
    assert indices(SamplerCalls(SIGMAS), *(sigma * 1.0001 for sigma in SIGMAS[:-1])) == [0, 1, 2, 3]


def test_two_calls_a_step():
    calls = SamplerCalls(SIGMAS, "dpmpp_sde")
    assert calls.total == 7 and indices(calls, 8.0, 5.6, 4.0, 2.8, 2.0, 1.4, 1.0) == [0, 1, 2, 3, 4, 5, 6]
    assert SamplerCalls(SIGMAS[:-1], "heun").total == 6  # the last step does not end at 0, so it has two, too


def test_a_sampler_that_is_not_what_its_name_says():
    assert indices(SamplerCalls(SIGMAS, "heun"), 8.0, 4.0, 2.0, 4.0, 2.0) == [0, 1, None, None, None]


def test_levels_besides_the_list_and_levels_that_come_again():
    assert indices(SamplerCalls(SIGMAS), 8.0, 6.0, 4.0, 4.0, 8.0, 2.0, 0.5) == [0, None, 1, None, None, 2, None]


def test_a_level_that_was_left_out():
    assert indices(SamplerCalls(SIGMAS), 8.0, 2.0) == [0, 2]


def test_images_at_different_levels():
    assert SamplerCalls(SIGMAS).begin([8.0, 4.0]) is None


@pytest.mark.parametrize(
    ("function", "name"),
    [("sample_dpmpp_2m_sde_gpu", "dpmpp_2m_sde"), ("sample_euler_ancestral_RF", "euler_ancestral"), ("mine", "mine")],
)
def test_names_of_samplers(function, name):
    def run() -> None: ...

    run.__name__ = function
    assert sampler_of(SimpleNamespace(sampler_function=run)) == name
    assert sampler_of(object()) == ""


def test_heun_in_a_generation(monkeypatch):
    model, heun = stand_in.patcher(), stand_in.sampler(stand_in.sample_heun)
    stock = sample(model, sampler=heun)
    assert torch.equal(sample(scheduled(model, uniform(6, calls=13)), sampler=heun), stock)
    with runs(monkeypatch) as found:
        assert torch.isfinite(sample(scheduled(model, uniform(0, 1, calls=13)), sampler=heun)).all()
    assert depths(found[0]) == [6, 0, 0] * 4 + [6] and not found[0].besides


def test_an_unknown_sampler_in_a_generation(monkeypatch):
    """Its calls at levels of the list follow the schedule. The others are whole, and are counted."""
    model, unknown = stand_in.patcher(), stand_in.sampler(stand_in.sample_unknown)
    with runs(monkeypatch) as found:
        sample(scheduled(model, uniform(1)), sampler=unknown)
    assert depths(found[0]) == [6, 1, 1, 6, 1, 1, 6] and found[0].besides == STEPS
    assert f"called {STEPS} times" in what_ran(found[0])
