"""The patch: whatever happened before, a run equals the same run on a fresh pipeline."""

import copy
import gc
import warnings
import weakref

import diffusers
import pytest
import torch
from conftest import draw, tiny_unet, unet_inputs
from devices import agree, device, put
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers
from which_tests import thorough

import dato
from dato import Schedule
from dato.samplers import num_calls, set_scheduler

MIXED = Schedule([12, 1, 0, 3, 12, 2, 0, 1, 5], [0, 0.5, 0, 0.3, 0.5, 0.7, 0, 0, 0.5])  # 8 PLMS steps


@pytest.fixture
def fresh(make_pipe):
    """What a pipeline that nothing ever happened to gives."""

    def run(schedule=MIXED, steps=8, **options):
        return draw(dato.apply_patch(make_pipe(), schedule), steps, **options)

    return run


def traces(unet):
    """What a patch might leave behind anywhere in a UNet."""
    return {
        (name, key, str(value) if key.endswith("hooks") or "hooks" in key else "")
        for name, module in unet.named_modules()
        for key, value in module.__dict__.items()
        if key not in ("_parameters", "_modules", "_buffers")
    }


def test_full_depth_is_stock_and_nothing_stays_behind(pipe):
    before, stock = traces(pipe.unet), draw(pipe, 5)
    dato.apply_patch(pipe, Schedule.full(6))
    assert torch.equal(draw(pipe, 5), stock)
    dato.apply_patch(pipe, Schedule.uniform(6, 3, 1, ratio=0.5))
    assert not torch.equal(draw(pipe, 5), stock)
    dato.remove_patch(pipe)
    assert torch.equal(draw(pipe, 5), stock)
    assert traces(pipe.unet) == before
    dato.remove_patch(pipe)  # twice is no harm


def test_every_option_of_pruning_runs_and_is_repeatable(make_pipe):
    pipe = make_pipe()
    results = []
    for options in [
        {},
        {"score": "dato"},
        {"score": "II"},
        {"score": "III"},
        {"prune_crossattn_flag": True},
        {"prune_mlp_flag": True},
        {"prune_selfattn_flag": False, "prune_mlp_flag": True},
        {"max_downsample_ratio": 4},
        {"sx": 4, "sy": 1},
        {"recover_from": "kept"},
        {"recover_from": "past"},
        {"reduction": "merge"},
        {"align_cfg": True, "shared": False},
        {"shared": False},
        {"noise_alpha": 100.0},
        {"noise": "relative", "noise_alpha": 1.0},
        {"noise_alpha": 100.0, "seed": 1},
    ]:
        dato.apply_patch(pipe, prune_ratio=0.5, **options)
        results.append(draw(pipe, 3))
        # A GPU adds the tokens that it merges in any order.
        same = agree if options.get("reduction") == "merge" else torch.equal
        assert same(draw(pipe, 3), results[-1]), options
    stock = draw(dato.remove_patch(pipe), 3)
    for i, result in enumerate(results):
        assert torch.isfinite(result).all() and not torch.equal(result, stock)
        assert not any(torch.equal(result, other) for other in results[:i]), i


@pytest.mark.parametrize(("shared", "max_downsample", "selections"), [(True, 1, 1), (False, 1, 5), (True, 2, 2)])
def test_blocks_of_a_call_share_one_selection_a_grid(make_pipe, monkeypatch, shared, max_downsample, selections):
    import dato.tokens.pruner

    count, select = [], dato.tokens.pruner.select_tokens
    monkeypatch.setattr(dato.tokens.pruner, "select_tokens", lambda *a, **k: count.append(1) or select(*a, **k))
    pipe = dato.apply_patch(make_pipe(), prune_ratio=0.5, shared=shared, max_downsample=max_downsample)
    draw(pipe, 4)
    assert len(count) == 5 * selections  # 4 PLMS steps make 5 calls; SD has 5 blocks at the highest resolution


