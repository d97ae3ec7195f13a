"""The rule of `apply_patch(pipe, speedup=...)`: a schedule for every run, without a search."""

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from conftest import draw, tiny_unet, unet_inputs
from diffusers import StableDiffusionImg2ImgPipeline
from tiny_pipelines import PIPELINES, sample, tiny
from which_tests import thorough

import dato
from dato import Schedule
from dato.prediction.flops import flop_share
from dato.samplers import SAMPLERS, num_calls, set_scheduler
from dato.unet.depth_shares import depth_share


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def whole_calls(schedule: Schedule) -> list[int]:
    return [call for call, depth in enumerate(schedule.depths) if depth == schedule.rungs]


@pytest.mark.parametrize(
    "sampler", ["dpm++2m", "plms", "euler-a", "dpm++2m-sde", *thorough("euler", "heun", "lcm", "dpm++sde")]
)
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_promise_holds(kind, sampler):
    unet = tiny_unet(kind)
    shallow = depth_share(unet, 1, (16, 16))
    for calls in (6, 7, 8, 9, 15, 20, 51):
        for speedup in (1.2, 2, 2.5, 4, 6):
            for guidance in (3, 7.5):
                schedule = dato.rule(unet, calls, speedup, sampler=sampler, guidance_scale=guidance)
                assert len(schedule) == calls and whole_calls(schedule)[0] == 0
                prices = {0: 0.0, 1: shallow, schedule.rungs: 1.0}
                share = sum(prices[depth] for depth in schedule.depths) / calls
                if calls < 2 * speedup:  # the first and the last call take more
                    assert schedule.depths.count(0) == calls - 2
                    continue
                assert share <= 1 / speedup + 1e-9
                assert share + 1 / calls > 1 / speedup  # one more whole call would be too many


@pytest.mark.parametrize("sampler", ["dpm++2m", "euler", "unipc", "ddim", "plms", "heun", "dpm++2m-sde"])
def test_the_last_call_is_whole(sampler):
    few_differ = sampler in ("euler", "ddim", "dpm++2m-sde")  # see below
    for calls in (2, 25, 50) if few_differ else (2, 3, 10, 25, 50):
        for guidance in (3, 7.5):
            schedule = dato.rule(tiny_unet(), calls, 2.5, sampler=sampler, guidance_scale=guidance)
            assert schedule.depths[-1] == schedule.rungs
            wholes = whole_calls(schedule)
            gaps = [b - a for a, b in pairwise(wholes)]
            if max(gaps) - min(gaps) > 1:
                assert schedule == Schedule.spread(calls, len(wholes), cooldown=2, growth=1.3)
            else:
                assert gaps in (sorted(gaps), sorted(gaps)[::-1])


@pytest.mark.parametrize(
    ("sampler", "calls", "speedup", "guidance", "grows"),
    [
        ("ddim", 50, 5, 3, True),
        ("ddim", 50, 5.1, 3, False),  # nine whole calls
        ("euler", 25, 2.5, 9, True),
        ("euler", 25, 2.5, 9.5, False),
        ("euler", 15, 1.5, 3, False),  # whole calls are dense
        ("dpm++2m", 50, 4.1, 3, True),
        ("dpm++2m", 50, 4.2, 3, False),  # eleven whole calls
        ("unipc", 50, 2.5, 7.5, True),
        ("unipc", 50, 2.6, 7.5, False),
        ("euler-a", 50, 2.5, 3, False),
        ("dpm++2m-sde", 50, 2.5, 3, False),
    ],
)
def test_many_whole_calls_along_a_line_have_growing_distances(sampler, calls, speedup, guidance, grows):
    schedule = dato.rule(tiny_unet(), calls, speedup, sampler=sampler, guidance_scale=guidance)
    wholes = whole_calls(schedule)
    assert (schedule == Schedule.spread(calls, len(wholes), cooldown=2, growth=1.3)) == grows


