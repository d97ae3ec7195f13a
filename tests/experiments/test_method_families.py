"""The families of methods that an evaluation compares with, and what it adds to each of them."""

from types import SimpleNamespace

import pytest
from conftest import tiny_unet

import dato
from dato import DatoError, Schedule
from dato.evaluation.pool import Facts
from dato.evaluation.rules import rules
from dato.experiments.method_families import check_families, families_of
from dato.experiments.paper_evaluation import Entry, _plain_by, flop_shares
from dato.experiments.speed import sample_shape
from dato.generation.sampling import Sampling

FRONT = dato.load_front("emoji-sd-depth")


def facts(calls: int, rungs: int = 12) -> Facts:
    return Facts(rungs, calls, {calls: calls}, "DPMSolverMultistepScheduler", "dpm++2m", (64, 64), (1, 2), "CPU")


@pytest.mark.parametrize("calls", [50, 51, 25, 20, 10, 8, 6])
def test_the_rules_are_some_of_the_family(calls):
    check_families(["rules"])
    [methods] = families_of(["rules"], facts(calls)).values()
    every = set(rules([calls], 12))
    assert len(methods) >= 4 and all(method.schedule in every for method in methods)
    assert len({method.schedule for method in methods}) == len({method.name for method in methods}) == len(methods)


def test_rules_by_name():
    [methods] = families_of(["rules"], facts(50)).values()
    schedules = {method.name: method.schedule for method in methods}
    assert schedules["rule: 10 of 50 whole"] == Schedule.spread(50, 10, 0, 1)
    assert schedules["rule: every 3rd of 50 whole"] == Schedule.uniform(50, 3, 1, 1)
    whole = [int(name.split()[1]) for name in schedules if name.endswith("whole") and "every" not in name]
    assert whole == [25, 21, 17, 14, 12, 10, 8, 7, 6, 5, 4]
    growing = {name.split()[1]: schedule for name, schedule in schedules.items() if name.endswith("growing")}
    assert list(growing) == ["22", "19", "15", "13", "11"]
    assert growing["11"] == Schedule.spread(50, 11, 0, 1, cooldown=2, growth=1.25)
    early = {name.split()[1]: schedule for name, schedule in schedules.items() if name.endswith("early")}
    assert list(early) == ["19", "15", "13", "11", "9", "7", "6", "5", "4", "3"]
    assert early["5"] == Schedule.spread(50, 5, 0, 1, growth=1.25, tail=1)
    [small] = families_of(["rules"], facts(8, rungs=1)).values()  # no call can run a part of such a UNet
    assert [method.name for method in small] == ["rule: 4 of 8 whole", "rule: 3 of 8 whole, ending early"]


def test_plain_steps_are_compared_by_the_fronts_objective():
    entry = Entry("front", FRONT, {0: FRONT.points[0]})
    assert _plain_by([entry], ["clip-score", "ssim", "psnr"]) == "psnr"
    assert _plain_by([], ["clip-score", "psnr"]) == "psnr"
    assert _plain_by([entry], ["clip-score", "ssim"]) is None
    assert _plain_by([Entry("one", Schedule.full(3), {})], ["ssim"]) is None


def test_shares_of_flops():
    pipe = SimpleNamespace(unet=tiny_unet(), vae_scale_factor=8)
    evaluator = SimpleNamespace(pipe=pipe, sampling=Sampling(8, 3.0), calls=8)
    schedules = [Schedule.full(8), Schedule.full(2), Schedule.spread(8, 3), Schedule.uniform(8, 2, 1)]
    full, short, spread, shallow = flop_shares(evaluator, schedules)
    assert (full, short, spread) == (1, 0.25, 3 / 8) and 0.5 < shallow < 1
    wide = SimpleNamespace(unet=tiny_unet(sample_size=(16, 24)), vae_scale_factor=8)
    assert sample_shape(wide, evaluator.sampling, 1) == (2, 4, 16, 24)
    unknown = SimpleNamespace(pipe=SimpleNamespace(unet=tiny_unet(sample_size=None), vae_scale_factor=8))
    with pytest.raises(DatoError, match="give `height` and `width`"):
        sample_shape(unknown.pipe, evaluator.sampling, 1)
    unknown.sampling, unknown.calls = evaluator.sampling, 8
    assert flop_shares(unknown, schedules[:2]) == [None, None]  # a table without them is better than none
