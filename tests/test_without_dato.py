"""The page "Run a front without dato": what its code does, in comparison with dato."""

import json
from typing import Any

import pytest
import torch
from conftest import ROOT, draw, tiny_unet, unet_inputs
from test_docs import blocks
from tiny_pipelines import sample, tiny
from which_tests import thorough

import dato
from dato import Point, Schedule

PAGE = ROOT / "docs" / "without-dato.md"


@pytest.fixture(scope="module")
def run_schedule():
    """The page's function, from its one block that defines it."""
    [code] = [code for _, code in blocks(PAGE, "python") if "def run_schedule" in code]
    assert "dato" not in code
    namespace: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace["run_schedule"]


def without(run_schedule, unet, schedule, generate):
    """What `generate` returns while the page's function runs a schedule, after it was JSON."""
    run_schedule(unet, json.loads(schedule.to_json()))
    try:
        return generate()
    finally:
        del unet.forward


def with_dato(pipe, schedule, generate):
    with dato.patched(pipe, schedule):
        return generate()


MIXED = [12, 1, 0, 3, 12, 12, 2, 1, 0, 0, 6]


@pytest.mark.parametrize(
    ("sampler", "depths", "orders"),
    [
        ("dpm++2m", Schedule.uniform(6, 3, 0).depths, 0),
        ("ddim", Schedule.uniform(6, 2, 3).depths, 1),
        ("plms", MIXED, [0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1]),
        *thorough(
            ("dpm++2m", Schedule.uniform(6, 3, 1).depths, 0),
            ("plms", Schedule.uniform(7, 2, 4).depths, 0),
            ("ddim", Schedule.uniform(6, 3, 11).depths, 0),
            ("plms", MIXED, 0),
            ("dpm++2m", Schedule.uniform(6, 2, 0).depths, 1),
            ("plms", MIXED, 1),
        ),
        ("heun", [12, 12, 1, 0, 12, 2, 1], 1),  # two calls at one timestep
    ],
)
def test_images_are_bit_for_bit_those_of_dato(run_schedule, pipe, sampler, depths, orders):
    dato.set_scheduler(pipe, sampler)
    schedule = Schedule(depths, orders=orders)
    steps = next(n for n in range(1, 20) if dato.num_calls(pipe, n) == len(schedule))

    def generate():  # two generations, because the second one must not know the first
        return torch.cat([draw(pipe, steps, seed=seed, guidance_scale=1.0) for seed in (0, 1)])

    ours, stock = with_dato(pipe, schedule, generate), generate()
    theirs = without(run_schedule, pipe.unet, schedule, generate)
    assert (theirs - ours).abs().max() == 0 < (stock - ours).abs().max()
    assert torch.equal(generate(), stock)  # nothing is left behind


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(("kind", "rungs", "size"), [("sd", 12, (16, 16)), ("sd", 12, (20, 12)), ("sdxl", 9, (16, 16))])
def test_other_unets_and_sizes(run_schedule, kind, rungs, size, order):
    unet = tiny_unet(kind)
    latents, text = unet_inputs(size=size)
    schedule = Schedule([rungs, 1, rungs, 3, 0, 2, 1], orders=order, rungs=rungs)

    def generate():
        with torch.no_grad():
            times = torch.linspace(900, 100, len(schedule))
            return torch.stack([unet(latents * (1 + t / 1000), t, text, return_dict=False)[0] for t in times])

    assert torch.equal(without(run_schedule, unet, schedule, generate), with_dato(unet, schedule, generate))


@pytest.mark.parametrize("name", ["SDXL", "LCM"])
def test_other_pipelines_pass_what_their_unets_need(run_schedule, name):
    pipe, kwargs = tiny(name)
    rungs, steps = len(dato.unet.Ladder(pipe.unet)), 5
    calls = dato.num_calls(pipe, steps)
    schedule = Schedule([rungs, 1, rungs, 2, 1, 0][:calls], orders=1, rungs=rungs)

    def generate():
        return sample(pipe, kwargs, steps)

    ours = with_dato(pipe, schedule, generate)
    assert torch.equal(without(run_schedule, pipe.unet, schedule, generate), ours)


def test_a_controlnet_is_not_ignored(run_schedule):
    pipe, kwargs = tiny("ControlNet")
    run_schedule(pipe.unet, json.loads(Schedule.full(5, rungs=8).to_json()))
    with pytest.raises(TypeError, match="down_block_additional_residuals"):
        sample(pipe, kwargs)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule([12, 1], orders=2),
        Schedule([12, 1], orders=1, forecast="aligned"),
        Schedule([12, 1], ratios=0.5),
        Schedule([9, 1], rungs=9),
    ],
)
def test_what_the_page_does_not_cover_is_refused(run_schedule, schedule):
    unet = tiny_unet()
    with pytest.raises(ValueError, match="another UNet, prunes tokens, or has forecasts other than the line"):
        run_schedule(unet, json.loads(schedule.to_json()))
    assert "forward" not in vars(unet)


def test_an_exported_point_runs(run_schedule, pipe, tmp_path):
    schedule = Schedule([12, 1, 0, 12, 1, 0], orders=1, forecast="aligned")
    Point(schedule, 30.0, 10.0, 2.0).export(tmp_path / "schedule.json", order=1)
    dato.set_scheduler(pipe, "ddim")
    run_schedule(pipe.unet, json.loads((tmp_path / "schedule.json").read_text()))
    theirs = draw(pipe, 6)
    del pipe.unet.forward
    line = Schedule(schedule.depths, orders=1)
    assert torch.equal(theirs, with_dato(pipe, line, lambda: draw(pipe, 6)))
    assert not torch.equal(theirs, with_dato(pipe, schedule, lambda: draw(pipe, 6)))