@pytest.mark.parametrize(
    ("sampler", "speedup", "guidance", "whole"),
    [
        ("dpm++2m", 3.6, 7.5, [0, 3, 7, 12, 18, 24]),
        ("euler", 3.6, 7.5, [0, 3, 7, 11, 16, 22]),  # its last calls take small steps
        ("ddim", 3.6, 9, [0, 3, 7, 11, 16, 22]),
        ("unipc", 2.9, 7.5, [0, 2, 5, 8, 12, 15, 20, 24]),
        ("dpm++2m", 2.4, 7.5, [0, 2, 4, 6, 9, 12, 15, 18, 21, 24]),  # less than three calls for each
        ("dpm++2m", 3.6, 3, [0, 5, 10, 15, 20, 24]),  # along a line
        ("plms", 3.6, 7.5, [0, 4, 8, 12, 16, 20, 25]),
        ("euler-a", 12, 7.5, [0, 13]),
        ("dpm++2m-sde", 4.5, 7.5, [0, 5, 10, 15, 20]),  # as DeepCache
        ("dpm++2m-sde", 4.5, 3, [0, 6, 12, 18, 24]),
        ("dpm++2m-sde", 8, 3, [0, 9, 17]),
        ("euler", 3.6, 3, [0, 3, 7, 12, 17, 23]),  # along a line
        ("ddim", 3, 3, [0, 3, 7, 10, 13, 16, 20, 23]),  # no more than four calls for each
    ],
)
def test_few_whole_calls(sampler, speedup, guidance, whole):
    calls = 26 if sampler == "plms" else 25
    schedule = dato.rule(tiny_unet(), calls, speedup, sampler=sampler, guidance_scale=guidance)
    assert whole_calls(schedule) == whole
    assert max(schedule.orders) == (guidance == 3 and sampler != "dpm++2m-sde")


def test_a_line_is_for_smooth_runs_only():
    unet = tiny_unet()
    for sampler in SAMPLERS:
        calm = dato.rule(unet, 20, 2.5, sampler=sampler, guidance_scale=3)
        noisy = sampler in ("euler-a", "ddpm", "lcm", "dpm++sde", "dpm++2m-sde")
        assert max(calm.orders) == (0 if noisy else 1), sampler
        assert min(calm.depths) == (1 if noisy else 0), sampler
        strong = dato.rule(unet, 20, 2.5, sampler=sampler, guidance_scale=7.5)
        assert max(strong.orders) == 0, sampler
        many = dato.rule(unet, 50, 4, sampler=sampler, guidance_scale=7.5)
        assert max(many.orders) == (sampler in ("ddim", "euler")), sampler
    assert max(dato.rule(unet, 20, 2.5).orders) == 0  # nothing is known of the run
    assert max(dato.rule(unet, 20, 2.5, sampler="euler").orders) == 0  # nor of its guidance


def test_each_run_gets_a_schedule_of_its_own(make_pipe):
    """Two numbers of steps in turn, and another sampler and guidance: as with the schedule given, and no warning."""
    pipe, other = dato.apply_patch(make_pipe(), speedup=2.5), make_pipe()
    for steps, sampler, guidance in ((8, "plms", 3.0), (5, "plms", 3.0), (8, "euler-a", 3.0), (8, "heun", 7.5)):
        for one in (pipe, other):
            set_scheduler(one, sampler)
        expected = dato.rule(other, num_calls(other, steps), 2.5, guidance_scale=guidance)
        with dato.patched(other, expected):
            wanted = draw(other, steps, guidance_scale=guidance)
        for _ in range(2):
            assert torch.equal(draw(pipe, steps, guidance_scale=guidance), wanted), (steps, sampler)
        assert dato.current_schedule(pipe) == expected


def test_the_stock_pipeline_comes_back(make_pipe):
    pipe = make_pipe()
    stock = draw(pipe, 8)
    with dato.patched(pipe, speedup=2):
        assert not torch.equal(draw(pipe, 8), stock)
        images = draw(pipe, 8, images=2)
        assert torch.equal(draw(pipe, 8, images=2, guidance_scale=1.0), draw(pipe, 8, images=2, guidance_scale=1.0))
        assert torch.equal(draw(pipe, 8, images=2), images)
    assert torch.equal(draw(pipe, 8), stock)
    assert dato.current_schedule(pipe) is None


def test_the_schedule_before_the_first_run(make_pipe):
    """It is that of a run with the pipeline's defaults: 50 steps and guidance 7.5."""
    pipe = dato.apply_patch(make_pipe(), speedup=3)
    schedule = dato.current_schedule(pipe)
    assert len(schedule) == num_calls(pipe, 50)
    assert schedule == dato.rule(pipe, num_calls(pipe, 50), 3, guidance_scale=7.5)


def test_img2img_has_a_schedule_for_the_calls_that_run(make_pipe):
    pipe = make_pipe()
    set_scheduler(pipe, "ddim")
    depths = []
    img2img = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    img2img.set_progress_bar_config(disable=True)
    dato.apply_patch(img2img, speedup=2)
    ladder = img2img.unet._dato_patch.ladder
    run = ladder.run
    ladder.run = lambda depth, *args, **kwargs: depths.append(depth) or run(depth, *args, **kwargs)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    img2img("a dog", image, strength=0.6, num_inference_steps=10, guidance_scale=3.0, output_type="latent")
    expected = dato.rule(img2img, 6, 2, guidance_scale=3)
    assert depths == list(expected.depths)
    assert dato.current_schedule(img2img) == expected


