"""CompVis' `UNetModel`: the same weights and schedule give what they give in diffusers; whole calls are stock's."""

import copy
from types import SimpleNamespace

import pytest
import torch
from compvis_models import (
    RUNGS,
    compvis_inputs,
    compvis_unet,
    diffusers_twin,
    openaimodel,
)
from devices import device
from torch import nn
from which_tests import thorough

import dato
from dato import DatoError, Schedule, sito
from dato.tokens.places import places_of
from dato.unet import compvis_unet as compvis_unet_module
from dato.unet.cache import Cache
from dato.unet.depth_shares import depth_share
from dato.unet.kinds import adapter_of
from dato.unet.ladder import Ladder
from dato.unet.targets import unet_of

TIMES = [981, 961, 961, 941, 921, 901, 881]  # PLMS uses its second timestep twice
EVERYDAY = {"sd": (0, 1, 5, 11), "sdxl": (2, 8)}
DEPTHS = [(kind, depth) for kind, depths in EVERYDAY.items() for depth in depths]
DEPTHS += thorough(*((kind, d) for kind, rungs in RUNGS.items() for d in range(rungs) if d not in EVERYDAY[kind]))
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


_pairs = {}


def pair(kind):
    """A UNet of CompVis' code, and diffusers' with the same weights."""
    if kind not in _pairs:
        unet = compvis_unet(kind)
        _pairs[kind] = unet, diffusers_twin(unet, kind)
    return _pairs[kind]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield
    for unets in _pairs.values():
        for unet in unets:
            dato.remove_patch(unet)


def latents(times=TIMES):
    """Latents of each call: they move a little from call to call, as a sampler's do."""
    first, text = compvis_inputs(seed=3)
    drift, _ = compvis_inputs(seed=4)
    return [first + 0.1 * call * drift for call in range(len(times))], text


def compvis_run(unet, times=TIMES, text=None, **conditions):
    """The predictions of a run, with timesteps as CompVis' samplers give them."""
    inputs, own = latents(times)
    text = own if text is None else text
    calls = zip(inputs, times, strict=True)
    return [unet(x, torch.full((len(x),), t, device=device()), context=text, **conditions) for x, t in calls]


def diffusers_run(unet, times=TIMES):
    """The same run in diffusers, with timesteps as its samplers give them."""
    inputs, text = latents(times)
    listed = torch.tensor(times, device=device())
    return [unet(x, t, text).sample for x, t in zip(inputs, listed, strict=True)]


def assert_close(ours, theirs):
    for call, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, **CLOSE, msg=lambda text, call=call: f"call {call}: {text}")


@pytest.mark.parametrize("kind", RUNGS)
def test_a_whole_call_of_the_ladder_is_stock(kind):
    unet, twin = pair(kind)
    ladder, (x, text) = Ladder(unet), compvis_inputs(size=(16, 8))
    time = torch.tensor([500, 500], device=device())
    stock = unet(x, time, context=text)
    assert len(ladder) == RUNGS[kind] == len(Ladder(twin))
    assert torch.equal(ladder.run(len(ladder), Cache(), x, time, text), stock)
    torch.testing.assert_close(twin(x, 500, text).sample, stock, **CLOSE)


@pytest.mark.parametrize("kind", RUNGS)
def test_any_depth_is_stock_while_the_input_stays_the_same(kind):
    unet, _ = pair(kind)
    ladder, cache, (x, text) = Ladder(unet), Cache(), compvis_inputs()
    time = torch.tensor([500, 500], device=device())
    stock = ladder.run(len(ladder), cache, x, time, text)
    for depth in range(len(ladder)):
        assert torch.equal(ladder.run(depth, cache, x, time, text), stock), depth


@pytest.mark.parametrize(("kind", "depth"), DEPTHS)
def test_a_depth_means_what_it_means_in_diffusers(kind, depth):
    """At every order, also where a timestep comes twice."""
    full = RUNGS[kind]
    rules = [("polynomial", 0), ("polynomial", 1), ("polynomial", 2)]
    rules += [("aligned", 1)] if depth else [("chebyshev", 1)]
    for rule, order in rules:
        depths = [full, full, full, depth, full, depth, depth]
        schedule = Schedule(depths, None, order, full, forecast=rule)
        ours, theirs = (dato.apply_patch(unet, schedule) for unet in pair(kind))
        assert_close(compvis_run(ours), diffusers_run(theirs))


