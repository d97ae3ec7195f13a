"""Models of CompVis' code with its own samplers: which call it is, where a run begins, and what runs whole."""

import warnings
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from compvis_models import compvis_inputs, diffusers_twin, latent_diffusion
from devices import device
from diffusers import PNDMScheduler
from which_tests import thorough

import dato
from dato import Schedule, sito
from dato.unet.patch import patch_of

STEPS = 8
CALLS = {"plms": STEPS + 1, "ddim": STEPS, "dpm_solver": STEPS}
GUIDANCE = 3.0


@cache
def model():
    """A `LatentDiffusion` of SD 1.x's shape."""
    return latent_diffusion()


@pytest.fixture(autouse=True)
def _stock_afterwards():
    with torch.no_grad():
        yield
    dato.remove_patch(model())


def sampler_of(name, of):
    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.models.diffusion.dpm_solver import DPMSolverSampler
    from ldm.models.diffusion.plms import PLMSSampler

    return {"plms": PLMSSampler, "ddim": DDIMSampler, "dpm_solver": DPMSolverSampler}[name](of)


def conditions(batch=1, seed=0):
    """The text of the prompt, and that of the empty prompt."""
    text = compvis_inputs(batch, seed=seed)[1]
    return text, torch.zeros_like(text)


def sample(name="ddim", steps=STEPS, seed=0, text_seed=0, size=8, batch=1, guidance=GUIDANCE, **options):
    """The latents of a run, as scripts/txt2img.py makes them."""
    text, empty = conditions(batch, text_seed)
    samples, _ = sampler_of(name, model()).sample(
        S=steps,
        batch_size=batch,
        shape=(4, size, size),
        conditioning=text,
        x_T=compvis_inputs(batch, (size, size), seed=seed)[0],
        verbose=False,
        unconditional_guidance_scale=guidance,
        unconditional_conditioning=empty,
        **options,
    )
    return samples


class BrokenOff(Exception):
    """What a user's interruption raises."""


def broken_off(after, **options):
    """Break a DDIM run off after some of its steps."""

    def callback(step):
        if step + 1 == after:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        sample("ddim", callback=callback, **options)


def image_to_image(first, seed=0):
    """What scripts/img2img.py does: begin at the step `first` of a DDIM run, counted from its end."""
    sampler, (text, empty) = sampler_of("ddim", model()), conditions()
    sampler.make_schedule(STEPS, verbose=False)
    return sampler.decode(
        compvis_inputs(1, seed=seed)[0],
        text,
        first,
        unconditional_guidance_scale=GUIDANCE,
        unconditional_conditioning=empty,
    )


@pytest.fixture
def whole_calls():
    """Of each call of the UNet: whether it ran whole, so that the middle block ran."""
    unet, calls = model().model.diffusion_model, []
    handles = [
        unet.register_forward_pre_hook(lambda *_: calls.append(False)),
        unet.middle_block.register_forward_pre_hook(lambda *_: calls.__setitem__(-1, True)),
    ]
    yield calls
    for handle in handles:
        handle.remove()


def whole(schedule):
    return [depth == schedule.rungs for depth in schedule.depths]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("guidance", [GUIDANCE, *thorough(1.0)])
def test_runs_of_whole_calls_are_stock_and_so_is_what_remove_patch_leaves(name, guidance):
    stock = sample(name, guidance=guidance)
    dato.apply_patch(model(), Schedule.full(CALLS[name]))
    assert torch.equal(sample(name, guidance=guidance), stock)
    dato.apply_patch(model(), Schedule.uniform(CALLS[name], 3, 1))
    shallow = sample(name, guidance=guidance)
    assert torch.isfinite(shallow).all() and not torch.equal(shallow, stock)
    dato.remove_patch(model())
    assert torch.equal(sample(name, guidance=guidance), stock)
    assert not [name for name in vars(model().model.diffusion_model) if "dato" in name or name == "forward"]


