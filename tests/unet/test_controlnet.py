"""ControlNets that follow the schedule: less work, and exactly the same image."""

from collections import Counter

import pytest
import torch
from accelerate import cpu_offload
from conftest import tiny_unet, unet_inputs
from devices import device
from diffusers import ControlNetModel, ControlNetUnionModel
from tiny_pipelines import picture, sample, tiny
from which_tests import thorough

import dato
from dato import DatoError, Schedule
from dato.unet.controlnet import truncated
from dato.unet.ladder import Ladder

CONTROLLED = (
    "ControlNet",
    "ControlNet, two",
    "ControlNet img2img",
    "ControlNet inpaint",
    "SDXL ControlNet",
    "SDXL ControlNet, two",
    "SDXL ControlNet img2img",
    "SDXL ControlNet inpaint",
)


def mixed(unet, **options) -> Schedule:
    """Every depth that the UNet has, and absent calls, pruned here and there."""
    full = len(dato.unet.ladder.Ladder(unet))
    depths = [full, *range(full), full, 0, 1]
    return Schedule(depths, [0, 0.5] * (len(depths) // 2) + [0] * (len(depths) % 2), rungs=full, **options)


@pytest.mark.parametrize("more", [{}, {"guess_mode": True}, {"guidance_scale": 1.0}])
@pytest.mark.parametrize("name", [*CONTROLLED[:2], *thorough(*CONTROLLED[2:])])
def test_following_makes_no_difference_to_the_image(name, more):
    pipe, kwargs = tiny(name)
    schedule = mixed(pipe.unet)
    steps = len(schedule) - 1  # PLMS calls once more
    dato.apply_patch(pipe, schedule)
    whole = sample(pipe, kwargs, steps, **more)
    dato.apply_patch(pipe, schedule, controlnet="follow")
    assert torch.equal(sample(pipe, kwargs, steps, **more), whole)
    dato.remove_patch(pipe)
    assert not torch.equal(sample(pipe, kwargs, steps, **more), whole)


def test_following_bears_start_end_and_pooled_conditions():
    pipe, kwargs = tiny("ControlNet")
    pipe.controlnet.register_to_config(global_pool_conditions=True)
    kwargs |= {"control_guidance_start": 0.2, "control_guidance_end": 0.7, "guess_mode": True}
    schedule = mixed(pipe.unet)
    whole = sample(dato.apply_patch(pipe, schedule), kwargs, len(schedule) - 1)
    assert torch.equal(sample(dato.apply_patch(pipe, schedule, controlnet="follow"), kwargs, len(schedule) - 1), whole)


def test_a_control_net_runs_as_deep_as_the_unet():
    pipe, kwargs = tiny("ControlNet")
    before = {name: dict(module.__dict__) for name, module in pipe.controlnet.named_modules()}
    full = len(dato.unet.ladder.Ladder(pipe.unet))
    ran = Counter()
    for block in pipe.controlnet.down_blocks:
        for part in (*block.resnets, *(block.downsamplers or ())):
            part.register_forward_hook(lambda *_: ran.update(rungs=1))
    pipe.controlnet.mid_block.register_forward_hook(lambda *_: ran.update(mid=1))
    pipe.controlnet.conv_in.register_forward_hook(lambda *_: ran.update(rungs=1))
    for depth in range(full):
        ran.clear()
        dato.apply_patch(pipe, Schedule([full, depth, depth], rungs=full), controlnet="follow")
        sample(pipe, kwargs, 2)
        assert ran == {"rungs": full + 2 * depth, "mid": 1}
    dato.remove_patch(pipe)
    for name, module in pipe.controlnet.named_modules():
        assert set(module.__dict__) == set(before[name])
    ran.clear()
    sample(pipe, kwargs, 2)
    assert ran == {"rungs": 3 * full, "mid": 3}


@pytest.mark.parametrize("inference", [False, True])
def test_the_picture_is_looked_at_once_a_generation(inference):
    pipe, kwargs = tiny("ControlNet")
    looked = []
    pipe.controlnet.controlnet_cond_embedding.register_forward_hook(lambda *_: looked.append(1))
    full = len(dato.unet.ladder.Ladder(pipe.unet))
    dato.apply_patch(pipe, Schedule([full, 1, 2, full, 1, 0, 3], rungs=full), controlnet="follow")
    with torch.inference_mode(inference):
        first = sample(pipe, kwargs, 6)
        assert len(looked) == 3  # in each whole call, and once for the others
        other = sample(pipe, {**kwargs, "image": picture(seed=5)}, 6)
        assert len(looked) == 6 and not torch.equal(first, other)
        assert torch.equal(sample(pipe, kwargs, 6), first)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_truncated_view_gives_the_first_residuals(kind):
    net = ControlNetModel.from_unet(tiny_unet(kind), conditioning_embedding_out_channels=(4, 8)).eval()
    for convolution in net.controlnet_down_blocks:
        torch.nn.init.normal_(convolution.weight)
    (x, text), image = unet_inputs(), picture()
    with torch.no_grad():
        residuals, _ = net(x, 500, text, image, return_dict=False)
        for depth in range(1, len(residuals)):
            view = truncated(net, depth)
            found, _ = ControlNetModel.forward(view, x, 500, text, image, return_dict=False)
            assert len(found) == depth
            assert all(torch.equal(a, b) for a, b in zip(found, residuals, strict=False))
    assert net.mid_block is not None and len(net.down_blocks) == len(net.config.down_block_types)


def offload_blocks(pipe):
    pipe.controlnet.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=2)


def offload_leaves(pipe):
    pipe.controlnet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


def offload_sequentially(pipe):
    for net in (pipe.text_encoder, pipe.unet, pipe.controlnet, pipe.vae):
        cpu_offload(net, torch.device("cpu"), offload_buffers=True)


@pytest.mark.parametrize("treat", [offload_blocks, offload_leaves, offload_sequentially])
@pytest.mark.parametrize("dtype", [torch.float32, *thorough(torch.bfloat16)])
def test_a_control_net_that_is_offloaded_follows(treat, dtype):
    pipe, kwargs = tiny("ControlNet")
    pipe.to(dtype)
    schedule = mixed(pipe.unet)
    whole = sample(dato.apply_patch(pipe, schedule), kwargs, len(schedule) - 1)
    treat(pipe)
    assert torch.equal(sample(dato.apply_patch(pipe, schedule, controlnet="follow"), kwargs, len(schedule) - 1), whole)


def test_a_net_that_is_there_twice_is_taken_over_once():
    pipe, kwargs = tiny("ControlNet, two")
    pipe.controlnet.nets[1] = pipe.controlnet.nets[0]
    schedule = mixed(pipe.unet)
    whole = sample(dato.apply_patch(pipe, schedule), kwargs, len(schedule) - 1)
    dato.apply_patch(pipe, schedule, controlnet="follow")
    assert torch.equal(sample(pipe, kwargs, len(schedule) - 1), whole)
    dato.remove_patch(pipe)
    assert "forward" not in pipe.controlnet.nets[0].__dict__


@pytest.mark.parametrize("shared", ["controlnet", "controlnet scheduler"])
def test_an_unpatched_pipeline_may_use_the_same_control_net(shared):
    pipe, kwargs = tiny("ControlNet")
    other, _ = tiny("ControlNet")
    other.register_modules(**{part: getattr(pipe, part) for part in shared.split()})
    expected = sample(other, kwargs)
    dato.apply_patch(pipe, mixed(pipe.unet), controlnet="follow")
    own = sample(pipe, kwargs)
    stopped = {"callback_on_step_end": lambda p, *_: setattr(p, "_interrupt", True) or {}}
    sample(pipe, kwargs | stopped)  # in the middle of a generation
    assert torch.equal(sample(other, kwargs), expected)
    assert torch.equal(sample(pipe, kwargs), own)


def test_a_control_net_that_fails_leaves_nothing_to_other_pipelines():
    pipe, kwargs = tiny("ControlNet")
    plain, more = tiny("SD 1.x")
    plain.register_modules(unet=pipe.unet)
    expected = sample(dato.apply_patch(plain, mixed(pipe.unet)), more)
    dato.apply_patch(pipe, mixed(pipe.unet), controlnet="follow")
    calls = Counter()

    def fail(*_):
        calls.update(n=1)
        if calls["n"] == 3:
            raise KeyboardInterrupt

    handle = pipe.controlnet.conv_in.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        sample(pipe, kwargs)
    handle.remove()
    assert torch.equal(sample(plain, more), expected)


def test_what_cannot_follow_is_refused_with_one_line():
    pipe, _ = tiny("ControlNet")
    with pytest.raises(DatoError, match="known is 'follow'"):
        dato.apply_patch(pipe, Schedule.full(1), controlnet="half")
    with pytest.raises(DatoError, match="this StableDiffusionPipeline has no ControlNet"):
        dato.apply_patch(tiny("SD 1.x").pipe, Schedule.full(1), controlnet="follow")
    with pytest.raises(DatoError, match="this NoneType has no ControlNet"):
        dato.apply_patch(pipe.unet, Schedule.full(1), controlnet="follow")
    pipe.controlnet.compile(backend="eager")
    with pytest.raises(DatoError, match="the ControlNet is compiled"):
        dato.apply_patch(pipe, Schedule.full(1), controlnet="follow")
    pipe.controlnet = torch.compile(tiny("ControlNet").pipe.controlnet, backend="eager")
    with pytest.raises(DatoError, match="the ControlNet is compiled"):
        dato.apply_patch(pipe, Schedule.full(1), controlnet="follow")
    pipe.controlnet = ControlNetUnionModel.__new__(ControlNetUnionModel)
    with pytest.raises(DatoError, match="a ControlNetUnionModel runs whole"):
        dato.unet.controlnet.control_nets(pipe)
    assert dato.unet.patch.patch_of(pipe) is None


def test_residuals_of_others_at_a_later_step_are_not_measured_by_an_earlier_one():
    """The ControlNet ran short at the step before. At this step the residuals are whole, and so is the call."""
    pipe = tiny("ControlNet").pipe
    unet = pipe.unet
    rungs = len(Ladder(unet))
    dato.apply_patch(pipe, Schedule([rungs, 1, rungs], rungs=rungs), controlnet="follow")
    (x, text), times = unet_inputs(), torch.tensor([900, 600, 300], device=device())
    text = text.new_zeros(2, 7, unet.config.cross_attention_dim)
    picture = x.new_zeros(2, 3, 32, 32)
    with torch.no_grad():
        residuals = pipe.controlnet(x, times[0], text, picture, return_dict=False)
        for number, t in enumerate(times):
            if number == 1:
                down, mid = pipe.controlnet(x, t, text, picture, return_dict=False)
            else:
                down, mid = residuals
            more = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            assert torch.isfinite(unet(x, t, text, **more).sample).all()