@pytest.mark.parametrize(("every", "choices"), [(1, 6), (2, 4), (9, 2)])
def test_a_choice_of_tokens_serves_several_calls(monkeypatch, every, choices):
    import dato.tokens.pruner

    count, select = [], dato.tokens.pruner.select_tokens
    monkeypatch.setattr(dato.tokens.pruner, "select_tokens", lambda *a, **k: count.append(1) or select(*a, **k))
    unet, (x, text) = tiny_unet(), unet_inputs()
    # Another ratio needs another choice; depth 0 and ratio 0 need none.
    schedule = Schedule([12, 12, 12, 0, 12, 12, 12, 1], [0.5, 0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25])
    dato.apply_patch(unet, schedule, choose_every=every)
    with torch.no_grad():
        for generation in (1, 2):
            for time in range(800, 0, -100):
                unet(x, time, text)
            assert len(count) == generation * choices


def test_a_choice_may_be_older_than_the_first_difference():
    unet, (x, text) = tiny_unet(), unet_inputs()
    schedule = Schedule(
        [12, 1, 12], [0, 0.5, 0.5], pruning=dato.Pruning(score="dato", choose_every=2, max_downsample=2)
    )
    dato.apply_patch(unet, schedule)
    with torch.no_grad():
        assert all(torch.isfinite(unet(x, time, text).sample).all() for time in (900, 600, 300))


def test_the_sign_of_datos_score_is_random():
    unet, (x, _) = tiny_unet(), unet_inputs()
    pruner = dato.tokens.pruner.TokenPruner(unet, dato.Pruning(score="dato"))
    pruner.begin(x.device)
    pruner.observe(x)
    pruner.observe(-x)
    signs = []
    for _ in range(200):
        pruner.prepare(0.5, x, 0.0)
        signs.append(pruner._sign.item())
    assert set(signs) == {-1.0, 1.0} and 60 < signs.count(1.0) < 140


def test_norms_and_projections_see_kept_tokens_only():
    unet, (x, text), seen = tiny_unet(), unet_inputs(), {}
    dato.apply_patch(unet, prune_ratio=0.5, prune_crossattn_flag=True, prune_mlp_flag=True)
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    for name in ("norm1", "attn1.to_q", "attn1.to_k", "norm2", "attn2.to_q", "attn2.to_k", "norm3", "ff"):
        module = block.get_submodule(name)
        module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, args[0].shape[1]))
    with torch.no_grad():
        unet(x, 500, text)
    assert seen.pop("attn2.to_k") == text.shape[1]
    assert set(seen.values()) == {x.shape[2] * x.shape[3] // 2}


def test_pruning_leaves_the_pipelines_random_numbers_alone(make_pipe):
    pipe = make_pipe()
    torch.manual_seed(3)
    pipe("rose", num_inference_steps=2, output_type="latent")
    expected = torch.rand(1, device=device())
    dato.apply_patch(pipe, prune_ratio=0.5)
    torch.manual_seed(3)
    pipe("rose", num_inference_steps=2, output_type="latent")
    assert torch.equal(torch.rand(1, device=device()), expected)


def every_sampler():
    """All samplers that diffusers counts among those of Stable Diffusion, and two of distilled models."""
    return [sampler.name for sampler in KarrasDiffusionSchedulers] + ["LCMScheduler", "TCDScheduler"]


@pytest.mark.parametrize("sampler", every_sampler())
@pytest.mark.parametrize("steps", [2, *thorough(1, 7)])
def test_the_call_is_known_for_every_sampler(make_pipe, sampler, steps):
    pipe = make_pipe()
    config = {"clip_sample": False, **pipe.scheduler.config}
    pipe.scheduler = getattr(diffusers, sampler).from_config(config)
    calls = num_calls(pipe, steps)
    seen = []
    pipe.unet.register_forward_hook(lambda *_: seen.append(1))
    schedule = Schedule([12, *(1 + i % 3 for i in range(calls - 1))])
    depths = []
    dato.apply_patch(pipe, schedule)
    ladder = pipe.unet._dato_patch.ladder
    run = ladder.run
    ladder.run = lambda depth, *args, **kwargs: depths.append(depth) or run(depth, *args, **kwargs)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            draw(pipe, steps)
    assert len(seen) == 2 * calls
    assert depths == 2 * list(schedule.depths)


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [0, 3, 7])
def test_an_interrupted_generation_leaves_nothing(make_pipe, fresh, after):
    pipe = dato.apply_patch(make_pipe(), MIXED)

    def stop(pipe, step, timestep, values):
        if step == after:
            raise Stop
        return values

    with pytest.raises(Stop):
        draw(pipe, 8, seed=5, callback_on_step_end=stop)
    assert torch.equal(draw(pipe, 8), fresh())

    def interrupt(pipe, step, timestep, values):
        pipe._interrupt = step >= after
        return values

    draw(pipe, 8, seed=5, callback_on_step_end=interrupt)
    assert torch.equal(draw(pipe, 8), fresh())


