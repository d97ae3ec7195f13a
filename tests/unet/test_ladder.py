"""The ladder equals the stock UNet and the package DeepCache with difference 0."""

import pytest
import torch
from conftest import draw, tiny_unet, unet_inputs
from DeepCache import DeepCacheSDHelper
from devices import agree, device, put, rand, randn
from diffusers import UNet2DConditionModel
from which_tests import thorough

import dato
from dato import Schedule
from dato.unet.ladder import Cache, Ladder


@pytest.mark.parametrize(("kind", "rungs"), [("sd", 12), ("sdxl", 9)])
@pytest.mark.parametrize("size", [(16, 16), (24, 16), (10, 14)])
def test_full_depth_is_the_stock_unet(kind, rungs, size):
    unet = tiny_unet(kind)
    x, text = unet_inputs(size=size)
    ladder = Ladder(unet)
    assert len(ladder) == rungs
    with torch.no_grad():
        stock = unet(x, 500, text).sample
        assert torch.equal(ladder.run(rungs, Cache(), x, 500, text), stock)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_any_depth_equals_stock_while_the_input_stays_the_same(kind):
    unet = tiny_unet(kind)
    x, text = unet_inputs(size=(12, 20))
    ladder, cache = Ladder(unet), Cache()
    with torch.no_grad():
        stock = ladder.run(len(ladder), cache, x, 500, text)
        for depth in [*range(len(ladder)), *reversed(range(len(ladder)))]:
            assert torch.equal(ladder.run(depth, cache, x, 500, text), stock)


def test_a_call_takes_the_arrival_at_its_lowest_rung_from_the_last_call_that_computed_it():
    unet = tiny_unet()
    ladder = Ladder(unet)
    inputs = [unet_inputs(seed=seed) for seed in range(4)]

    def run(depths):
        cache = Cache()
        with torch.no_grad():
            return [ladder.run(d, cache, x, 500, text) for d, (x, text) in zip(depths, inputs, strict=False)]

    # Call 2 at depth 3 refreshes what arrives at rungs 0 and 1 but not at rung 2: call 3 at depth 3 sees call 0's.
    assert torch.equal(run([12, 3, 12])[2], run([12, 12, 12])[2])
    assert not torch.equal(run([12, 3, 2])[2], run([12, 2, 2])[2])  # depth 2 reads what depth 3 refreshed
    assert torch.equal(run([12, 2, 3])[2], run([12, 0, 3])[2])  # depth 3 reads what depth 2 did not touch
    assert torch.equal(run([12, 3, 0])[2], run([12, 3, 5])[1])


@pytest.mark.parametrize(("depth", "resnets"), [(0, 0), (1, 1), (2, 3), (4, 6), (12, 22)])
def test_a_depth_runs_its_rungs_and_nothing_else(depth, resnets):
    unet = tiny_unet()
    ladder, cache = Ladder(unet), Cache()
    x, text = unet_inputs()
    count = []
    for module in unet.modules():
        if type(module).__name__ == "ResnetBlock2D":
            module.register_forward_hook(lambda *_: count.append(1))
    with torch.no_grad():
        ladder.run(12, cache, x, 500, text)
        count.clear()
        ladder.run(depth, cache, x, 400, text)
    assert len(count) == resnets


@pytest.fixture(scope="module")
def deep_cache_pipe():
    from dato.generation.pipelines import load_pipeline

    return load_pipeline(device=device())


@pytest.mark.parametrize("branch", [0, 4, 8, *thorough(1, 2, 3, 5, 6, 7)])
def test_uniform_schedules_equal_the_package_deep_cache(deep_cache_pipe, branch):
    pipe, steps = deep_cache_pipe, 7
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=branch)
    helper.enable()
    theirs = draw(pipe, steps)
    helper.disable()
    with dato.patched(pipe, dato.Schedule.uniform(steps + 1, 3, branch + 1)):
        ours = draw(pipe, steps)
    assert agree(ours, theirs)


def test_free_u_is_exact_and_leaves_the_cache_alone():
    unet = tiny_unet()
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    x, text = unet_inputs()
    ladder, cache = Ladder(unet), Cache()
    with torch.no_grad():
        stock = unet(x, 500, text).sample
        # Rungs 9 to 11 are scaled in place by diffusers: twice the same call has to give twice the same.
        for depth in (12, 11, 10, 10, 11):
            assert torch.equal(ladder.run(depth, cache, x, 500, text), stock)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_control_and_adapter_residuals_are_exact(kind):
    unet = tiny_unet(kind)
    x, text = unet_inputs()
    ladder = Ladder(unet)
    skips = []
    handles = [rung.up.register_forward_pre_hook(lambda m, a: skips.append(a[0])) for rung in ladder.rungs]
    with torch.no_grad():
        unet(x, 500, text)
        for handle in handles:
            handle.remove()
        down = [unet.conv_in(x)]
        h, emb = down[0], unet.time_embedding(unet.get_time_embed(x, 500))
        for block in unet.down_blocks:
            more = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            h, outputs = block(h, emb, **more)
            down.extend(outputs)
        control = {
            "down_block_additional_residuals": tuple(0.1 * randn(*s.shape) for s in down),
            "mid_block_additional_residual": 0.1 * randn(*h.shape),
        }
        stock = unet(x, 500, text, **control).sample
        assert torch.equal(ladder.run(len(ladder), Cache(), x, 500, text, **control), stock)

        # An adapter adds one residual a down block: after its last resnet where the block attends, else at its end.
        ends = []
        for block in unet.down_blocks:
            more = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            h, outputs = block(down[0] if not ends else h, emb, **more)
            last = len(block.resnets) - 1 if more else len(outputs) - 1
            ends.append(0.1 * randn(*outputs[last].shape))
        stock = unet(x, 500, text, down_intrablock_additional_residuals=[e.clone() for e in ends]).sample
        ours = ladder.run(len(ladder), Cache(), x, 500, text, down_intrablock_additional_residuals=ends)
        assert torch.equal(ours, stock)


def test_the_conditioning_of_sdxl_is_exact():
    unet = tiny_unet(
        "sdxl",
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    x, text = unet_inputs()
    extra = {"added_cond_kwargs": {"text_embeds": randn(2, 8), "time_ids": rand(2, 6)}}
    mask = {"encoder_attention_mask": put(torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))}
    ladder = Ladder(unet)
    with torch.no_grad():
        stock = unet(x, 500, text, **extra, **mask).sample
        assert torch.equal(ladder.run(9, Cache(), x, 500, text, **extra, **mask), stock)
        assert not torch.equal(ladder.run(9, Cache(), x, 500, text, **extra), stock)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exact_too(dtype):
    unet = tiny_unet().to(dtype)
    x, text = (tensor.to(dtype) for tensor in unet_inputs())
    with torch.no_grad():
        stock = unet(x, 500, text).sample
        assert stock.dtype == dtype and torch.equal(Ladder(unet).run(12, Cache(), x, 500, text), stock)
        dato.apply_patch(unet, Schedule.uniform(3, 3, 1, ratio=0.5))
        assert torch.isfinite(unet(x, 500, text).sample).all()


def test_a_unet_that_is_no_ladder_is_refused_with_its_block():
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
    )
    with pytest.raises(dato.DatoError, match="SimpleCrossAttnDownBlock2D"):
        Ladder(unet)
