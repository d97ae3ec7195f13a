"""Generations in a stand-in of ComfyUI: whole calls are its own, and partial calls are what the schedule says."""

from types import SimpleNamespace

import pytest
import stand_in
import torch
from runs import FULL, STEPS, depths, own_ladder, runs, sample, scheduled, uniform
from torch import Tensor

import dato
from dato import Schedule
from dato.unet.comfyui_unet import unet_in


def residuals(batch: Tensor) -> dict:
    """Of a ControlNet: one for each skip connection, and one for the middle. One of them is missing."""
    generator = torch.Generator().manual_seed(3)
    h, w = batch.shape[-2:]
    sizes = [(h, w)] * 3 + [((h + 1) // 2, (w + 1) // 2)] * 3
    output = [torch.randn(len(batch), stand_in.WIDTH, *size, generator=generator) for size in sizes]
    output[1] = None
    return {"input": [], "middle": [torch.randn(len(batch), stand_in.WIDTH, *sizes[-1], generator=generator)],
            "output": output}  # fmt: skip


def adapter(batch: Tensor) -> dict:
    """Of a T2I-Adapter: they are added on the way down, and there are fewer of them than blocks."""
    generator = torch.Generator().manual_seed(4)
    shapes = [(len(batch), stand_in.WIDTH, *batch.shape[-2:])] * 2
    return {"input": [torch.randn(shape, generator=generator) for shape in shapes], "middle": [], "output": []}


def with_patches(model: stand_in.Patcher) -> stand_in.Patcher:
    """A copy of the model with patches of other nodes at all places. Some write into what they get, as FreeU does."""
    model = model.clone()

    def output(h: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        if options["block"][1] >= 2:
            h[:, :8] *= 1.1 + 0.01 * options["block"][1]
            skip *= 0.9
        return h, skip

    model.set_patch("output_block_patch", output)
    model.set_patch("emb_patch", lambda emb, width, options: emb * 1.01)
    model.set_patch("input_block_patch", lambda h, options: h + 0.1 * options["block"][1])
    model.set_patch("input_block_patch_after_skip", lambda h, options: h * (1 + 0.01 * options["block"][1]))
    model.set_patch("attn1_patch", lambda n, k, v, options: (n * (1 + 0.1 * options["transformer_index"]), k, v))
    return model


CASES = {
    "plain": {},
    "apart": {"apart": True},
    "controlnet": {"control": residuals},
    "adapter": {"control": adapter},
    "another call in each step": {"again": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("patched", [False, True])
def test_whole_calls_are_stock_and_so_is_our_loop(case, patched, monkeypatch):
    model = with_patches(stand_in.patcher()) if patched else stand_in.patcher()
    stock = sample(model, **CASES[case])
    assert torch.equal(sample(scheduled(model, FULL), **CASES[case]), stock)
    with own_ladder(monkeypatch):
        assert torch.equal(sample(scheduled(model, FULL), **CASES[case]), stock)


def reference(model: stand_in.Patcher, depth: int, interval: int = 3, **guider) -> Tensor:
    """Latents where a plain loop runs the partial calls: what DeepCache does, written down again.

    It reuses what arrives at a rung from below, before the patches of other nodes.
    """
    unet, kept, count = model.model.diffusion_model, {}, 0
    place = stand_in.RUNGS - depth  # of the output block that reads what was kept
    model = model.clone()

    def forward(executor, x, timesteps, context, y, control, options):
        nonlocal count
        key, whole = tuple(options["uuids"]), count % interval == 0
        options["original_shape"], options["transformer_index"] = list(x.shape), 0
        patches = options.get("patches", {})
        emb = unet.time_embed(stand_in.timestep_embedding(timesteps, stand_in.WIDTH))
        for patch in patches.get("emb_patch", ()):
            emb = patch(emb, stand_in.WIDTH, options)
        h, skips, blocks = x, [], list(unet.input_blocks)
        for index, block in enumerate(blocks if whole else blocks[:depth]):
            options["block"] = ("input", index)
            h = stand_in.forward_timestep_embed(block, h, emb, context, options)
            h = stand_in.apply_control(h, control, "input")
            for patch in patches.get("input_block_patch", ()):
                h = patch(h, options)
            skips.append(h)
            for patch in patches.get("input_block_patch_after_skip", ()):
                h = patch(h, options)
        if whole:
            h = stand_in.forward_timestep_embed(unet.middle_block, h, emb, context, options)
            h = stand_in.apply_control(h, control, "middle")
        for index, block in enumerate(unet.output_blocks):
            residual = None
            if control and control["output"]:
                residual = control["output"].pop()  # also of blocks that do not run
            if index < place and not whole:
                options["transformer_index"] = max(3, index + 1)  # three are above output block 3
                continue
            options["block"], skip = ("output", index), skips.pop()
            if index == place:
                h = kept[key] = h.clone() if whole else kept[key]
                h = h.clone()
            skip = skip if residual is None else skip + residual
            for patch in patches.get("output_block_patch", ()):
                h, skip = patch(h, skip, options)
            h = torch.cat([h, skip], dim=1)
            shape = skips[-1].shape if skips else None
            h = stand_in.forward_timestep_embed(block, h, emb, context, options, shape)
        return unet.out(h)

    def predict(executor, *args, **kwargs):
        nonlocal count
        result = executor(*args, **kwargs)
        count += 1
        return result

    model.add_wrapper_with_key(stand_in.MODEL, "reference", forward)
    model.add_wrapper_with_key(stand_in.PREDICT, "reference", predict)
    return sample(model, **guider)


@pytest.mark.parametrize("case", ["plain", "apart", "controlnet", "adapter"])
@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_partial_calls_are_what_a_plain_loop_gives(depth, patched, case):
    model = with_patches(stand_in.patcher()) if patched else stand_in.patcher()
    expected = reference(model, depth, **CASES[case])
    found = sample(scheduled(model, uniform(depth)), **CASES[case])
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(sample(model, **CASES[case]), expected, atol=1e-3)


def test_at_depth_0_the_prediction_is_the_last_one():
    model, calls = stand_in.patcher(), []
    model.set_patch("emb_patch", lambda emb, width, options: calls.append(options["sigmas"]) or emb)
    sample(scheduled(model, uniform(0)))
    assert [round(float(sigma), 1) for sigma in calls] == [9.0, 2.0, 0.3]  # every third of the levels


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("depth", [0, 2])
def test_orders_forecast(depth, order):
    model = stand_in.patcher()
    reuse, forecast = (sample(scheduled(model, uniform(depth, o, 2))) for o in (0, order))
    assert torch.isfinite(forecast).all() and not torch.equal(reuse, forecast)


@pytest.mark.parametrize("forecast", ["aligned", "chebyshev"])
def test_other_rules_of_forecasting_run_alike_by_stock_and_by_our_loop(forecast, monkeypatch):
    model = with_patches(stand_in.patcher())
    depth = 2 if forecast == "aligned" else 0
    schedule = Schedule(uniform(depth, interval=2).depths, orders=1, rungs=6, forecast=forecast)
    found = sample(scheduled(model, schedule))
    with own_ladder(monkeypatch):
        assert torch.allclose(sample(scheduled(model, schedule)), found, atol=1e-6)


def test_conditions_besides_the_text(monkeypatch):
    model, y = stand_in.patcher(num_classes=3), torch.randn(1, 3)
    stock = sample(model, y=y)
    with own_ladder(monkeypatch):
        assert torch.equal(sample(scheduled(model, FULL), y=y), stock)
    assert not torch.equal(sample(scheduled(model, uniform(1)), y=y), stock)


def test_parts_of_guidance_apart_are_as_in_one_batch():
    model = scheduled(stand_in.patcher(), uniform(3, 1))
    together, apart = sample(model), sample(model, apart=True)
    assert torch.allclose(together, apart, atol=1e-4)


def test_copies_of_a_conditioning_do_not_share_a_cache():
    """ComfyUI copies a conditioning with its uuid to the other part of guidance, where an area has none there."""
    model = scheduled(stand_in.patcher(), uniform(3))
    guider = stand_in.Guider(model, apart=True)
    expected = guider.sample(stand_in.noise(), stand_in.sampler())
    guider.uuids[1] = guider.uuids[0]
    assert torch.equal(guider.sample(stand_in.noise(), stand_in.sampler()), expected)


def test_another_call_in_a_step_has_a_cache_of_its_own():
    """As perturbed attention makes it: the same conditioning at the same level, with other latents."""
    model = stand_in.patcher()
    with_more, plain = (sample(scheduled(model, uniform(0)), again=again) for again in (True, False))
    assert not torch.equal(with_more, plain)
    # At depth 0 each call repeats its own last prediction, so the sum of both is what a plain loop gives.
    slopes = []
    guider = stand_in.Guider(model, again=True)
    whole = guider._predict

    def predict(x, timestep, options):
        if len(slopes) % 3 == 0:
            slopes.append((x - whole(x, timestep, options)) / timestep)
        else:
            slopes.append(slopes[-1])
        return x - slopes[-1] * timestep

    guider._predict = predict
    assert torch.allclose(guider.sample(stand_in.noise(), stand_in.sampler()), with_more, atol=1e-5)


def test_a_call_that_was_left_out_makes_the_next_one_whole(monkeypatch):
    """Another node may answer a call itself. Then what is cached is older than the schedule says."""
    model, count = scheduled(stand_in.patcher(), uniform(1, interval=7)), [0]

    def answer(executor, x, *args, **kwargs):
        count[0] += 1
        return torch.zeros_like(x) if count[0] == 3 else executor(x, *args, **kwargs)

    model.wrappers[stand_in.MODEL] = {"other": [answer], **model.wrappers[stand_in.MODEL]}
    with runs(monkeypatch) as found:
        sample(model)
    assert found[0].depths == {0: 6, 1: 1, 3: 6, 4: 1, 5: 1, 6: 1}


def test_wrappers_of_others_run_at_every_depth():
    model, seen = scheduled(stand_in.patcher(), uniform(0)), []

    def other(executor, x, *args, **kwargs):
        seen.append(x.shape)
        return executor(x, *args, **kwargs) * 0.5

    model.add_wrapper_with_key(stand_in.MODEL, "other", other)
    sample(model)
    assert len(seen) == STEPS


def test_two_sizes_and_batches_follow_each_other():
    model = scheduled(stand_in.patcher(), uniform(3, 1))
    alone = sample(model, stand_in.noise(2, (10, 6)))
    sample(model)
    assert torch.equal(sample(model, stand_in.noise(2, (10, 6))), alone)


def test_a_run_that_was_broken_off_leaves_nothing():
    model = scheduled(stand_in.patcher(), uniform(3, 1))
    alone, count = sample(model), [0]

    def interrupt(h, options):
        count[0] += 1
        if count[0] > 10:
            raise KeyboardInterrupt
        return h

    broken = model.clone()
    broken.set_patch("input_block_patch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sample(broken)
    assert torch.equal(sample(model), alone)
    assert "dato_run" not in model.model_options["transformer_options"]


def test_the_model_without_the_node_is_stock():
    model = stand_in.patcher()
    stock, options = sample(model), dict(model.model_options["transformer_options"])
    sample(scheduled(model, uniform(1).with_ratios(0.5)))
    assert torch.equal(sample(model), stock)
    assert model.model_options["transformer_options"] == options and model.wrappers == {}
    unet = model.model.diffusion_model
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_a_second_schedule_replaces_the_first(monkeypatch):
    model = scheduled(scheduled(stand_in.patcher(), FULL), uniform(1))
    with runs(monkeypatch) as found:
        sample(model)
    assert depths(found[0]) == [6, 1, 1, 6, 1, 1, 6]
    assert [len(some["dato"]) for some in model.wrappers.values()] == [1, 1, 1]


def test_video_runs_whole(monkeypatch):
    model = scheduled(stand_in.patcher(), uniform(1))
    unet = model.model.diffusion_model
    plain = unet.forward
    monkeypatch.setattr(unet, "forward", lambda *args: plain(*args, num_video_frames=1))
    with runs(monkeypatch) as found:
        sample(model)
    assert not found[0].depths and found[0].besides == STEPS


def test_a_patch_that_changes_sizes_within_the_unet(monkeypatch):
    """As Kohya's deep shrink: some blocks run at a smaller size in the first steps."""
    model = stand_in.patcher()

    def shrink(h, options):
        if options["block"] == ("input", 1) and float(options["sigmas"][0]) > 1.5:
            return h[..., ::2, ::2]
        return h

    def widen(h, skip, options):
        return torch.nn.functional.interpolate(h, size=skip.shape[-2:]), skip

    model.set_patch("input_block_patch_after_skip", shrink)
    model.set_patch("output_block_patch", widen)
    stock = sample(model)
    for order in (0, 1, 2):
        found = sample(scheduled(model, uniform(1, order, 2)))
        assert torch.isfinite(found).all() and not torch.equal(found, stock)


def test_the_unet_within_a_compiled_one():
    model = stand_in.patcher()
    unet = model.model.diffusion_model
    assert unet_in(model) is unet
    model.model.diffusion_model = SimpleNamespace(_orig_mod=unet)
    assert unet_in(model) is unet


@pytest.mark.thorough
def test_a_compiled_unet(monkeypatch):
    model = stand_in.patcher()
    expected = sample(scheduled(model, uniform(1)))
    model.model.diffusion_model = torch.compile(model.model.diffusion_model, backend="eager")
    with runs(monkeypatch) as found:
        assert torch.allclose(sample(scheduled(model, uniform(1))), expected, atol=1e-5)
    assert depths(found[0]) == [6, 1, 1, 6, 1, 1, 6]


def test_apply_patch_takes_the_unet_itself():
    """Scripts may do so. All calls go through the ladder then, with the patches of other nodes."""
    model = with_patches(stand_in.patcher())
    stock, expected = sample(model), sample(scheduled(model, uniform(2)))
    with dato.patched(model.model.diffusion_model, uniform(6)):
        assert torch.equal(sample(model), stock)
    with dato.patched(model.model.diffusion_model, uniform(2)):
        assert torch.equal(sample(model), expected)


def test_in_inference_mode():
    model = scheduled(with_patches(stand_in.patcher()), uniform(2, 1))
    with torch.inference_mode():
        found = sample(model)
    assert torch.equal(found, sample(model))
