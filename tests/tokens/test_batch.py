"""An image does not depend on its neighbours: in a batch, tokens are pruned as they are for the image alone."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import PROMPTS, tiny_unet, unet_inputs
from tiny_pipelines import sample, tiny

import dato
from dato import Pruning, Schedule
from dato.pruning import SCORES

SETTINGS = (
    *({"score": score} for score in SCORES),
    *({"recover_from": recovery, "noise_alpha": 3.0} for recovery in ("kept", "past")),
    {"similarity": "local", "noise_alpha": 3.0},
    {"similarity": "local", "score": "dato", "recover_from": "past", "sx": 4},
    {"reduction": "merge", "noise_alpha": 3.0, "cross_attention": True, "feed_forward": True},
    {"shared": False, "noise_alpha": 3.0, "max_downsample": 2},
    {"choose_every": 2, "score": "dato", "max_downsample": 2},
    {"align_cfg": True, "score": "IV"},
)


def draw(pipe, images, guidance_scale):
    """Latents of some of the images; image i has its own prompt and noise."""
    generators = [torch.Generator().manual_seed(i) for i in images]
    options = {"guidance_scale": guidance_scale, "num_inference_steps": 5, "output_type": "latent"}
    return pipe([PROMPTS[i] for i in images], generator=generators, **options).images


def decibels(a, b):
    error = (a - b).double().square().mean().item()
    return 10 * math.log10(b.double().square().max().item() / max(error, 1e-30))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_an_image_is_the_same_alone_and_at_any_place_in_a_batch(make_pipe, settings, guidance_scale):
    pipe, pruning = make_pipe(), Pruning(**settings)
    dato.apply_patch(pipe, Schedule([12, 12, 12, 3, 0, 12], [0.25, 0.5, 0.5, 0.5, 0, 0.5], pruning=pruning))
    alone = [draw(pipe, [i], guidance_scale)[0] for i in range(3)]
    for images in ([0, 1, 2], [2, 0], [1, 2, 0]):
        for i, image in zip(images, draw(pipe, images, guidance_scale), strict=True):
            assert decibels(image, alone[i]) > 100


def test_three_parts_of_guidance_get_the_same_numbers_alone_and_in_a_batch():
    pipe, kwargs = tiny("InstructPix2Pix")
    dato.apply_patch(pipe, prune_ratio=0.5, score="IV")
    one = {"image": kwargs["image"], "prompt": kwargs["prompt"]}
    two = {"image": one["image"].repeat(2, 1, 1, 1), "prompt": [one["prompt"]] * 2}
    alone = sample(pipe, kwargs | one, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 0)]
    both = pipe(**(kwargs | two), num_inference_steps=3, generator=generators, output_type="latent").images
    assert decibels(both[1], alone[0]) > 100


def bases(unet, x, text, **pruning):
    """The base tokens (B, M) of one call."""
    dato.apply_patch(unet, prune_ratio=0.5, score="IV", **pruning)
    chosen = []
    unet._dato_patch.pruner.listener = lambda factor, grid, selection: chosen.append(selection.base)
    with torch.no_grad():
        unet(x, 500, text)
    return chosen[0]


def test_without_a_pipeline_the_latents_tell_which_images_belong_together():
    unet, (x, text) = tiny_unet(), unet_inputs(batch=2)
    alone = bases(unet, x[:1], text[:1])
    # Two images, and a batch that no number of parts divides.
    for images in ([0, 1], [1, 0, 1, 1, 0]):
        assert torch.equal(bases(unet, x[images], text[images]), alone.expand(len(images), -1))
    for parts in (2, 3):
        one, two = x[:1].repeat(parts, 1, 1, 1), x.repeat(parts, 1, 1, 1)
        guided = bases(unet, one, text[:1].repeat(parts, 1, 1))
        assert all(not torch.equal(*pair) for pair in pairwise(guided))
        both = bases(unet, two, text.repeat(parts, 1, 1))
        assert torch.equal(both, guided.repeat_interleave(2, dim=0))
        aligned = bases(unet, two, text.repeat(parts, 1, 1), align_cfg=True)
        assert torch.equal(aligned, both[:1].expand_as(aligned))