def test_an_error_inside_the_unet_leaves_nothing(make_pipe, fresh):
    pipe = dato.apply_patch(make_pipe(), MIXED)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 4:
            raise Stop

    handle = pipe.unet.conv_out.register_forward_hook(fail)
    with pytest.raises(Stop):
        draw(pipe, 8)
    handle.remove()
    assert torch.equal(draw(pipe, 8), fresh())


def test_batch_size_resolution_and_guidance_may_change(make_pipe, fresh):
    pipe = dato.apply_patch(make_pipe(), MIXED)
    for options in [
        {"images": 1},
        {"images": 3},
        {"height": 24, "width": 16},
        {"guidance_scale": 1.0},
        {"height": 40, "width": 24},  # latents that halving does not divide
        {"images": 2},
    ]:
        assert torch.equal(draw(pipe, 8, **options), fresh(**options)), options


def test_a_change_of_shape_in_the_middle_starts_anew():
    unet = tiny_unet()
    (x, text), (wide, _) = unet_inputs(), unet_inputs(size=(16, 24))
    timesteps = torch.arange(990, 0, -110, device=device())
    with torch.no_grad():
        stock = unet(wide, timesteps[2], text).sample
        dato.apply_patch(unet, MIXED)
        unet(x, timesteps[0], text)
        unet(x, timesteps[1], text)
        assert torch.equal(unet(wide, timesteps[2], text).sample, stock)  # depth 0 asked for; nothing to hand back