def test_depths_of_all_kinds_follow_each_other_as_in_diffusers():
    schedule = Schedule([12, 3, 0, 12, 2, 1, 0, 5, 1, 0], orders=[0, 0, 0, 0, 1, 1, 2, 0, 1, 1], forecast="aligned")
    times = [981, 961, 961, *range(941, 801, -20)]
    ours, theirs = (dato.apply_patch(unet, schedule) for unet in pair("sd"))
    for _ in range(2):
        assert_close(compvis_run(ours, times), diffusers_run(theirs, times))


@pytest.mark.parametrize("kind", RUNGS)
def test_whole_calls_are_stock_and_shallow_ones_are_not(kind):
    unet, _ = pair(kind)
    stock, full = compvis_run(unet), RUNGS[kind]
    dato.apply_patch(unet, Schedule([full, 1, full, 0, 2, full, 1], rungs=full))
    equal = [torch.equal(a, b) for a, b in zip(compvis_run(unet), stock, strict=True)]
    assert equal == [True, False, True, False, False, True, False]


def test_after_remove_patch_nothing_is_left():
    unet, _ = pair("sd")
    stock, before = compvis_run(unet), {name: set(vars(module)) for name, module in unet.named_modules()}
    dato.apply_patch(unet, Schedule.uniform(7, 3, 1), prune_ratio=0.5, recover_from="past")
    assert not torch.equal(compvis_run(unet)[1], stock[1])
    dato.remove_patch(unet)
    assert all(torch.equal(a, b) for a, b in zip(compvis_run(unet), stock, strict=True))
    assert {name: set(vars(module)) for name, module in unet.named_modules()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


PRUNED = {
    "attn1": {"prune_ratio": 0.5},
    "attn2": {"prune_ratio": 0.4, "prune_selfattn_flag": False, "prune_crossattn_flag": True},
    "ff": {"prune_ratio": 0.3, "prune_selfattn_flag": False, "prune_mlp_flag": True},
    "all": {"prune_ratio": 0.5, "prune_crossattn_flag": True, "prune_mlp_flag": True, "max_downsample_ratio": 4},
    "past": {"prune_ratio": 0.5, "recover_from": "past", "similarity": "local"},
    "difference": {"prune_ratio": 0.5, "score": "dato"},
}


@pytest.mark.parametrize(
    ("kind", "layers"), [("sd", "attn1"), ("sd", "all"), ("sdxl", "past"), *thorough(*(("sd", x) for x in PRUNED))]
)
def test_pruning_is_that_of_diffusers(kind, layers):
    unet, twin = pair(kind)
    stock, full = compvis_run(unet), RUNGS[kind]
    schedule = Schedule([full, 1, full, 0, 2, full, 1], rungs=full)
    ours, theirs = (dato.apply_patch(one, schedule, **PRUNED[layers]) for one in (unet, twin))
    pruned = compvis_run(ours)
    assert_close(pruned, diffusers_run(theirs))
    assert not torch.allclose(pruned[0], stock[0], rtol=1e-3, atol=1e-3)


def test_pruning_shortens_what_each_layer_sees():
    unet, seen = compvis_unet(), {}
    sito.apply_patch(unet, 0.5, prune_crossattn_flag=True, prune_mlp_flag=True)
    block = unet.input_blocks[1][1].transformer_blocks[0]
    for name in ("norm1", "attn1.to_q", "attn1.to_k", "norm2", "attn2.to_q", "norm3", "ff"):
        block.get_submodule(name).register_forward_hook(lambda m, args, out, n=name: seen.update({n: args[0].shape}))
    compvis_run(unet, TIMES[:1])
    assert {shape[1] for shape in seen.values()} == {8 * 8 // 2} and len(seen) == 7


@pytest.mark.parametrize("kind", RUNGS)
def test_the_places_of_tokens_are_those_of_diffusers(kind):
    unet, twin = pair(kind)
    ours, theirs = adapter_of(unet).places, places_of(twin)
    assert [factor for factor, _ in ours.transformers] == [factor for factor, _ in theirs.transformers]
    assert (ours.downsamplings, ours.channels) == (theirs.downsamplings, theirs.channels)
    assert list(ours.grids((9, 14))) == list(theirs.grids((9, 14)))


def test_the_rule_is_that_of_diffusers():
    unet, twin = pair("sd")
    assert depth_share(unet, 1, (8, 8)) == pytest.approx(depth_share(twin, 1, (8, 8)), rel=1e-6)
    given = {"sampler": "dpm++2m", "guidance_scale": 3.0}
    assert dato.rule(unet, 20, 2.5, **given) == dato.rule(twin, 20, 2.5, **given)
    stock = compvis_run(unet)
    ours = compvis_run(dato.apply_patch(unet, speedup=2.5))
    assert [torch.equal(a, b) for a, b in zip(ours, stock, strict=True)].count(True) in (2, 3)


@pytest.mark.parametrize("where", ["LatentDiffusion", "DiffusionEngine", "wrapper", "UNet"])
def test_the_unet_is_found_where_models_hold_it(where):
    unet, _ = pair("sd")
    wrapper = SimpleNamespace(diffusion_model=unet)
    model = {"wrapper": wrapper, "UNet": unet}.get(where, SimpleNamespace(model=wrapper))
    assert unet_of(model) == (unet, None)
    assert dato.apply_patch(model, Schedule.full(7)) is model
    assert dato.current_schedule(model) == Schedule.full(7) == dato.current_schedule(unet)
    assert dato.remove_patch(model) is model and dato.current_schedule(unet) is None


class LayerByLayer(compvis_unet_module.CompVisUNet):
    """An adapter as of a program that runs the layers of a block by itself, and passes more to them."""

    takes = compvis_unet_module.CompVisUNet.takes | {"seen"}

    def embed(self, sample, timestep, encoder_hidden_states=None, y=None, seen=None):
        begun = super().embed(sample, timestep, encoder_hidden_states, y)
        return LayersForward(self, sample, begun.emb, encoder_hidden_states, seen)


class LayersForward(compvis_unet_module.Forward):
    def __init__(self, model, sample, emb, text, seen):
        super().__init__(model, sample, emb, text)
        self.seen = seen

    def run(self, block, way, index, h, size=None):
        self.seen.append((way, index))
        for layer in block:
            if hasattr(layer, "emb_layers"):
                h = layer(h, self.emb)
            else:
                h = layer(h, self.text) if hasattr(layer, "transformer_blocks") else layer(h)
        assert size is None or h.shape[2:] == size[2:]
        return h


def test_blocks_may_be_run_in_another_way():
    unet, seen = pair("sd")[0], []
    ladder, cache, (x, text) = Ladder(LayerByLayer(unet)), Cache(), compvis_inputs()
    time = torch.tensor([500, 500], device=device())
    stock = unet(x, time, context=text)
    assert torch.equal(ladder.run(12, cache, x, time, text, seen=seen), stock)
    expected = [("input", i) for i in range(12)] + [("middle", 0)] + [("output", i) for i in range(12)]
    assert seen == expected
    seen.clear()
    assert torch.equal(ladder.run(2, cache, x, time, text, seen=seen), stock)
    assert seen == [("input", 0), ("input", 1), ("output", 10), ("output", 11)]


def test_a_copy_of_a_patched_unet_is_patched_too():
    unet, _ = pair("sd")
    stock = compvis_run(unet)
    dato.apply_patch(unet, Schedule.uniform(7, 3, 1), prune_ratio=0.5)
    ours, copied = compvis_run(unet), copy.deepcopy(unet)
    dato.remove_patch(unet)
    assert all(torch.equal(a, b) for a, b in zip(compvis_run(copied), ours, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(compvis_run(dato.remove_patch(copied)), stock, strict=True))


def test_a_unet_with_classes():
    """Labels, as of class-conditional models, and the continuous condition of `y` in Stability AI's code."""
    for classes, y in ((5, torch.tensor([1, 4])), ("continuous", torch.tensor([[0.3], [0.9]]))):
        unet = compvis_unet(num_classes=classes)
        stock = compvis_run(unet, y=y)
        dato.apply_patch(unet, Schedule([12, 12, 12, 1, 12, 1, 12]))
        ours = compvis_run(unet, y=y)
        equal = [torch.equal(a, b) for a, b in zip(ours, stock, strict=True)]
        assert equal == [True, True, True, False, True, False, True]
        with pytest.raises(DatoError, match="this UNet is class-conditional: give it `y`"):
            compvis_run(unet)
        dato.remove_patch(unet)
    with pytest.raises(DatoError, match="not class-conditional: call it without `y`"):
        compvis_run(dato.apply_patch(pair("sd")[0], Schedule.full(7)), y=torch.tensor([1, 4]))


def test_guidance_in_two_calls_by_classes_has_a_cache_for_each():
    unet = compvis_unet(num_classes=5)
    x, text = latents()
    labels = [torch.tensor([1, 1]), torch.tensor([4, 4])]
    schedule = Schedule([12, 1, 12, 1, 1, 12, 1])
    apart = []
    for y in labels:  # each alone
        dato.apply_patch(unet, schedule)
        apart.append(compvis_run(unet, TIMES, y=y))
    dato.apply_patch(unet, schedule)
    for call, t in enumerate(TIMES):
        for number, y in enumerate(labels):
            both = unet(x[call], torch.full((2,), t), context=text, y=y.clone())
            assert torch.equal(both, apart[number][call]), (call, number)


def test_a_unet_without_transformers_has_depths_but_no_tokens():
    unet = compvis_unet(use_spatial_transformer=False, context_dim=None, num_heads=4, num_head_channels=8)
    x, _ = latents()

    def run():
        return [unet(one, torch.full((2,), t)) for one, t in zip(x, TIMES, strict=True)]

    stock = run()
    dato.apply_patch(unet, Schedule([12, 1, 12, 0, 2, 12, 1]))
    assert [torch.equal(a, b) for a, b in zip(run(), stock, strict=True)].count(True) == 3
    with pytest.raises(DatoError, match="no transformer blocks"):
        sito.apply_patch(unet)


@pytest.mark.parametrize("really", [False, *thorough(True)])
def test_compiled_calls_give_the_same(really, monkeypatch):
    if not really:
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    unet = compvis_unet(use_checkpoint=False)
    schedule = Schedule([12, 1, 12, 0, 1, 12, 1], orders=1)
    plain = compvis_run(dato.apply_patch(unet, schedule, prune_ratio=0.5))
    dato.apply_patch(unet, schedule, prune_ratio=0.5, compile={"backend": "eager"})
    assert_close(compvis_run(unet), plain)
    assert unet._dato_patch._compiled_calls.count == 2  # of depth 12 and of depth 1


class Controlled(openaimodel.UNetModel):
    """As ControlNet's own code has it: another forward, with arguments of its own."""

    def forward(self, x, timesteps=None, context=None, control=None, **kwargs):
        return super().forward(x, timesteps, context, **kwargs) + (0 if control is None else control)


def test_what_the_ladder_does_not_know_runs_whole():
    from compvis_models import randomised, unet_config

    unet = randomised(Controlled(**unet_config()))
    control = torch.ones(1, device=device())
    stock = compvis_run(unet, control=control)
    dato.apply_patch(unet, Schedule([12, 1, 12, 0, 2, 12, 1]))
    assert all(torch.equal(a, b) for a, b in zip(compvis_run(unet, control=control), stock, strict=True))
    with pytest.warns(UserWarning, match="another forward .*Controlled.forward"):
        compvis_run(unet)
    plain = pair("sd")[0]
    stock = compvis_run(plain)
    dato.apply_patch(plain, Schedule.uniform(7, 3, 1))
    with pytest.warns(UserWarning, match="does not know the UNet's argument `features`; calls with it run whole"):
        ours = compvis_run(plain, features=control)  # stock takes any argument, and does nothing with it
    assert all(torch.equal(a, b) for a, b in zip(ours, stock, strict=True))


def test_what_cannot_be_patched_is_refused_in_one_line():
    unet, _ = pair("sd")

    class DiT(nn.Module):
        pass

    cases = [
        (
            SimpleNamespace(model=SimpleNamespace(diffusion_model=DiT())),
            Schedule.full(2),
            "with a DiT: of CompVis' code",
        ),
        (pair("sdxl")[0], Schedule([12, 10]), "depth 10 does not exist in a UNet of 9 rungs"),
        (unet, None, "apply_patch needs a schedule"),
    ]
    for model, schedule, message in cases:
        with pytest.raises(DatoError, match=message) as caught:
            dato.apply_patch(model, schedule)
        assert "\n" not in str(caught.value)
    dato.apply_patch(unet, Schedule.full(2))
    with pytest.raises(DatoError, match=r"needs latents and timesteps: unet\(x, timesteps"):
        unet(compvis_inputs()[0])
    uneven = compvis_unet()
    del uneven.output_blocks[-1]
    with pytest.raises(DatoError, match="leaves 12 skip connections and takes in 11"):
        dato.apply_patch(uneven, Schedule.full(2))
