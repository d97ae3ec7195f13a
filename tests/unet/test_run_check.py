"""A patched run warns once how it differs from the search of its front."""

import warnings

import pytest
import torch
from conftest import draw

import dato
from dato import Front, Point, Schedule


def point(calls=6, steps=None, scheduler=None, **conditions) -> Point:
    def of(schedule, latency):
        return Point(schedule, 1.0 / latency, latency, 100.0 / latency, {}, steps, scheduler)

    known = {"calls": calls, "quality": "psnr", "model": "emoji-sd", "height": 64, "width": 64, "steps": calls - 1}
    known |= {"guidance_scale": 3.0, "scheduler_name": "plms"} | conditions
    front = Front((of(Schedule.uniform(calls, 2, 1), 50.0),), of(Schedule.full(calls), 100.0), {}, known)
    return front.points[0]


def said(pipe, *runs) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for options in runs:
            draw(pipe, **options)
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def test_a_run_as_it_was_searched_says_nothing(pipe):
    dato.apply_patch(pipe, point())
    assert said(pipe, {"steps": 5}, {"steps": 5, "seed": 3}) == []


@pytest.mark.parametrize(
    ("conditions", "options", "message"),
    [
        ({}, {"steps": 8}, r"9 UNet calls instead of 6 \(num_inference_steps=5\), so the schedule is resampled"),
        ({}, {"steps": 5, "guidance_scale": 7.5}, "guidance 7.5 instead of 3"),
        ({}, {"steps": 5, "height": 96, "width": 64}, "64 x 96 pixels instead of 64 x 64"),
        (
            {"scheduler_name": "euler"},
            {"steps": 5},
            r'sampler plms instead of euler \(dato.set_scheduler\(pipe, "euler"',
        ),
        ({"model": "someone/else"}, {"steps": 5}, "model emoji-sd instead of someone/else"),
    ],
)
def test_each_difference_is_named_once(pipe, conditions, options, message):
    import re

    dato.apply_patch(pipe, point(**conditions))
    first, *others = said(pipe, options, options)
    assert not others
    assert re.search(f"^this run is not what the schedule was searched for: {message}", first)


def test_all_differences_stand_in_one_warning(pipe):
    dato.apply_patch(pipe, point(scheduler="ddim"))
    (message,) = said(pipe, {"steps": 9, "guidance_scale": 1.0})
    assert message.count(";") == 2 and "ddim" in message and "10 UNet calls" in message and "guidance 1" in message


def test_what_the_front_does_not_know_is_not_compared(pipe):
    bare = Point(Schedule.uniform(6, 2, 1), 1.0, 50.0, 2.0)
    assert said(dato.apply_patch(pipe, bare), {"steps": 5}) == []


def test_a_bare_unet_says_that_a_points_schedule_is_resampled(pipe):
    from conftest import tiny_unet, unet_inputs

    unet, (x, text) = tiny_unet(), unet_inputs()
    dato.apply_patch(unet, point())
    times = torch.arange(900, 0, -100)
    with torch.no_grad(), pytest.warns(UserWarning, match="the schedule has 6 calls and this run has 9"):
        for time in times:
            unet(x, time, text)


def test_another_pipeline_with_the_same_unet_is_not_compared(pipe):
    from diffusers import StableDiffusionPipeline

    other = StableDiffusionPipeline(
        **{**pipe.components, "scheduler": pipe.scheduler.from_config(pipe.scheduler.config)}
    )
    other.set_progress_bar_config(disable=True)
    dato.set_scheduler(other, "ddim")
    dato.apply_patch(pipe, point())
    assert said(other, {"steps": 6}) == []
    (message,) = said(pipe, {"steps": 5, "guidance_scale": 7.5})
    assert "guidance" in message


@pytest.mark.parametrize(
    ("searched", "used", "same"),
    [
        ("org/sd", "/home/x/hub/models--org--sd/snapshots/0123abc", True),
        ("/home/x/hub/models--org--sd/snapshots/0123abc/", "org/sd", True),
        ("/models/sd15", "/other/place/sd15", True),
        ("/models/sd15", "/models/sd21", False),
        ("org/sd", "org/other", False),
        ("x" * 5000, "org/sd", False),
    ],
)
def test_models_are_compared_by_name(searched, used, same):
    from dato.unet.run_check import _name

    assert (_name(searched) == _name(used)) == same


def test_points_know_their_front_and_are_equal_without_it():
    known, bare = point(), Point(Schedule.uniform(6, 2, 1), 1 / 50.0, 50.0, 2.0)
    assert known.conditions["model"] == "emoji-sd" and known == bare and "conditions" not in known.to_dict()


def test_a_schedule_travels_to_another_size(pipe):
    dato.apply_patch(pipe, Schedule.uniform(6, 2, 1, ratio=0.5))
    larger = draw(pipe, 5, height=96, width=96)
    assert larger.shape[-1] == draw(pipe, 5).shape[-1] * 3 // 2 and torch.isfinite(larger).all()
