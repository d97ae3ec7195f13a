"""The pruner in a UNet: what it draws and remembers for a call, which layers it shortens, and where."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_unet, unet_inputs
from devices import device
from torch._subclasses.fake_tensor import FakeTensorMode

import dato
from dato import Pruning, Schedule
from dato.tokens.places import downsamplings, smallest_downsample
from dato.tokens.pruner import TokenPruner
from dato.tokens.scores import base_score

TIMES = (900, 700, 500, 300, 100)


def run(unet, x, text, times=TIMES):
    """The predictions of a generation; each call gets other latents."""
    with torch.no_grad():
        return [unet(x + 0.3 * i, time, text).sample for i, time in enumerate(times)]


@pytest.fixture
def asked(monkeypatch):
    """What base scores were computed from: (noise, difference, grid) of each choice."""
    seen = []

    def noted(x, pruning, noise=None, difference=None, grid=None):
        seen.append((noise, difference, grid))
        return base_score(x, pruning, noise, difference, grid)

    monkeypatch.setattr("dato.tokens.pruner.base_score", noted)
    return seen


@pytest.mark.parametrize("depths", [[12] * 5, [12, 12, 0, 12, 2]])
def test_datos_difference_is_that_of_the_last_two_predictions_that_were_computed(asked, depths):
    unet, (x, text) = tiny_unet(), unet_inputs()
    dato.apply_patch(unet, Schedule(depths, 0.5), score="dato", max_downsample=2)
    predictions = run(unet, x, text)
    computed, choices = [], list(asked)
    for depth, prediction in zip(depths, predictions, strict=True):
        grids = [] if depth == 0 else [(16, 16)] if depth == 2 else [(16, 16), (8, 8)]
        for grid in grids:
            _, difference, at = choices.pop(0)
            assert at == grid
            if len(computed) < 2:
                assert difference is None  # noise decides alone
                continue
            change = (computed[-1] - computed[-2]).abs().mean(dim=1, keepdim=True)
            expected = F.avg_pool2d(change, 16 // grid[0]).flatten(1)
            torch.testing.assert_close(difference.abs(), expected)
            assert len(difference.sign().unique()) == 1  # one sign for the whole call
        if depth:
            computed.append(prediction)
    assert not choices


@pytest.mark.parametrize(("shared", "blocks"), [(True, 1), (False, 5)])
def test_each_choice_has_normal_noise_of_its_own_and_each_generation_the_same(asked, shared, blocks):
    unet, (x, text) = tiny_unet(), unet_inputs(batch=4)

    def noises(times=TIMES, **settings):
        dato.apply_patch(unet, prune_ratio=0.5, shared=shared, **settings)
        asked.clear()
        run(unet, x, text, times)
        return [noise for noise, _, _ in asked]

    drawn = noises()
    assert len(drawn) == blocks * len(TIMES) and all(noise.shape == (4, 256) for noise in drawn)
    first = torch.stack([noise[0] for noise in drawn])  # the first image's
    assert abs(first.mean()) < 0.2 and abs(first.std() - 1) < 0.2
    assert first.unique(dim=0).shape == first.shape  # no two choices have the same
    assert all(torch.equal(noise, noise[:1].expand(4, -1)) for noise in drawn)  # four images without guidance
    assert all(map(torch.equal, drawn, noises()))
    assert not torch.equal(drawn[0], noises(seed=1)[0])
    # A bare UNet begins a generation where the timestep rises.
    twice = noises((900, 700, 900, 700))
    assert all(map(torch.equal, twice[: 2 * blocks], twice[2 * blocks :]))


def test_scores_that_need_no_noise_draw_none(asked):
    unet, (x, text) = tiny_unet(), unet_inputs()
    dato.apply_patch(unet, prune_ratio=0.5, score="V")
    run(unet, x, text)
    assert len(asked) == len(TIMES) and all(noise is None and difference is None for noise, difference, _ in asked)


@pytest.mark.parametrize(("kind", "factors"), [("sd", (1, 2, 4, 8)), ("sdxl", (2, 4))])
def test_the_downsamplings_at_which_a_unet_attends(kind, factors):
    unet = tiny_unet(kind)
    assert downsamplings(unet) == factors and smallest_downsample(unet) == factors[0]


# Transformer blocks of the tiny UNets at each downsampling: down, mid and up.
BLOCKS = {"sd": {1: 2 + 3, 2: 2 + 3, 4: 2 + 3, 8: 1}, "sdxl": {2: 2 * 2 + 2 * 3, 4: 3 * 2 + 3 + 3 * 3}}


@pytest.mark.parametrize("size", [(16, 16), (20, 14)])
@pytest.mark.parametrize(("kind", "most"), [("sd", None), ("sd", 2), ("sd", 8), ("sdxl", None), ("sdxl", 4)])
def test_blocks_prune_up_to_a_downsampling(kind, most, size):
    unet, (x, text) = tiny_unet(kind), unet_inputs(size=size)
    seen = []
    rungs = 12 if kind == "sd" else 9
    pruning = Pruning(shared=False, max_downsample=most, score="IV")
    dato.apply_patch(unet, Schedule([rungs], 0.5, rungs=rungs, pruning=pruning))
    unet._dato_patch.pruner.listener = lambda *choice: seen.append(choice)
    with torch.no_grad():
        unet(x, 500, text)
    factors = [factor for factor in BLOCKS[kind] if factor <= (most or min(BLOCKS[kind]))]
    for factor in factors:
        numbers, grids, selections = zip(*(choice[1:] for choice in seen if choice[0] == factor), strict=True)
        # diffusers halves with rounding up.
        h, w = (-(-pixels // factor) for pixels in size)
        assert sorted(numbers) == list(range(BLOCKS[kind][factor])) and set(grids) == {(h, w)}
        assert {s.pruned.shape for s in selections} == {(2, h * w // 2)}
    assert len(seen) == sum(BLOCKS[kind][factor] for factor in factors)


LAYERS = {"self_attention": "attn1", "cross_attention": "attn2", "feed_forward": "ff"}


@pytest.mark.parametrize("on", [(), *((name,) for name in LAYERS), tuple(LAYERS)])
def test_only_the_chosen_layers_are_shortened(on):
    unet, (x, text), seen = tiny_unet(), unet_inputs(), {}
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    for name in LAYERS.values():
        layer = block.get_submodule(name)
        layer.register_forward_pre_hook(lambda m, args, name=name: seen.__setitem__(name, args[0].shape[1]))
    dato.apply_patch(unet, prune_ratio=0.25, **{name: name in on for name in LAYERS})
    run(unet, x, text, (500,))
    assert seen == {layer: 192 if name in on else 256 for name, layer in LAYERS.items()}


def test_a_ratio_too_small_for_one_token_prunes_nothing():
    unet, (x, text) = tiny_unet(), unet_inputs()
    stock, chosen = run(unet, x, text), []
    dato.apply_patch(unet, prune_ratio=0.5 / 256)
    unet._dato_patch.pruner.listener = lambda *choice: chosen.append(choice)
    assert all(map(torch.equal, run(unet, x, text), stock)) and not chosen
    dato.apply_patch(unet, prune_ratio=1.5 / 256)
    unet._dato_patch.pruner.listener = lambda *choice: chosen.append(choice[-1].pruned.shape)
    run(unet, x, text)
    assert chosen == [(2, 1)] * len(TIMES)


def test_of_turns_and_guidance_the_parts_are_what_the_pipeline_says_or_the_latents_tell():
    unet, x = tiny_unet(), unet_inputs(batch=2)[0]
    pruner = TokenPruner(unet, Pruning(score="IV"))

    def parts(sample, given=None):
        pruner.begin(device())
        pruner.parts = given
        pruner.prepare(0.5, sample, 900.0)
        return pruner._parts

    assert parts(x) == 1 and parts(x[:1]) == 1
    assert parts(x[:1].repeat(2, 1, 1, 1)) == 2 and parts(x.repeat(2, 1, 1, 1)) == 2
    assert parts(x[:1].repeat(3, 1, 1, 1)) == 3 and parts(x.repeat(3, 1, 1, 1)) == 3
    assert parts(torch.cat([x, x[:1]])) == 1  # three images, of which two are equal by chance
    assert parts(x, 2) == 2 and parts(x.repeat(2, 1, 1, 1), 1) == 1
    assert parts(x[:1], 2) == 1  # a batch of one has no halves


def test_a_generation_goes_on_where_it_was_after_another_one():
    """As where two generations take turns on one UNet."""
    unet, (x, text) = tiny_unet(), unet_inputs()
    pruning = Pruning(score="dato", noise_alpha=1.0, recover_from="past", choose_every=2)
    pruner = TokenPruner(unet, pruning)
    pruner.attach()

    def call(i, time):
        pruner.prepare(0.5, x, time)
        with torch.no_grad():
            prediction = unet(x + 0.3 * i, time, text).sample
        pruner.observe(prediction)
        return prediction

    pruner.begin(device())
    alone = [call(i, time) for i, time in enumerate(TIMES)]
    pruner.begin(device())
    begun = [call(i, time) for i, time in enumerate(TIMES[:3])]
    state = pruner.state()
    pruner.resume(None, device())  # another one begins
    other = [call(i, time) for i, time in enumerate(TIMES[:2])]
    pruner.resume(state, device())
    rest = [call(i + 3, time) for i, time in enumerate(TIMES[3:])]
    assert all(map(torch.equal, alone, begun + rest)) and all(map(torch.equal, alone, other))
    pruner.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_a_transformer_and_a_block_may_be_called_with_keywords():
    """As other programs call them."""
    unet, (x, text) = tiny_unet(), unet_inputs()
    transformer = unet.down_blocks[0].attentions[0]
    block, grids = transformer.transformer_blocks[0], []
    pruner = TokenPruner(unet, Pruning(score="IV", shared=False))
    pruner.listener = lambda factor, number, grid, selection: grids.append((grid, selection.kept.shape[1]))
    pruner.attach()
    pruner.begin(device())
    pruner.prepare(0.5, x, 900.0)
    image = torch.randn(2, transformer.in_channels, 16, 16, device=device())
    with torch.no_grad():
        (expected,) = transformer(image, text, return_dict=False)
        (found,) = transformer(hidden_states=image, encoder_hidden_states=text, return_dict=False)
        tokens = torch.randn(2, 256, block.attn1.to_q.in_features, device=device())
        of_block = block(tokens, None, text)
        assert torch.equal(block(hidden_states=tokens, encoder_hidden_states=text), of_block)
    assert torch.equal(found, expected) and grids == [((16, 16), 128)] * 4


@pytest.mark.parametrize("reduction", ["prune", "merge"])
def test_a_copied_choice_is_not_written_over(reduction):
    """A compiled call may overwrite the memory that it returned before."""
    unet, (x, text) = tiny_unet(), unet_inputs()
    for every in (1, 2):
        pruner = TokenPruner(unet, Pruning(score="IV", choose_every=every, reduction=reduction))
        pruner.attach()
        pruner.begin(device())
        pruner.prepare(0.5, x, 900.0)
        run(unet, x, text, (900,))
        before = dict(pruner._selections)
        pruner.copy_state()
        after = dict(pruner._selections)
        pruner.detach()
        if every == 1:  # the next call chooses anew
            assert before and not after
            continue
        assert after.keys() == before.keys()
        for factor, selection in after.items():
            assert selection.merge == before[factor].merge == (reduction == "merge")
            for name in ("base", "pruned", "kept", "source"):
                old, new = getattr(before[factor], name), getattr(selection, name)
                assert torch.equal(old, new) and old.data_ptr() != new.data_ptr()


@pytest.mark.parametrize("fake", [False, True])
def test_latents_without_values_are_not_compared(fake):
    """As where FLOPs are counted on the meta device, and where a call is traced."""
    pruner, x = TokenPruner(tiny_unet(), Pruning(score="IV")), unet_inputs(batch=2)[0]
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
        sample = torch.empty(x.shape) if fake else x.to("meta")
        assert sample.is_meta != fake
        assert pruner._parts_of(sample) == 1


@pytest.mark.parametrize("every", [1, 2, 3])
def test_tokens_are_chosen_at_every_nth_call_that_prunes_as_many(every):
    unet, (x, text) = tiny_unet(), unet_inputs()
    pruner, chosen = TokenPruner(unet, Pruning(score="IV", choose_every=every)), []
    pruner.listener = lambda *choice: chosen.append(choice)
    pruner.attach()
    pruner.begin(device())

    def choices(ratio):
        chosen.clear()
        pruner.prepare(ratio, x, 900.0)
        run(unet, x, text, (900,))
        return len(chosen)

    assert [choices(0.5) for _ in range(7)] == [int(call % every == 0) for call in range(7)]
    assert [choices(ratio) for ratio in (0.25, 0.5, 0.0, 0.5)] == [1, 1, 0, int(every == 1)]


def test_the_sign_of_the_difference_is_drawn_in_every_call():
    pruner, x = TokenPruner(tiny_unet(), Pruning(score="dato")), unet_inputs()[0]
    pruner.begin(device())
    for _ in range(2):
        pruner.observe(torch.randn_like(x))
    signs = []
    for _ in range(32):
        pruner.prepare(0.5, x, 900.0)
        signs.append(pruner._sign.item())
    assert set(signs) == {-1.0, 1.0} and 6 <= signs.count(1.0) <= 26