def test_img2img_starts_in_the_middle(make_pipe):
    def run(pipe, strength):
        image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        img2img = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        img2img.set_progress_bar_config(disable=True)
        return img2img(
            "rose",
            image=image,
            strength=strength,
            num_inference_steps=8,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images

    used, depths = dato.apply_patch(make_pipe(), MIXED), []
    ladder = used.unet._dato_patch.ladder
    plain = ladder.run
    ladder.run = lambda depth, *args, **kwargs: depths.append(depth) or plain(depth, *args, **kwargs)
    for strength in (0.5, 1.0, 0.3):
        depths.clear()
        assert torch.equal(run(used, strength), run(dato.apply_patch(make_pipe(), MIXED), strength))
        # The place in the schedule is the place in the sampler's timesteps; the first call has no cache yet.
        assert depths == [12, *MIXED.depths[len(MIXED) - len(depths) + 1 :]]
        draw(used, 8)


def test_two_pipelines_in_turn_do_not_mix(make_pipe, fresh):
    other_schedule = Schedule.uniform(9, 2, 3)
    one, two = dato.apply_patch(make_pipe(), MIXED), dato.apply_patch(make_pipe(1), other_schedule)
    inside = []

    def meanwhile(pipe, step, timestep, values):
        inside.append(draw(two, 8))
        return values

    assert torch.equal(draw(one, 8, callback_on_step_end=meanwhile), fresh())
    alone = draw(dato.apply_patch(make_pipe(1), other_schedule), 8)
    assert all(torch.equal(latents, alone) for latents in inside)


def test_a_bare_unet_counts_by_falling_timesteps(make_pipe):
    unet = tiny_unet()
    x, text = unet_inputs()
    schedule = Schedule.uniform(4, 2, 1)

    def run(timesteps):
        return [unet(x, t, text).sample for t in timesteps]

    with torch.no_grad():
        dato.apply_patch(unet, schedule)
        expected = run(put(torch.tensor([900, 600, 300, 0])))
        for kind in (int, float, torch.tensor):
            for _ in range(2):
                assert all(map(torch.equal, run([kind(t) for t in (900, 600, 300, 0)]), expected))
        # Cut short, then begun again: time jumps up.
        run([900, 600, 300])
        assert all(map(torch.equal, run([900, 600, 300, 0]), expected))
        # Single calls at the same time are generations of one step.
        dato.remove_patch(unet)
        stock = unet(x, 500, text).sample
        dato.apply_patch(unet, schedule)
        for _ in range(3):
            assert torch.equal(unet(x, 500, text).sample, stock)


def test_a_schedule_of_another_length_is_resampled_with_one_warning(make_pipe, fresh):
    pipe = dato.apply_patch(make_pipe(), MIXED)
    with pytest.warns(UserWarning, match="the schedule has 9 calls and this run has 5") as caught:
        result = draw(pipe, 4)
        draw(pipe, 4)
    assert len([w for w in caught if "the schedule has" in str(w.message)]) == 1
    assert torch.equal(result, fresh(MIXED.resampled(5), steps=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        draw(dato.apply_patch(make_pipe(), prune_ratio=0.5), 4)  # the same for every call: nothing to say


def test_patched_puts_back_what_was_there(make_pipe):
    pipe = make_pipe()
    stock = draw(pipe, 8)
    with dato.patched(pipe, MIXED) as same:
        assert same is pipe
        mixed = draw(pipe, 8)
        with dato.patched(pipe, Schedule.full(9)):
            assert torch.equal(draw(pipe, 8), stock)
        assert torch.equal(draw(pipe, 8), mixed)
        assert dato.current_schedule(pipe) == MIXED
    assert torch.equal(draw(pipe, 8), stock)
    with pytest.raises(Stop), dato.patched(pipe, MIXED):
        raise Stop
    assert dato.current_schedule(pipe) is None


def test_a_new_patch_replaces_the_old_one(make_pipe, fresh):
    pipe = dato.apply_patch(make_pipe(), Schedule.uniform(9, 2, 1))
    draw(pipe, 8)
    assert torch.equal(draw(dato.apply_patch(pipe, MIXED), 8), fresh())
    # A patch that cannot be made leaves the old one in place.
    with pytest.raises(dato.DatoError):
        dato.apply_patch(pipe, "no-such-strategy")
    assert torch.equal(draw(pipe, 8), fresh())


def test_a_scheduler_set_after_patching_is_followed(make_pipe):
    pipe = dato.apply_patch(make_pipe(), MIXED)
    draw(pipe, 8)
    set_scheduler(pipe, "ddim")
    other = make_pipe()
    set_scheduler(other, "ddim")
    expected = draw(dato.apply_patch(other, MIXED), 9)
    assert torch.equal(draw(pipe, 9), expected)


def test_copies_run_on_their_own(make_pipe, fresh):
    pipe = dato.apply_patch(make_pipe(), MIXED)
    draw(pipe, 8)
    twin = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.zero_()
    pipe.unet = twin
    assert torch.equal(draw(pipe, 8), fresh())


def test_offloading_hooks_before_or_after(make_pipe, fresh):
    """Offloading by accelerate wraps forward; here with a plain wrapper of its kind, since there is no GPU."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    pipe, entered = make_pipe(), []

    class Entering(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            entered.append(1)
            return args, kwargs

    stock = draw(pipe, 8)
    add_hook_to_module(pipe.unet, Entering())
    dato.apply_patch(pipe, MIXED)
    assert torch.equal(draw(pipe, 8), fresh()) and len(entered) == 9
    dato.remove_patch(pipe)
    assert torch.equal(draw(pipe, 8), stock) and len(entered) == 18
    remove_hook_from_module(pipe.unet)

    dato.apply_patch(pipe, MIXED)
    add_hook_to_module(pipe.unet, Entering())
    assert torch.equal(draw(pipe, 8), fresh()) and len(entered) == 27
    dato.remove_patch(pipe)
    assert torch.equal(draw(pipe, 8), stock) and len(entered) == 36
    remove_hook_from_module(pipe.unet)
    assert torch.equal(draw(pipe, 8), stock) and len(entered) == 36


@pytest.mark.parametrize("order", ["hook patch remove_hook remove_patch", "patch hook remove_hook remove_patch"])
def test_offloading_may_be_switched_off_before_the_patch_is_removed(make_pipe, fresh, order):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    pipe = make_pipe()
    stock = draw(pipe, 8)
    for step in order.split():
        match step:
            case "hook":
                add_hook_to_module(pipe.unet, ModelHook())
            case "patch":
                dato.apply_patch(pipe, MIXED)
            case "remove_hook":
                assert torch.equal(draw(pipe, 8), fresh())
                remove_hook_from_module(pipe.unet)
                assert torch.equal(draw(pipe, 8), fresh())
            case "remove_patch":
                dato.remove_patch(pipe)
    assert torch.equal(draw(pipe, 8), stock)
    assert dato.current_schedule(pipe) is None


def test_a_wrapper_around_the_patch_stays_and_runs_stock_afterwards(make_pipe):
    pipe, entered = make_pipe(), []
    stock = draw(pipe, 8)
    dato.apply_patch(pipe, MIXED)
    inner = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: entered.append(1) or inner(*args, **kwargs)
    dato.remove_patch(pipe)
    assert torch.equal(draw(pipe, 8), stock) and len(entered) == 9


@pytest.mark.parametrize("inference", [False, True])
def test_a_prediction_that_was_written_into_is_not_handed_back(inference):
    """The prediction is handed back without a copy; where the pipeline wrote into it, the call runs whole instead."""
    unet = tiny_unet()
    x, text = unet_inputs()
    timesteps = torch.arange(990, 0, -198, device=device())
    with torch.inference_mode() if inference else torch.no_grad():
        stock = [unet(x, t, text).sample for t in timesteps]
        dato.apply_patch(unet, Schedule([12, 0, 0, 0, 12]))
        first = unet(x, timesteps[0], text).sample
        second = unet(x, timesteps[1], text).sample
        assert torch.equal(second, stock[0]) and (inference or second is not first)
        assert inference or second.data_ptr() == first.data_ptr()
        second.zero_()
        third = unet(x, timesteps[2], text).sample
        # Inference mode does not count what is written into a tensor, so there copies are made.
        assert torch.equal(third, stock[0] if inference else stock[2])
        assert torch.equal(unet(x, timesteps[3], text).sample, third)


def test_caches_are_freed_at_the_end_of_a_generation(make_pipe):
    pipe = dato.apply_patch(make_pipe(), MIXED)
    patch, kept = pipe.unet._dato_patch, []
    pipe.unet.conv_out.register_forward_hook(lambda m, a, out: kept.append(weakref.ref(out)))
    draw(pipe, 8)
    gc.collect()
    assert all(lane.cache.empty for generation in patch._generations.running for lane in generation.lanes)
    assert not any(ref() is not None for ref in kept[:-4])  # PLMS itself keeps the last few


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs a schedule"),
        ((42,), "must be a dato.Schedule"),
        (("no-such-strategy",), "no file and no shipped strategy 'no-such-strategy'"),
    ],
)
def test_what_is_no_schedule_is_refused(make_pipe, arguments, message):
    with pytest.raises(dato.DatoError, match=message):
        dato.apply_patch(make_pipe(), *arguments)


def test_bad_options_and_pipelines_are_refused(make_pipe):
    pipe = make_pipe()
    with pytest.raises(dato.DatoError, match="unknown option 'prune_rate'"):
        dato.apply_patch(pipe, MIXED, prune_rate=0.5)
    with pytest.raises(dato.DatoError, match="this is one schedule"):
        dato.apply_patch(pipe, MIXED, speedup=2)
    with pytest.raises(dato.DatoError, match="cannot patch"):
        dato.apply_patch(torch.nn.Linear(1, 1), MIXED)
    dato.apply_patch(pipe, prune_ratio=0.9)
    with pytest.raises(dato.DatoError, match=r"at most 48 \(a ratio of 0.75\)"):
        draw(pipe, 2)
