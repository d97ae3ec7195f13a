"""What can be patched, what is refused, and what the user has done to the UNet before."""

from types import SimpleNamespace

import diffusers
import peft
import pytest
import torch
from conftest import tiny_unet, unet_inputs
from tiny_pipelines import picture, sample, tiny
from which_tests import thorough

import dato
from dato import DatoError, Schedule
from dato.unet.cache import Cache
from dato.unet.ladder import Ladder
from dato.unet.targets import compile_settings, unet_of

SMALL = {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 8, "layers_per_block": 1}


class Pipe:
    """What of a pipeline is patched."""

    def __init__(self, unet):
        self.unet = unet


def no_unets():
    """Models of the kinds that users try, as small as they get."""
    yield (
        "UNet3DConditionModel",
        diffusers.UNet3DConditionModel(
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            attention_head_dim=4,
            **SMALL,
        ),
    )
    yield (
        "UNetMotionModel",
        diffusers.UNetMotionModel(
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            num_attention_heads=2,
            motion_num_attention_heads=2,
            **SMALL,
        ),
    )
    yield (
        "UNet2DModel",
        diffusers.UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        ),
    )


@pytest.mark.parametrize(("name", "model"), no_unets())
def test_models_of_other_kinds_are_refused(name, model):
    with pytest.raises(
        DatoError, match=f"cannot patch {name}: supported are diffusers pipelines with a UNet2DCondition"
    ):
        dato.apply_patch(model, Schedule.full(1))
    pipe = SimpleNamespace(unet=model)
    with pytest.raises(DatoError, match=f"cannot patch a SimpleNamespace with a {name}: supported are"):
        dato.apply_patch(pipe, Schedule.full(1))


def test_transformers_are_refused_by_name():
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2
    )
    with pytest.raises(DatoError, match="cannot patch a SimpleNamespace with a SD3Transformer2DModel: supported"):
        dato.apply_patch(SimpleNamespace(transformer=transformer), Schedule.full(1))
    with pytest.raises(DatoError, match="cannot patch str: supported"):
        dato.apply_patch("pipe", Schedule.full(1))


@pytest.mark.parametrize("blocks", ["SimpleCrossAttn", "K", "Attn"])
def test_unets_of_other_blocks_are_refused(blocks):
    down, up = {
        "SimpleCrossAttn": ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
        "K": ("KDownBlock2D", "KUpBlock2D"),
        "Attn": ("AttnDownBlock2D", "AttnUpBlock2D"),
    }[blocks]
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", down),
        up_block_types=(up, "UpBlock2D"),
        attention_head_dim=4,
        **SMALL,
    )
    with pytest.raises(DatoError, match=f"has a {down}, which dato cannot cut into rungs; supported are"):
        dato.apply_patch(unet, Schedule.full(1))


# UNets that were made smaller by distillation have other heights, and some no mid block.
DISTILLED = {
    "BK-SDM small: one resnet a block": {"layers_per_block": 1},
    "BK-SDM tiny: no mid block": {"layers_per_block": 1, "mid_block_type": None},
    "other heights": {"layers_per_block": (1, 2, 1, 3)},
    "one block": {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    },
}


@pytest.mark.parametrize("name", DISTILLED)
def test_distilled_unets_are_ladders_too(name):
    unet, (x, text) = tiny_unet(**DISTILLED[name]), unet_inputs()
    ladder, cache = Ladder(unet), Cache()
    with torch.no_grad():
        stock = unet(x, 500, text).sample
        # The input stays as it is, so what is cached stays right.
        for depth in (len(ladder), *range(len(ladder))):
            assert torch.equal(ladder.run(depth, cache, x, 500, text), stock)
        schedule = Schedule([len(ladder), 1, 0], [0, 0.5, 0], rungs=len(ladder))
        dato.apply_patch(unet, schedule)
        assert all(torch.isfinite(unet(x, time, text).sample).all() for time in (900, 600, 300))


def test_ssd_1b_is_a_ladder():
    unet = tiny_unet(
        "sdxl",
        transformer_layers_per_block=[0, [1, 2], [3, 1]],
        reverse_transformer_layers_per_block=[[1, 1, 2], [1, 1, 1], 0],
        mid_block_type="UNetMidBlock2D",
    )
    x, text = unet_inputs()
    with torch.no_grad():
        stock = unet(x, 500, text).sample
        assert torch.equal(dato.apply_patch(unet, Schedule.full(1, rungs=9))(x, 500, text).sample, stock)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"fullgraph": True}, {}),
        ({"mode": "reduce-overhead"}, {"triton.cudagraphs": True}),
        ({"mode": "max-autotune-no-cudagraphs", "fullgraph": True}, {"max_autotune": True}),
        ({"options": {"triton.cudagraphs": True}}, {"triton.cudagraphs": True}),
        ({"backend": "eager"}, None),
    ],
)
def test_a_compiled_unet_is_patched_in_its_mode(options, expected):
    unet = tiny_unet()
    assert compile_settings(unet) is False
    wrapped = torch.compile(unet, **options)
    assert unet_of(wrapped)[0] is unet and compile_settings(unet) is False
    found = [compile_settings(SimpleNamespace(unet=wrapped)), compile_settings(wrapped)]
    unet.compile(**options)
    found.append(compile_settings(unet))
    for settings in found:
        backend = settings["backend"]
        assert backend.compiler_name == ("eager" if expected is None else "inductor")
        assert expected is None or expected.items() <= backend.config.items()
        graphs = bool(expected) and "triton.cudagraphs" in expected
        assert dato.CompiledCalls(unet, **settings)._graphs == graphs


