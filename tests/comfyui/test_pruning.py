"""Token pruning in a stand-in of ComfyUI is what `dato.apply_patch` does to the same UNet."""

import pytest
import stand_in
import torch
from runs import FULL, runs, sample, scheduled, uniform

from dato import Pruning
from dato.comfyui.apply import prune_tokens
from dato.comfyui.settings import Settings
from dato.comfyui.summary import what_ran
from dato.errors import DatoError
from dato.tokens.pruner import TokenPruner
from dato.unet.comfyui_unet import ComfyUNet


def by_hand(model: stand_in.Patcher, ratio: float, pruning: Pruning) -> torch.Tensor:
    """Latents where each call prunes, with a pruner on the UNet all the time."""
    unet, model = model.model.diffusion_model, model.clone()
    pruner = TokenPruner(unet, pruning, ComfyUNet(unet).places)
    pruner.parts = 2
    pruner.begin(torch.device("cpu"))

    def forward(executor, x, timesteps, *args):
        pruner.prepare(ratio, x, float(timesteps[0]))
        prediction = executor(x, timesteps, *args)
        pruner.observe(prediction)
        return prediction

    model.add_wrapper_with_key(stand_in.MODEL, "by hand", forward)
    pruner.attach()
    try:
        return sample(model)
    finally:
        pruner.detach()


@pytest.mark.parametrize(
    "settings",
    [{}, {"score": "dato"}, {"shared": False, "recover_from": "past"}, {"cross_attention": True, "feed_forward": True}],
    ids=str,
)
def test_every_call_prunes(settings):
    model = stand_in.patcher()
    expected = by_hand(model, 0.5, Pruning(**settings))
    found = sample(prune_tokens(model, 0.5, **settings)[0])
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, sample(model), atol=1e-3)


def test_both_nodes_in_any_order(monkeypatch):
    schedule, pruning = uniform(3), {"score": "I"}
    expected = sample(scheduled(stand_in.patcher(), schedule.with_ratios(0.5), pruning=Pruning(**pruning)))
    for first in ("schedule", "tokens"):
        model = stand_in.patcher()
        for node in ("schedule", "tokens") if first == "schedule" else ("tokens", "schedule"):
            if node == "tokens":
                model = prune_tokens(model, 0.5, **pruning)[0]
            else:
                settings = model.model_options["transformer_options"].get("dato", Settings())
                from dato.comfyui.apply import with_settings

                model = with_settings(model, settings.with_schedule(name="test", schedule=schedule))[0]
        assert torch.equal(sample(model), expected)


@pytest.mark.parametrize("patch", ["attn1_patch", "input_block_patch"])
def test_beside_patches_that_need_all_tokens_nothing_is_pruned(patch, monkeypatch):
    model = stand_in.patcher()
    model.set_patch(patch, lambda *given: given[:3] if patch == "attn1_patch" else given[0])
    with runs(monkeypatch) as found:
        assert torch.equal(sample(prune_tokens(model, 0.5)[0]), sample(model))
    assert "kept all tokens" in what_ran(found[0])


def test_calls_besides_the_schedule_prune_too():
    model = stand_in.patcher()
    unknown = stand_in.sampler(stand_in.sample_unknown)
    assert not torch.allclose(sample(prune_tokens(model, 0.5)[0], sampler=unknown), sample(model, sampler=unknown))


def test_ratio_0_is_stock():
    model = stand_in.patcher()
    assert torch.equal(sample(prune_tokens(model, 0.0)[0]), sample(model))
    assert torch.equal(sample(scheduled(model, FULL)), sample(model))


@pytest.mark.parametrize(
    ("inputs", "says"), [({"ratio": 1.0}, "ratio"), ({"ratio": 0.5, "sx": 1, "sy": 1}, "patch of 1 x 1")]
)
def test_wrong_inputs(inputs, says):
    with pytest.raises(DatoError, match=says):
        prune_tokens(stand_in.patcher(), **inputs)