@pytest.mark.parametrize("name", CALLS)
def test_each_call_has_the_depth_of_its_entry(name, whole_calls):
    """In every run, and whatever the batch and the size."""
    depths = [12, 1, 12, 12, 0, 1, 2, 12, 0][: CALLS[name]]
    schedule = Schedule(depths, orders=1)
    dato.apply_patch(model(), schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = sample(name)
        assert whole_calls == whole(schedule)
        for options in ({"batch": 2}, {"size": 16}, {"text_seed": 5}, {"guidance": 1.0}, {}):
            whole_calls.clear()
            again = sample(name, **options)
            assert whole_calls == whole(schedule), options
    assert torch.equal(again, first)


def test_plms_with_datos_published_vector_equals_diffusers():
    text, empty = conditions()
    twin = dato.apply_patch(diffusers_twin(model().model.diffusion_model), "dato-published")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1)
    scheduler.set_timesteps(50)
    latents = compvis_inputs(1, seed=7)[0]
    for time in scheduler.timesteps.to(device()):
        plain, guided = twin(torch.cat([latents] * 2), time, torch.cat([empty, text])).sample.chunk(2)
        latents = scheduler.step(plain + GUIDANCE * (guided - plain), time, latents).prev_sample
    dato.apply_patch(model(), "dato-published")
    ours = sample("plms", 50, seed=7)
    torch.testing.assert_close(ours, latents, rtol=1e-4, atol=1e-4)
    stock = sample("plms", 50, seed=7) if dato.remove_patch(model()) else None
    assert not torch.allclose(ours, stock, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("times", [range(901, 101, -100), [901, 801, 801, 701, 601, 501, 401, 301]])
def test_guidance_in_two_calls_equals_guidance_in_one(times):
    unet, (text, empty) = model().model.diffusion_model, conditions()
    first, drift = (compvis_inputs(1, seed=seed)[0] for seed in (0, 1))
    x = [first + 0.1 * call * drift for call in range(len(times))]
    dato.apply_patch(unet, Schedule([12, 1, 12, 0, 3, 12, 2, 1], orders=[0, 0, 0, 1, 0, 1, 1, 1]))

    def call(latents, time, condition):
        return unet(latents, torch.full((len(latents),), time, device=device()), context=condition)

    pairs = list(zip(x, times, strict=True))
    together = [call(torch.cat([one] * 2), time, torch.cat([empty, text])) for one, time in pairs]
    apart = [torch.cat([call(one, time, part.clone()) for part in (empty, text)]) for one, time in pairs]
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_run_that_is_broken_off_does_not_lead_into_the_next_one(whole_calls):
    schedule = Schedule([12, 1, 1, 1, 1, 1, 1, 1])
    dato.apply_patch(model(), schedule)
    expected = sample(seed=2)
    broken_off(3, seed=1)
    whole_calls.clear()
    assert torch.equal(sample(seed=2), expected) and whole_calls == whole(schedule)


def test_tiles_of_one_text_have_a_cache_each():
    """Also where a timestep comes twice: then each of the tiles comes twice."""
    unet, (text, _) = model().model.diffusion_model, conditions()
    times = [901, 801, 801, 701, 601, 501]
    starts, drift = [compvis_inputs(1, seed=seed)[0] for seed in (0, 1)], compvis_inputs(1, seed=2)[0]
    schedule = Schedule([12, 1, 0, 2, 12, 1], orders=[0, 0, 0, 1, 0, 1])

    def call(tile, number):
        time = torch.full((1,), times[number], device=device())
        return unet(starts[tile] + 0.1 * number * drift, time, context=text)

    alone = []
    for tile in range(2):
        dato.apply_patch(unet, schedule)
        alone.append([call(tile, number) for number in range(len(times))])
    dato.apply_patch(unet, schedule)
    for number in range(len(times)):
        for tile in range(2):
            assert torch.equal(call(tile, number), alone[tile][number]), (number, tile)


@pytest.mark.parametrize(("name", "after"), [("plms", 1), ("plms", 2), *thorough(("plms", 3), ("ddim", 1))])
def test_a_run_may_be_broken_off_after_any_call(name, after, whole_calls):
    """Also after the first one: the next run begins at the same timestep."""
    schedule = Schedule([12, 1, 0, 1, 12, 1, 1, 1, 0][: CALLS[name]])
    dato.apply_patch(model(), schedule)
    expected = sample(name, seed=2)
    whole_calls.clear()

    def interrupt(*_):
        if len(whole_calls) == after:
            raise BrokenOff

    handle = model().model.diffusion_model.register_forward_hook(interrupt)
    with pytest.raises(BrokenOff):
        sample(name, seed=1)
    handle.remove()
    whole_calls.clear()
    assert torch.equal(sample(name, seed=2), expected) and whole_calls == whole(schedule)


@pytest.mark.parametrize("after", [1, 2, 4])
@pytest.mark.parametrize("first", [1, 3, *thorough(2, 4)])
def test_img2img_after_a_run_that_was_broken_off_begins_whole(after, first, whole_calls):
    """Its first timestep is lower than the last one before, as if it went on. It is the next one, or a leap."""
    dato.apply_patch(model(), Schedule([12, 1, 1, 1, 1, 1, 1, 1]))
    expected = image_to_image(first, seed=9)
    broken_off(after, seed=1)
    whole_calls.clear()
    ours = image_to_image(first, seed=9)
    assert whole_calls == [True, *[False] * (first - 1)]
    assert torch.equal(ours, expected)


def test_another_text_in_the_middle_of_a_run_is_a_whole_call(whole_calls):
    unet, (x, _) = model().model.diffusion_model, compvis_inputs(1)
    dato.apply_patch(unet, Schedule([12, 1, 1, 1, 1]))
    for time, seed in ((900, 0), (800, 0), (700, 1), (600, 1), (500, 1)):
        unet(x, torch.tensor([time]), context=conditions(seed=seed)[0])
    assert whole_calls == [True, False, True, False, False]


def test_each_image_with_a_timestep_of_its_own_is_a_whole_call(whole_calls):
    unet, (x, text) = model().model.diffusion_model, compvis_inputs(2)
    times = torch.tensor([700, 300])
    stock = unet(x, times, context=text)
    dato.apply_patch(unet, Schedule([12, 1, 1, 1]))
    unet(x, torch.tensor([900, 900]), context=text)
    assert torch.equal(unet(x, times, context=text), stock)


def test_noise_that_is_drawn_anew_at_each_step_costs_two_whole_calls(whole_calls):
    """As of a consistency model's sampler: its latents do not come from each other, which is known after two steps."""
    unet, (_, text) = model().model.diffusion_model, compvis_inputs(1)
    dato.apply_patch(unet, Schedule([12, 1, 1, 1, 1]))
    for seed, time in enumerate((900, 800, 700, 600, 500)):
        unet(compvis_inputs(1, seed=seed)[0], torch.tensor([time]), context=text)
    assert whole_calls == [True, True, True, False, False]


def test_a_run_longer_than_its_schedule_ends_with_whole_calls(whole_calls):
    dato.apply_patch(model(), Schedule([12, 1, 1, 12, 1]))
    with pytest.warns(
        UserWarning, match="makes more calls than the schedule's 5, and the others run whole; .*resampled"
    ):
        sample("ddim")
    assert whole_calls == [True, False, False, True, False, True, True, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it warns once
        sample("ddim")


def test_a_run_shorter_than_its_schedule_is_told_when_the_next_one_begins():
    dato.apply_patch(model(), Schedule.uniform(12, 3, 1))
    sample("ddim")
    with pytest.warns(
        UserWarning, match="the last run ended after call 8, and the schedule has 12 calls; if it was not"
    ):
        sample("ddim")


@pytest.mark.parametrize("name", CALLS)
def test_the_rule_runs_with_every_sampler(name, whole_calls):
    dato.apply_patch(model(), speedup=2.5)
    latents = sample(name, 25)
    assert torch.isfinite(latents).all() and whole_calls[0]
    assert 2 * sum(whole_calls) < len(whole_calls)
    first = list(whole_calls)
    whole_calls.clear()
    assert torch.equal(sample(name, 25), latents) and whole_calls == first


def test_sito_as_its_authors_use_it():
    """Any number of steps; a list has a ratio for each of the sampler's timesteps."""
    stock, seen = sample("plms"), []
    assert sito.apply_patch(model(), prune_ratio=0.5) is model()
    pruned = sample("plms")
    assert torch.equal(sample("plms"), pruned) and not torch.equal(pruned, stock)
    sito.apply_patch(
        model(),
        prune_ratio=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.2],
        max_downsample_ratio=1,
        prune_selfattn_flag=True,
        prune_crossattn_flag=False,
        prune_mlp_flag=False,
        sx=2,
        sy=2,
        noise_alpha=0.1,
        sim_beta=1,
    )
    pruner = patch_of(model()).pruner
    prepare = pruner.prepare
    pruner.prepare = lambda ratio, *rest: seen.append(ratio) or prepare(ratio, *rest)
    sample("plms")
    assert seen == [0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.2]
    sito.remove_patch(model())
    assert torch.equal(sample("plms"), stock)


def test_each_run_draws_the_same_noise_for_choosing_tokens():
    dato.apply_patch(model(), prune_ratio=0.5, score="dato", max_downsample_ratio=2)
    first = sample("ddim")
    broken_off(3, seed=4)
    assert torch.equal(sample("ddim"), first)


def test_inpainting_has_more_channels():
    inpainting = latent_diffusion(conditioning_key="hybrid", in_channels=9)
    x, text = compvis_inputs(2)
    mask = torch.ones(2, 5, 8, 8, device=device())

    def run():
        cond = {"c_concat": [mask], "c_crossattn": [text]}
        times = (torch.full((2,), time, device=device()) for time in (801, 601, 401, 201))
        return [inpainting.apply_model(x + 0.1 * call, time, cond) for call, time in enumerate(times)]

    stock = run()
    dato.apply_patch(inpainting, Schedule([12, 1, 12, 0]), prune_ratio=[0, 0.5, 0, 0])
    assert [torch.equal(a, b) for a, b in zip(run(), stock, strict=True)] == [True, False, True, False]


def test_a_diffusion_engine_calls_its_unet_by_names():
    """As Stability AI's wrapper does; float timesteps, nine rungs."""
    from compvis_models import compvis_unet

    unet = compvis_unet("sdxl")
    engine, (x, text) = SimpleNamespace(model=SimpleNamespace(diffusion_model=unet)), compvis_inputs(2)

    def run():
        times = (torch.full((2,), time) for time in (999.0, 749.25, 499.5, 249.75))
        return [unet(x + 0.1 * i, timesteps=time, context=text, y=None) for i, time in enumerate(times)]

    stock = run()
    dato.apply_patch(engine, Schedule([9, 1, 9, 0], rungs=9))
    assert [torch.equal(a, b) for a, b in zip(run(), stock, strict=True)] == [True, False, True, False]