@pytest.mark.parametrize("in_place", [False, *thorough(True)])
def test_a_schedule_compiles_the_calls_of_a_compiled_unet(monkeypatch, in_place):
    unet, (x, text) = tiny_unet(**DISTILLED["one block"]), unet_inputs()
    pipe, schedule = Pipe(unet), Schedule([4, 1, 0, 2, 1], rungs=4)

    def run():
        with torch.no_grad():
            return torch.stack([pipe.unet(x, time, text).sample for time in torch.arange(900.0, 0, -200)])

    dato.apply_patch(pipe, schedule)
    expected = run()
    dato.remove_patch(pipe)
    made = []

    class Eager(dato.CompiledCalls):
        def __init__(self, unet, **options):
            assert options["backend"].compiler_name == "inductor"
            super().__init__(unet, backend="eager")
            made.append(self)

    monkeypatch.setattr(dato.unet.patch_arguments, "CompiledCalls", Eager)
    if in_place:
        pipe.unet.compile(fullgraph=True)
    else:
        pipe.unet = torch.compile(pipe.unet, fullgraph=True)
    dato.apply_patch(pipe, schedule)
    assert torch.allclose(run(), expected, atol=1e-4)
    assert made[0].count == 3
    dato.apply_patch(pipe, schedule, compile=False)
    assert torch.equal(run(), expected) and len(made) == 1
    dato.remove_patch(pipe)
    assert ("_compiled_call_impl" in pipe.unet.__dict__) == in_place


def test_the_user_may_compile_after_patching():
    pipe, kwargs = tiny("SD 1.x")
    dato.apply_patch(pipe, Schedule([8, 1, 0, 2, 1], rungs=8))
    expected = sample(pipe, kwargs)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert torch.equal(sample(pipe, kwargs), expected)


def depths_of(pipe) -> list[int]:
    """The depths that a patched pipeline will run at."""
    depths, ladder = [], pipe.unet._dato_patch.ladder
    run = ladder.run
    ladder.run = lambda depth, *args, **more: depths.append(depth) or run(depth, *args, **more)
    return depths


def test_img2img_runs_the_end_of_the_schedule():
    pipe, kwargs = tiny("SD 1.x img2img")
    dato.set_scheduler(pipe, "ddim")
    schedule = Schedule([8, 1, 1, 2, 8, 1, 0, 3, 1, 2], rungs=8)
    dato.apply_patch(pipe, schedule)
    depths = depths_of(pipe)
    sample(pipe, {**kwargs, "strength": 0.7}, 10)
    assert depths == [8, *schedule.depths[4:]]  # the first that runs is whole, for there is no cache yet
    depths.clear()
    sample(pipe, {**kwargs, "strength": 0.5}, 20)
    assert depths == [8, *schedule.resampled(20).depths[11:]]


@pytest.mark.parametrize("sampler", ["plms", "heun", "euler", "ddim"])
def test_a_timestep_that_is_copied_on_the_way_is_known_by_its_value(sampler):
    pipe, kwargs = tiny("SD 1.x")
    dato.set_scheduler(pipe, sampler)
    schedule = Schedule([8, 1, 0, 2, 1, 8, 1, 3, 1], rungs=8)
    dato.apply_patch(pipe, schedule)
    expected = sample(pipe, kwargs, 6)
    depths = depths_of(pipe)

    def copied(module, args, kwargs):
        return (args[0], args[1].clone(), *args[2:]), kwargs

    pipe.unet.register_forward_pre_hook(copied, with_kwargs=True)
    for _ in range(2):
        depths.clear()
        assert torch.equal(sample(pipe, kwargs, 6), expected)
        assert depths == list(schedule.resampled(len(pipe.scheduler.timesteps)).depths)


