"""Which schedule a run gets, and what is said about it."""

import pytest
import stand_in
from runs import runs, sample, scheduled, uniform

from dato import Pruning, rule
from dato.comfyui.apply import apply_schedule
from dato.comfyui.run_schedule import ALIKE, schedule_of_run
from dato.comfyui.sampler_calls import TWICE
from dato.comfyui.settings import Settings
from dato.comfyui.summary import what_ran, what_will_run
from dato.errors import DatoError
from dato.samplers import SAMPLERS


def of_run(calls: int = 8, sampler: str = "euler", cfg: float = 3.0, **settings):
    unet = stand_in.patcher().model.diffusion_model
    return schedule_of_run(Settings(**settings), unet, calls, sampler, cfg)


def test_a_given_schedule_is_resampled():
    assert of_run(4, schedule=uniform(1, interval=2, calls=8)).depths == (6, 1, 6, 1)


def test_nothing_set_is_whole_calls():
    assert of_run(3).depths == (6, 6, 6)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "dpmpp_2m_sde", "my own"])
def test_the_rule_knows_the_sampler(sampler):
    unet = stand_in.patcher().model.diffusion_model
    alike = ALIKE.get(sampler, "euler-a")
    expected = rule(unet, 20, 2.0, sampler=alike, guidance_scale=3.0)
    assert of_run(20, sampler, speedup=2.0) == expected
    assert 6 < expected.depths.count(6) <= 10


def test_the_rule_differs_by_sampler():
    assert of_run(20, "euler", speedup=2.0) != of_run(20, "dpmpp_2m_sde", speedup=2.0)


def test_all_samplers_that_are_alike_are_known():
    assert set(ALIKE.values()) <= set(SAMPLERS) and TWICE & set(ALIKE)


def test_a_window():
    assert of_run(10, schedule=uniform(1, interval=10, calls=10), start=0.3, end=0.8).depths == (
        *(6, 6, 6),
        *(1, 1, 1, 1, 1),
        *(6, 6),
    )


def test_a_ratio_for_all_calls():
    pruning = Pruning(score="V")
    schedule = of_run(4, schedule=uniform(1, calls=4), ratio=0.5, pruning=pruning)
    assert schedule.ratios == (0.5,) * 4 and schedule.pruning == pruning


def test_a_front_by_its_name():
    _, settings = apply_schedule(stand_in.patcher(), "emoji-sd-depth", "speed-up", 5)
    assert settings.point.speedup >= 5 and "times as fast" in what_will_run(settings)
    assert settings.schedule.rungs == 6


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"name": "no such front"}, "no file and no shipped strategy"),
        ({"name": "emoji-sd-depth", "speedup": 1000}, "times as fast as stock"),
        ({"speedup": 0.5}, "speedup must be a number above 1"),
        ({"start": 0.8, "end": 0.2}, "`start`"),
        ({"name": "emoji-sd-depth", "pick": "best"}, "`pick`"),
    ],
    ids=str,
)
def test_wrong_inputs(inputs, says):
    with pytest.raises(DatoError, match=says):
        apply_schedule(stand_in.patcher(), **inputs)


def test_a_model_of_another_kind():
    model = stand_in.patcher()
    model.model.diffusion_model = stand_in.Downsample()
    with pytest.raises(DatoError, match="this model is a Downsample"):
        apply_schedule(model)


def test_what_is_said(monkeypatch):
    model = stand_in.patcher()
    assert "2.5 times fewer FLOPs" in what_will_run(apply_schedule(model, speedup=2.5)[1])
    window = what_will_run(apply_schedule(model, speedup=2, start=0.25, end=0.75)[1])
    assert "before 25% and after 75%" in window
    shipped = what_will_run(apply_schedule(model, "sd15-uniform-n3-d1")[1])
    assert "at depth 1" in shipped and "█11█11" in shipped
    with runs(monkeypatch) as found:
        sample(scheduled(model, uniform(0)))
    assert what_ran(found[0]).startswith("7 calls: 3 whole, 4 at depth 0. The UNet took 2.33 times fewer FLOPs")
    assert "█··█··█" in what_ran(found[0]) and "resampled" not in what_ran(found[0])
    with runs(monkeypatch) as found:
        sample(scheduled(model, uniform(0, calls=14)))
    assert "made for 14 calls, so it was resampled" in what_ran(found[0])


def test_a_unet_whose_flops_cannot_be_counted(monkeypatch):
    """A given schedule runs there. The rule says what to do."""

    def refuse(*given):
        raise RuntimeError("no kernel for this quantised layer")

    monkeypatch.setattr("dato.unet.depth_shares.depth_share", refuse)
    monkeypatch.setattr("dato.unet.speedup_rule.depth_share", refuse)
    with pytest.raises(DatoError, match=r"cannot count .* \(no kernel .*\); choose a schedule"):
        of_run(20, speedup=2.0)
    with runs(monkeypatch) as found:
        sample(scheduled(stand_in.patcher(), uniform(1)))
    assert what_ran(found[0]).startswith("7 calls: 3 whole, 4 at depth 1\n")