def test_a_bare_unet_gets_what_suits_every_sampler():
    unet = tiny_unet()
    x, text = unet_inputs()
    dato.apply_patch(unet, speedup=2.5)
    depths = []
    ladder = unet._dato_patch.ladder
    run = ladder.run
    ladder.run = lambda depth, *args, **kwargs: depths.append(depth) or run(depth, *args, **kwargs)
    with torch.no_grad():
        for timestep in torch.linspace(990, 0, 20).long():  # the number of calls is known from the tensor
            unet(x, timestep, text)
        assert depths == list(dato.rule(unet, 20, 2.5).depths)
        depths.clear()
        for timestep in range(990, 0, -50):  # it is not known
            unet(x, timestep, text)
    share = depth_share(unet, 1, (16, 16))
    assert depths[0] == 12 and sum(1 if depth == 12 else share * bool(depth) for depth in depths) <= 20 / 2.5 + 1
    assert depths.count(12) > 2


def test_what_cannot_be_reached_is_as_fast_as_can_be(make_pipe):
    pipe = dato.apply_patch(make_pipe(), speedup=5)
    set_scheduler(pipe, "ddim")
    with pytest.warns(UserWarning, match="speedup=5 cannot be reached in 4 UNet calls") as caught:
        draw(pipe, 4)
        draw(pipe, 4)
    assert len(caught) == 1
    assert whole_calls(dato.current_schedule(pipe)) == [0, 3]


@pytest.mark.parametrize("speedup", [1, 0.5, -2, float("nan"), float("inf"), "2", True])
def test_bad_speedups_are_refused(make_pipe, speedup):
    pipe = make_pipe()
    with pytest.raises(dato.DatoError, match="speedup must be a number above 1"):
        dato.apply_patch(pipe, speedup=speedup)
    assert dato.current_schedule(pipe) is None


def test_bad_arguments_are_refused(make_pipe):
    pipe = make_pipe()
    for more in ({"quality": 40}, {"prune_ratio": 0.5}, {"sx": 4}):
        with pytest.raises(dato.DatoError, match="speedup= alone"):
            dato.apply_patch(pipe, speedup=2, **more)
    for calls in (0, 2.5, True):
        with pytest.raises(dato.DatoError, match="calls must be a whole number"):
            dato.rule(pipe, calls, 2)
    with pytest.raises(dato.DatoError, match="unknown sampler 'nothing'"):
        dato.rule(pipe, 10, 2, sampler="nothing")
    with pytest.raises(dato.DatoError, match="cannot patch"):
        dato.rule(torch.nn.Linear(1, 1), 10, 2)


def test_copies_run_on_their_own(make_pipe):
    pipe = dato.apply_patch(make_pipe(), speedup=2)
    expected = draw(pipe, 6)
    pipe.unet = copy.deepcopy(pipe.unet)
    assert torch.equal(draw(pipe, 6), expected)


@pytest.mark.thorough
def test_compiled_calls(make_pipe):
    pipe = dato.apply_patch(make_pipe(), speedup=2)
    expected = draw(pipe, 6), draw(pipe, 9)
    dato.apply_patch(pipe, speedup=2, compile={"backend": "eager"})
    for steps, wanted in zip((6, 9), expected, strict=True):
        assert torch.allclose(draw(pipe, steps), wanted, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "SDXL",
        "ControlNet",
        "IP-Adapter",
        *thorough(*(name for name in PIPELINES if name not in ("SDXL", "ControlNet", "IP-Adapter"))),
    ],
)
def test_every_pipeline(name):
    pipe, kwargs = tiny(name)
    stock = sample(pipe, kwargs)
    controlnet = "follow" if name == "ControlNet" else None
    dato.apply_patch(pipe, speedup=1.5, controlnet=controlnet)
    first = sample(pipe, kwargs, steps=6)
    assert torch.isfinite(first).all() and torch.equal(sample(pipe, kwargs, steps=6), first)
    schedule = dato.current_schedule(pipe)
    assert len(set(schedule.depths)) > 1 and 0 < depth_share(pipe.unet, 1, (16, 16)) < 1
    dato.remove_patch(pipe)
    assert torch.equal(sample(pipe, kwargs), stock)


@pytest.mark.parametrize("kind", ["sd", *thorough("sdxl")])
def test_depth_shares_are_those_that_are_counted(kind):
    unet = tiny_unet(kind)
    rungs = len(dato.unet.Ladder(unet))
    for size in ((16, 16), (24, 16)):
        counted = 2 * flop_share(unet, Schedule((rungs, 1), rungs=rungs), sample_shape=(1, 4, *size)) - 1
        assert depth_share(unet, 1, size) == pytest.approx(counted, rel=1e-6)