def test_tokens_of_other_images_are_left_alone_without_guidance():
    pipe, kwargs = tiny("SD 1.x")
    dato.apply_patch(pipe, prune_ratio=0.5, align_cfg=True)
    chosen = []
    pipe.unet._dato_patch.pruner.listener = lambda factor, number, grid, selection: chosen.append(selection.base)
    sample(pipe, {**kwargs, "guidance_scale": 1.0, "num_images_per_prompt": 2}, 1)
    assert not any(torch.equal(*base) for base in chosen)


def test_base_and_refiner_share_the_steps():
    base, kwargs = tiny("SDXL")
    refiner, more = tiny("SDXL refiner")
    for pipe in (base, refiner):
        dato.set_scheduler(pipe, "euler")
    schedule = Schedule([6, 1, 6, 1, 2, 1, 6, 1, 0, 1], rungs=6)
    depths = {pipe: depths_of(dato.apply_patch(pipe, schedule)) for pipe in (base, refiner)}
    latents = sample(base, kwargs, 10, denoising_end=0.8)
    sample(refiner, {**more, "image": latents, "denoising_start": 0.8}, 10)
    assert depths[base] == list(schedule.depths[:8])
    assert depths[refiner] == [6, schedule.depths[9]]


def test_a_picture_that_guides_is_a_third_part_of_the_batch():
    pipe, kwargs = tiny("InstructPix2Pix")
    dato.apply_patch(pipe, prune_ratio=0.5, align_cfg=True)
    chosen = []
    pipe.unet._dato_patch.pruner.listener = lambda factor, number, grid, selection: chosen.append(selection.base)
    sample(pipe, {**kwargs, "image": picture(), "num_images_per_prompt": 2}, 2)
    for base in chosen:
        first, second, third = base.chunk(3)
        assert torch.equal(first, second) and torch.equal(first, third) and not torch.equal(first[0], first[1])


def lora_config():
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
    return peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False)


PEFT = {
    "PeftModel": lambda unet: peft.get_peft_model(unet, lora_config()),
    "PeftMixedModel": lambda unet: peft.get_peft_model(unet, lora_config(), mixed=True),
    "LoraModel": lambda unet: peft.LoraModel(unet, lora_config(), "default"),
    "compiled PeftModel": lambda unet: torch.compile(peft.get_peft_model(unet, lora_config()), backend="eager"),
    "PeftModel of a compiled UNet": lambda unet: peft.get_peft_model(
        torch.compile(unet, backend="eager"), lora_config()
    ),
}


@pytest.mark.parametrize("kind", [*list(PEFT)[:3], *thorough(*list(PEFT)[3:])])
def test_a_unet_within_a_model_of_peft_is_patched(kind):
    pipe, kwargs = tiny("SD 1.x")
    plain, unet = sample(pipe, kwargs), pipe.unet
    torch.manual_seed(3)
    pipe.unet = whole = PEFT[kind](pipe.unet)
    assert unet_of(pipe) == (unet, pipe) and unet_of(whole) == (unet, None)
    stock = sample(pipe, kwargs)
    assert not torch.equal(stock, plain)
    schedule = Schedule([8, 1, 8, 0, 3], [0, 0.5, 0.25, 0, 0], [0, 0, 0, 1, 1], 8)
    results = []
    for target in (pipe, whole):
        assert dato.apply_patch(target, Schedule.full(5, rungs=8), compile=False) is target
        assert torch.equal(sample(pipe, kwargs), stock)
        dato.apply_patch(target, schedule, compile=False)
        results.append(sample(pipe, kwargs))
        assert dato.current_schedule(target) == schedule
        assert dato.remove_patch(target) is target and dato.current_schedule(target) is None
        assert torch.equal(sample(pipe, kwargs), stock)
    assert not torch.equal(results[0], stock) and torch.equal(*results)
    assert not hasattr(unet, "_dato_patch")
    assert len(dato.rule(pipe, 10, 2.0)) == 10


def test_adapters_of_peft_may_be_changed_while_the_unet_is_patched():
    pipe, kwargs = tiny("SD 1.x")
    plain = sample(pipe, kwargs)
    pipe.unet = peft.get_peft_model(pipe.unet, lora_config())
    stock = sample(pipe, kwargs)
    dato.apply_patch(pipe, Schedule.full(5, rungs=8))
    with pipe.unet.disable_adapter():
        assert torch.equal(sample(pipe, kwargs), plain)
    assert torch.equal(sample(pipe, kwargs), stock)
    assert dato.CompiledCalls(pipe.unet, backend="eager").unet is unet_of(pipe)[0]


def test_other_models_of_peft_are_refused_by_what_they_hold():
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), peft.LoraConfig(target_modules=["0"]))
    with pytest.raises(DatoError, match="cannot patch PeftModel: supported are"):
        dato.apply_patch(model, Schedule.full(1))
    with pytest.raises(DatoError, match="cannot patch a SimpleNamespace with a Sequential: supported are"):
        dato.apply_patch(SimpleNamespace(unet=model), Schedule.full(1))
